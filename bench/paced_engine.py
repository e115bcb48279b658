"""An engine that computes nothing: `python -m bench.paced_engine FD PARENT_PID MODEL STEP_MS`, spawned as an engine is.

Takes what the server tells an engine, gives every running sequence its next token once per step: a text's tokens, over
and over, so that the server has real text to write. Knows no tensor.
"""

from __future__ import annotations

import itertools
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer

from app.messages import Abort, EngineReady, StepOutput, Submit, ToEngine, TokenOutput, WeightsLanded
from streaming.wire import Connection, ConnectionClosed

_TEXT = Path(__file__).parents[1] / "README.md"
_MAX_MODEL_LEN_TOKENS = 8192


class PacedEngine:
    """Every sequence that runs, and how much of it is left.

    Args:
        connection: To the server.
        text: The token ids of every answer.
        step_s: A step's length; a late one is followed by one that begins at once.
    """

    def __init__(self, connection: Connection[ToEngine], text: list[int], step_s: float):
        self._connection = connection
        self._text = text
        self._step_s = step_s
        self._running: dict[str, Iterator[TokenOutput]] = {}

    def run(self) -> None:
        """Answer until the server is gone."""
        next_s = time.monotonic()
        while True:
            wait_s = next_s - time.monotonic() if self._running else None
            if (wait_s is None or wait_s > 0) and self._connection.poll(wait_s):
                self._listen()
            if self._running and time.monotonic() >= next_s:
                next_s = max(next_s + self._step_s, time.monotonic())
                self._step()

    def _listen(self) -> None:
        while (received := self._connection.try_recv()) is not None:
            match received[0]:
                case Submit() as submit:
                    self._running[submit.request_id] = self._tokens(submit)
                case Abort(request_id=request_id):
                    self._running.pop(request_id, None)
                case WeightsLanded():
                    self._connection.send(
                        EngineReady(
                            max_model_len_tokens=_MAX_MODEL_LEN_TOKENS, kv_cache_blocks=1 << 20, first_token_id=0
                        )
                    )

    def _step(self) -> None:
        outputs = tuple(map(next, self._running.values()))
        for output in outputs:
            if output.finish_reason is not None:
                del self._running[output.request_id]
        self._connection.send(StepOutput(outputs))

    def _tokens(self, submit: Submit) -> Iterator[TokenOutput]:
        last = submit.sampling.max_tokens - 1
        for position, token_id in enumerate(itertools.islice(itertools.cycle(self._text), last + 1)):
            finish_reason = "length" if position == last else None
            cached_tokens = None if position else 0
            yield TokenOutput(submit.request_id, token_id, finish_reason, cached_tokens=cached_tokens)


def main(fd: str, _parent_pid: str, folder: str, step_ms: str) -> None:
    """Run it on an inherited socket."""
    text = Tokenizer.from_file(f"{folder}/tokenizer.json").encode(_TEXT.read_text(), add_special_tokens=False).ids
    connection: Connection[ToEngine] = Connection(socket.socket(fileno=int(fd)), ToEngine)
    try:
        PacedEngine(connection, text, float(step_ms) / 1e3).run()
    except ConnectionClosed:
        return


if __name__ == "__main__":
    main(*sys.argv[1:])
