"""Measurements in a file that outlives the run: written anew after every one, gone on with by the next run.

Takes measurements, gives what is missing. Knows no contender but by name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any


class ParametersDiffer(Exception):
    """The file holds measurements of something else; one line."""


class Results:
    """The measurements of one set of parameters.

    Raises:
        ParametersDiffer: The file is there and was made with others.
    """

    def __init__(self, path: Path, parameters: dict[str, Any]):
        self._path = path
        self.parameters = parameters
        self.measurements: list[dict[str, Any]] = []
        if path.is_file():
            content = json.loads(path.read_text())
            if content["parameters"] != parameters:
                raise ParametersDiffer(f"{path} was made with {content['parameters']}: name another file")
            self.measurements = content["measurements"]

    def add(self, contender: str, round_number: int, measurement: dict[str, Any]) -> None:
        """Keep one, on disk before this returns."""
        self.measurements.append({"contender": contender, "round": round_number, **measurement})
        partial = self._path.with_name(f"{self._path.name}.partial")
        partial.write_text(json.dumps({"parameters": self.parameters, "measurements": self.measurements}, indent=1))
        partial.replace(self._path)

    def of(self, contender: str) -> list[dict[str, Any]]:
        """One contender's measurements, in the order in which they were made."""
        return [measurement for measurement in self.measurements if measurement["contender"] == contender]

    def missing(self, rounds: dict[str, int]) -> Iterator[tuple[int, str]]:
        """What is left to do: (round, contender), round by round, every other round backwards.

        Args:
            rounds: How many rounds each contender runs, in the order of the first round.
        """
        done = {(measurement["round"], measurement["contender"]) for measurement in self.measurements}
        for number in range(max(rounds.values(), default=0)):
            for contender in _alternated(list(rounds), number):
                if number < rounds[contender] and (number, contender) not in done:
                    yield number, contender


def _alternated(names: Sequence[str], number: int) -> Sequence[str]:
    return names if number % 2 == 0 else names[::-1]
