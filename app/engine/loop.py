"""The engine's one loop: hear, schedule, launch, tell what the step before has drawn.

Takes Submit and Abort from an inbox, sends one StepOutput per step, which may be empty. With lookahead a step is launched before the host
has read the tokens of the one before it, so that the device need not wait for the host; at most one step is in flight
then. A request that cannot be served is refused before it enters a step; a step that fails ends the sequences in it and
nothing else. Knows neither weights nor attention.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NoReturn, Protocol

from app.engine.reporting import Reporting
from app.engine.sampling.checks import UnusableSampling, check_sampling
from app.engine.sampling.sampler import Drawn
from app.engine.scheduler import NeverFits, Scheduler, Span
from app.engine.sequence import Sequence, new_sequence
from app.messages import Abort, FromEngine, RequestFailed, StepOutput, Submit, ToEngine, TokenLogprobs, TokenOutput

logger = logging.getLogger(__name__)


class Flight(Protocol):
    """A step that was launched."""

    def collect(self) -> list[Drawn | None]:
        """Wait for it; a token for each span that samples, None where none could be drawn."""


class Runner(Protocol):
    """What computes a step (`app.engine.model_runner.ModelRunner`)."""

    def launch(self, spans: list[Span]) -> Flight:
        """Begin the step; unknown tokens in it are what the launch before has drawn."""

    def check(self) -> None:
        """Raise if nothing can be computed any more, whatever the step."""


@dataclass(frozen=True)
class _Step:
    """What was launched; `sampled` are the spans for which a token is drawn."""

    spans: list[Span]
    sampled: list[Span]
    flight: Flight


class _NeverLaunched:
    """The flight of a step whose launch raised."""

    def __init__(self, error: Exception):
        self._error = error

    def collect(self) -> NoReturn:
        raise self._error


class Loop:
    """Continuous batching over one runner.

    Args:
        receive: Gives the messages that have arrived; blocks for one if its argument says so.
        send: Tells the server.
        max_model_len_tokens: The longest sequence, prompt and answer.
        vocab_size: Token ids are below this.
        lookahead: Whether to launch the next step before this one was read; asked at every step.
        idle: Does a piece of work that can wait until there is nothing else; returns whether there is more of it.
        reporting: Tells the server how full the engine is.
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
        lookahead: Callable[[], bool] = lambda: False,
        idle: Callable[[], bool] = lambda: False,
        reporting: Reporting | None = None,
    ):
        self._receive = receive
        self._send = send
        self._scheduler = scheduler
        self._runner = runner
        self._max_model_len_tokens = max_model_len_tokens
        self._vocab_size = vocab_size
        self._lookahead = lookahead
        self._idle = idle
        self._reporting = reporting
        self._in_flight: _Step | None = None

    def run(self) -> NoReturn:
        """Serve for ever; ends with what `receive` or `send` raises when the server is gone, or `Runner.check`."""
        while True:
            self._hear()
            self._step()
            if self._reporting is not None:
                self._reporting.tick()

    def _hear(self) -> None:
        """Take what has arrived; with nothing to compute and nothing to do while idle, wait for something."""
        heard = False
        for message in self._receive(False):
            self._handle(message)
            heard = True
        busy = heard or self._scheduler.has_work or self._in_flight is not None
        if not busy and not self._idle():
            if self._reporting is not None:
                self._reporting.tell()
            for message in self._receive(True):
                self._handle(message)

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
        """Launch the next step, if there is any, then tell what the one in flight has drawn."""
        step = self._launch()
        if self._in_flight is not None:
            before, self._in_flight = self._in_flight, None
            self._collect(before)
        if step is None:
            return
        self._scheduler.advance(step.spans)
        if self._may_stay_in_flight(step):
            self._in_flight = step
        else:
            self._collect(step)

    def _launch(self) -> _Step | None:
        spans = self._scheduler.schedule()
        if not spans:
            return None
        sampled = [span for span in spans if span.samples]
        try:
            return _Step(spans, sampled, self._runner.launch(spans))
        except Exception as error:  # noqa: BLE001 - it is raised again where the step is collected
            # Its sequences end only after the step in flight was told: that may be the last one of some.
            return _Step(spans, sampled, _NeverLaunched(error))

    def _may_stay_in_flight(self, step: _Step) -> bool:
        """Whether the next step can be launched without what this one gives."""
        if not self._lookahead() or isinstance(step.flight, _NeverLaunched):
            return False
        return not any(span.sequence.must_be_read for span in step.spans)

    def _collect(self, step: _Step) -> None:
        """Tell what a step has drawn; of sequences that have ended since its launch nothing is told."""
        try:
            drawn = step.flight.collect()
        except Exception as error:
            logger.exception("a step of %d sequences failed", len(step.spans))
            for span in step.spans:
                self._fail(span.sequence, f"the engine failed on this step: {type(error).__name__}")
            self._runner.check()  # another engine can go on where this process cannot
            return
        self._scheduler.publish(step.spans)
        outputs = [self._take(span.sequence, token) for span, token in zip(step.sampled, drawn, strict=True)]
        tokens = tuple(output for output in outputs if output is not None)
        # Also where none was due: a long prompt takes many steps, and who is silent for long is taken for hung.
        if tokens or not step.sampled:
            self._send(StepOutput(tokens))

    def _take(self, sequence: Sequence, drawn: Drawn | None) -> TokenOutput | None:
        if sequence.has_ended:
            return None
        if drawn is None:
            self._fail(
                sequence, "no token can be drawn: the model's logits are not finite, or every token is forbidden"
            )
            return None
        finish_reason = sequence.learn_token(drawn.token_id)
        is_first = sequence.generated_tokens == 1
        if finish_reason is not None:
            self._scheduler.finish(sequence)
        return TokenOutput(
            sequence.request_id,
            drawn.token_id,
            finish_reason,
            drawn.logprobs,
            _prompt_logprobs(sequence) if is_first else None,
            sequence.cached_tokens if is_first else None,
            sequence.scheduled_s if is_first else None,
        )

    def _fail(self, sequence: Sequence, message: str) -> None:
        if not sequence.has_ended:
            self._scheduler.discard(sequence)
            self._send(RequestFailed(sequence.request_id, message))


def _prompt_logprobs(sequence: Sequence) -> tuple[TokenLogprobs, ...] | None:
    """What goes with the first token, where it was asked for."""
    return None if sequence.sampling.prompt_logprobs is None else tuple(sequence.prompt_logprobs)
