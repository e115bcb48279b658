"""The engine process seen from the server: what it is bound to, whether it is ready, and its restarts.

Takes messages, gives events. A dead engine is followed by one on the very same arena: nothing is fetched
again. Knows no loader, no HTTP and no state of the server.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from app.child import Child
from app.kept_child import KeptChild
from app.messages import (
    BindArena,
    ConvertedTokenizer,
    ConvertTokenizer,
    DescribedModel,
    DescribeModel,
    EngineFailed,
    EngineReady,
    EngineStats,
    FromEngine,
    RequestFailed,
    StepOutput,
    WeightsLanded,
)
from app.watchdog import Watchdog
from streaming.errors import ErrorReport
from streaming.messages import FellBack, PhaseTimed


class EngineEvents(Protocol):
    """Who wants to know how the engine fares."""

    def phase(self, phase: PhaseTimed) -> None:
        """A phase of the startup has ended."""

    def fell_back(self, fallback: FellBack) -> None:
        """Something was not to be had, and replaced."""

    def converted(self, tokenizer_json: bytes) -> None:
        """The answer to `EngineHost.convert_tokenizer`."""

    def model_described(self, answer: DescribedModel) -> None:
        """The answer to `EngineHost.describe_model`."""

    def engine_ready(self, ready: EngineReady) -> None:
        """Sequences may be submitted through `EngineHost.send`."""

    def engine_output(self, output: StepOutput | RequestFailed) -> None:
        """Tokens, or the end of one sequence."""

    def engine_stats(self, stats: EngineStats) -> None:
        """How full the engine is now."""

    def engine_lost(self, what: str) -> None:
        """The engine died, or was ended because it hung, as `what` says; another follows."""

    def engine_respawned(self) -> None:
        """Another engine is starting."""

    def failed(self, error: ErrorReport) -> None:
        """No engine can serve this model."""

    def broken(self, error: Exception) -> None:
        """Something was raised that nobody expects."""


@dataclass(frozen=True)
class EnginePatience:
    """How long the engine may be silent, in seconds, before it is taken for hung and replaced.

    While it starts, with landed weights or a question to answer; and while it has sequences.
    """

    start_s: float
    step_s: float


class EngineHost:
    """The engine, over as many processes as it takes.

    Args:
        child: The engine, importing torch.
        respawn: Starts another one.
        events: Told of everything that follows.
        has_work: Whether sequences wait for its answers.
        patience: With an engine that owes something.
    """

    def __init__(
        self,
        child: Child,
        respawn: Callable[[], Child],
        events: EngineEvents,
        *,
        has_work: Callable[[], bool],
        patience: EnginePatience,
    ):
        self._events = events
        self._has_work = has_work
        self._patience = patience
        self._is_ready = False
        self._convert: ConvertTokenizer | None = None
        self._describe: DescribeModel | None = None
        self._bind: tuple[BindArena, Sequence[int]] | None = None
        self._landed: tuple[WeightsLanded, Sequence[int]] | None = None
        self._engine = KeptChild(
            child,
            FromEngine,
            respawn=respawn,
            on_message=self._hear,
            on_died=self._died,
            on_replaced=self._repeat,
            on_lost=events.failed,
            on_error=events.broken,
        )
        self._watchdog = Watchdog(self._patience_s, self._silent)

    def convert_tokenizer(self, files: dict[str, bytes]) -> None:
        """Have transformers make a tokenizer.json of `files`."""
        self._convert = ConvertTokenizer(files)
        self._engine.send(self._convert)

    def describe_model(self, message: DescribeModel) -> None:
        """Have transformers say what it wants of a checkpoint."""
        self._describe = message
        self._engine.send(message)

    def bind(self, message: BindArena, fds: Sequence[int]) -> None:
        """Hand over addresses, whose bytes may not have arrived, and the arena, if there is one."""
        self._bind = message, fds
        self._engine.send(message, fds)

    def weights_landed(self, message: WeightsLanded, fds: Sequence[int]) -> None:
        """The bytes have arrived, in the arena or in the shards that `fds` hold."""
        self._landed = message, fds
        self._engine.send(message, fds)

    def send(self, message: msgspec.Struct) -> None:
        """Submit or abort a sequence."""
        self._engine.send(message)

    def end(self) -> None:
        """End the engine; it may still be going when this returns."""
        self._watchdog.close()
        self._engine.end()

    def close(self) -> None:
        """End it, and wait until it is gone."""
        self.end()
        self._engine.close()

    def _patience_s(self) -> float | None:
        if self._is_ready:
            return self._patience.step_s if self._has_work() else None
        # Before that it may have to wait for weights; what it was asked, or was given, it owes an answer to.
        owes = (self._landed, self._convert, self._describe) != (None, None, None)
        return self._patience.start_s if owes else None

    def _silent(self, silence_s: float) -> None:
        what = "no step ended" if self._is_ready else "it said nothing"
        self._engine.kill(f"hung: {what} for {silence_s:g} s")

    def _died(self, what: str) -> None:
        self._is_ready = False
        self._events.engine_lost(what)

    def _hear(self, message: FromEngine, _fds: list[int]) -> None:
        self._watchdog.heard()
        self._receive(message)

    def _receive(self, message: FromEngine) -> None:
        match message:
            case PhaseTimed():
                self._events.phase(message)
            case FellBack():
                self._events.fell_back(message)
            case ConvertedTokenizer(tokenizer_json=tokenizer_json):
                self._convert = None
                self._events.converted(tokenizer_json)
            case DescribedModel():
                self._describe = None
                self._events.model_described(message)
            case EngineReady():
                self._is_ready = True
                self._events.engine_ready(message)
            case StepOutput() | RequestFailed():
                self._events.engine_output(message)
            case EngineStats():
                self._events.engine_stats(message)
            case EngineFailed(error=error):
                self._engine.retire()
                self._events.failed(error)

    def _repeat(self) -> None:
        """Tell a new engine what the dead one had been told."""
        self._events.engine_respawned()
        if self._convert is not None:
            self._engine.send(self._convert)
        if self._describe is not None:
            self._engine.send(self._describe)
        if self._bind is not None:
            message, fds = self._bind
            origin = msgspec.structs.replace(message.origin, generation=self._engine.restarts)
            self._engine.send(msgspec.structs.replace(message, origin=origin), fds)
        if self._landed is not None:
            self._engine.send(*self._landed)
