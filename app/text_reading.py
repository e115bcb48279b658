"""A checkpoint's text files, read in a thread: a large tokenizer takes a second, and probes must not wait for it.

Takes files, gives the text model and the tokens of the warm-up prompt. Knows no process and no state of the server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from streaming.clock import boottime_s
from streaming.errors import ErrorReport, StreamingError, report

if TYPE_CHECKING:
    from app.text.text_model import TextModel


class TextReading:
    """At most one at a time.

    Args:
        warmup_prompt: Encoded by the tokenizer that was read.
        on_read: Called with the text model, the prompt's tokens, and when the reading began.
        on_failed: Called with the reason when the files cannot be read.
        on_error: Called with what nobody expects.
    """

    def __init__(
        self,
        warmup_prompt: str,
        *,
        on_read: Callable[[TextModel, tuple[int, ...], float], None],
        on_failed: Callable[[ErrorReport], None],
        on_error: Callable[[Exception], None],
    ):
        self._warmup_prompt = warmup_prompt
        self._on_read = on_read
        self._on_failed = on_failed
        self._on_error = on_error
        self._task: asyncio.Task[None] | None = None

    def start(self, files: Mapping[str, bytes]) -> None:
        """Read; a reading of the same checkpoint that is under way is forgotten."""
        self.close()
        self._task = asyncio.create_task(self._run(dict(files)))

    def close(self) -> None:
        """Tell nobody of what is still being read."""
        if self._task is not None:
            self._task.cancel()

    async def _run(self, files: dict[str, bytes]) -> None:
        start_s = boottime_s()
        try:
            text, token_ids = await asyncio.to_thread(_read, files, self._warmup_prompt)
            self._on_read(text, token_ids, start_s)
        except StreamingError as error:
            self._on_failed(report(error))
        except Exception as error:  # noqa: BLE001 - nobody awaits this task
            self._on_error(error)


def _read(files: dict[str, bytes], warmup_prompt: str) -> tuple[TextModel, tuple[int, ...]]:
    """Its imports wait until the children are at work."""
    from app.text.text_model import TextModel

    text = TextModel.from_files(files)
    return text, text.encode(warmup_prompt, True)
