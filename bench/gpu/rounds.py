"""Round after round of cold starts within a budget of time. Takes contenders and results; knows no report."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping

from bench.gpu import gpu
from bench.gpu.contenders import Contender
from bench.gpu.processes import ContenderFailed
from bench.gpu.results import Results

_PAUSE_S = 1.0
# What a start that was never seen is taken to need, teardown and preparation included.
_UNKNOWN_START_S = 60.0
# What one that another run measured needs beside what it measured.
_AROUND_A_START_S = 15.0


class Budget:
    """Seconds in which this run may start measurements; earlier runs' results say how long they take."""

    def __init__(self, seconds: float, results: Results):
        self._end_s = time.monotonic() + seconds
        self._longest_s: dict[str, float] = {}
        for measurement in results.measurements:
            self.took(measurement["contender"], measurement["seconds"] + _AROUND_A_START_S)

    def allows(self, contender: str) -> bool:
        """Whether another start of this contender will end in time, going by the longest one seen."""
        return time.monotonic() + self._longest_s.get(contender, _UNKNOWN_START_S) <= self._end_s

    def took(self, contender: str, seconds: float) -> None:
        """Remember how long a start took, from the wait before it to its end."""
        self._longest_s[contender] = max(seconds, self._longest_s.get(contender, 0.0))


class Runner:
    """Starts contenders one at a time, each on a machine that is quiet again.

    Args:
        contenders: Everyone, by name.
        baseline_mib: The GPU's memory in use before anything started; None without a GPU.
    """

    def __init__(
        self, contenders: Mapping[str, Contender], results: Results, budget: Budget, baseline_mib: float | None
    ):
        self._contenders = contenders
        self._results = results
        self._budget = budget
        self._baseline_mib = baseline_mib
        self.failures: dict[str, str] = {}

    def warm_up(self, names: Collection[str]) -> None:
        """One start each that is not recorded: libraries, bytecode and kernels come into the page cache."""
        for name in names:
            self._start(name, None)

    def run(self, rounds: dict[str, int]) -> bool:
        """Make what is missing; False if the budget ended first. One that failed is not started again."""
        for number, name in list(self._results.missing(rounds)):
            if name in self.failures:
                continue
            if not self._budget.allows(name):
                print(f"the budget is spent before round {number} of {name}", flush=True)
                return False
            self._start(name, number)
        return True

    def _start(self, name: str, number: int | None) -> None:
        start_s = time.monotonic()
        if self._baseline_mib is not None:
            gpu.wait_until_free(self._baseline_mib)
        time.sleep(_PAUSE_S)
        try:
            measurement = self._contenders[name].run()
        except ContenderFailed as error:
            self.failures[name] = str(error)
            print(f"FAILED {name}: {error}", flush=True)
            return
        self._budget.took(name, time.monotonic() - start_s)
        label = "warm-up" if number is None else f"round {number}"
        print(f"{label}: {name}: {measurement['seconds']:.2f} s, token {measurement.get('token_id')}", flush=True)
        if number is not None:
            self._results.add(name, number, measurement)
