"""The engine's one loop: hear, schedule, compute, tell.

Takes Submit and Abort from an inbox, sends one StepOutput per step. A request that cannot be served is refused
before it enters a step; a step that fails ends the sequences in it and nothing else. Knows neither weights nor
attention.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import NoReturn, Protocol

from app.engine.sampling.checks import UnusableSampling, check_sampling
from app.engine.sampling.sampler import Drawn
from app.engine.scheduler import NeverFits, Scheduler, Span
from app.engine.sequence import Sequence, new_sequence
from app.messages import Abort, FromEngine, RequestFailed, StepOutput, Submit, ToEngine, TokenLogprobs, TokenOutput

logger = logging.getLogger(__name__)


class Runner(Protocol):
    """What computes a step (`app.engine.model_runner.ModelRunner`)."""

    def run(self, spans: list[Span]) -> list[Drawn | None]:
        """A token for each span that samples; None where none could be drawn."""


class Loop:
    """Continuous batching over one runner.

    Args:
        receive: Gives the messages that have arrived; blocks for one if its argument says so.
        send: Tells the server.
        max_model_len_tokens: The longest sequence, prompt and answer.
        vocab_size: Token ids are below this.
    """

    def __init__(
        self,
        *,
        receive: Callable[[bool], Iterable[ToEngine]],
        send: Callable[[FromEngine], None],
        scheduler: Scheduler,
        runner: Runner,
        max_model_len_tokens: int,
        vocab_size: int,
    ):
        self._receive = receive
        self._send = send
        self._scheduler = scheduler
        self._runner = runner
        self._max_model_len_tokens = max_model_len_tokens
        self._vocab_size = vocab_size

    def run(self) -> NoReturn:
        """Serve for ever; ends with what `receive` or `send` raises when the server is gone."""
        while True:
            for message in self._receive(not self._scheduler.has_work):
                self._handle(message)
            if self._scheduler.has_work:
                self._step()

    def _handle(self, message: ToEngine) -> None:
        if isinstance(message, Submit):
            self._submit(message)
        elif isinstance(message, Abort):
            self._scheduler.abort(message.request_id)
        else:
            logger.warning("ignored %s: the engine is serving already", type(message).__name__)

    def _submit(self, submit: Submit) -> None:
        try:
            self._check(submit)
            self._scheduler.submit(new_sequence(submit))
        except (NeverFits, UnusableSampling) as error:
            self._send(RequestFailed(submit.request_id, str(error)))
        except Exception as error:
            logger.exception("a request could not be taken")
            self._send(RequestFailed(submit.request_id, f"the engine failed on this request: {type(error).__name__}"))

    def _check(self, submit: Submit) -> None:
        """Refuse what would fail inside a step, and others with it."""
        prompt = submit.prompt_token_ids
        if not prompt:
            raise NeverFits("the prompt is empty: there is nothing to continue")
        if min(prompt) < 0 or max(prompt) >= self._vocab_size:
            raise NeverFits(f"a token id of the prompt is outside the vocabulary of {self._vocab_size}")
        if len(prompt) + submit.sampling.max_tokens > self._max_model_len_tokens:
            raise NeverFits(
                f"prompt and max_tokens are {len(prompt) + submit.sampling.max_tokens} tokens "
                f"but the model takes {self._max_model_len_tokens}: ask for fewer"
            )
        check_sampling(submit.sampling, self._vocab_size)

    def _step(self) -> None:
        spans = self._scheduler.schedule()
        try:
            drawn = self._runner.run(spans)
        except Exception as error:
            logger.exception("a step of %d sequences failed", len(spans))
            for span in spans:
                self._fail(span.sequence, f"the engine failed on this step: {type(error).__name__}")
            return
        self._scheduler.advance(spans)
        sampled = [span for span in spans if span.samples]
        outputs = [self._take(span.sequence, token) for span, token in zip(sampled, drawn, strict=True)]
        tokens = tuple(output for output in outputs if output is not None)
        if tokens:
            self._send(StepOutput(tokens))

    def _take(self, sequence: Sequence, drawn: Drawn | None) -> TokenOutput | None:
        if drawn is None:
            self._fail(
                sequence, "no token can be drawn: the model's logits are not finite, or every token is forbidden"
            )
            return None
        prompt_logprobs = _prompt_logprobs(sequence)
        cached_tokens = None if sequence.generated_tokens else sequence.cached_tokens
        finish_reason = sequence.append(drawn.token_id)
        if finish_reason is not None:
            self._scheduler.finish(sequence)
        return TokenOutput(
            sequence.request_id, drawn.token_id, finish_reason, drawn.logprobs, prompt_logprobs, cached_tokens
        )

    def _fail(self, sequence: Sequence, message: str) -> None:
        self._scheduler.discard(sequence)
        self._send(RequestFailed(sequence.request_id, message))


def _prompt_logprobs(sequence: Sequence) -> tuple[TokenLogprobs, ...] | None:
    """What goes with the first token, where it was asked for."""
    if sequence.sampling.prompt_logprobs is None or sequence.generated_tokens:
        return None
    return tuple(sequence.prompt_logprobs)
