"""When the server will be ready: what is left to land, and what the engine still has to do with it.

Takes the load's progress and the engine's phases, gives seconds. The first engine's times are guessed until it tells
them; another one on the same weights takes as long as the one before. Pure arithmetic on CLOCK_BOOTTIME.
"""

from __future__ import annotations

from streaming.progress import Progress

# Of an engine that has not told: torch's import, and a pass over real weights.
_USUAL_PREPARATION_S = 3.0
_USUAL_FIRST_PASS_S = 0.5
# Never sooner than this while something is left to do.
_LEAST_S = 0.1

_PREPARATIONS = frozenset(("engine.cache", "engine.warmup"))
# The one on whatever bytes were there takes as long as the one over the real weights.
_PASSES = frozenset(("engine.warmup", "engine.first_pass"))


class Eta:
    """One server's.

    Args:
        engine_start_s: When the first engine was started.
    """

    def __init__(self, engine_start_s: float):
        self._preparation_s = _USUAL_PREPARATION_S
        self._first_pass_s = _USUAL_FIRST_PASS_S
        self._landed_s: float | None = None
        self.engine_started(engine_start_s)

    def engine_started(self, now_s: float) -> None:
        """The first engine, or another one in its place."""
        self._engine_start_s = now_s
        self._is_prepared = False

    def engine_phase(self, name: str, start_s: float, end_s: float) -> None:
        """Learn how long the engine takes."""
        if name in _PREPARATIONS:
            self._is_prepared = True
            self._prepared_s = end_s
            self._preparation_s = end_s - self._engine_start_s
        if name in _PASSES:
            self._first_pass_s = end_s - start_s

    def landed(self, now_s: float) -> None:
        """The last byte is at its address."""
        self._landed_s = now_s

    def until_ready_s(self, progress: Progress, now_s: float) -> float | None:
        """Seconds until the server is ready; None while nothing moves."""
        if self._landed_s is None:
            landing_s = progress.eta_s(now_s)
            return None if landing_s is None else max(landing_s, self._preparing_s(now_s)) + self._first_pass_s
        if not self._is_prepared:
            return max(self._preparing_s(now_s) + self._first_pass_s, _LEAST_S)
        began_s = max(self._landed_s, self._prepared_s)
        return max(began_s + self._first_pass_s - now_s, _LEAST_S)

    def _preparing_s(self, now_s: float) -> float:
        if self._is_prepared:
            return 0.0
        return max(0.0, self._engine_start_s + self._preparation_s - now_s)
