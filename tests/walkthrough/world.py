"""What the stand-ins of a walkthrough remember: resources in Azure, objects in the cluster, calls.

Knows no program and no command.
"""

from __future__ import annotations

from typing import Any, NamedTuple, NoReturn

Json = dict[str, Any]
# How often whoever waits is told to wait.
_PATIENCE = 2


class Call(NamedTuple):
    """A program that is called: its name, its words, and what it is given where one of them is `-`."""

    program: str
    argv: list[str]
    stdin: str = ""

    def has(self, program: str, *parts: str) -> bool:
        """Whether it is of that program, with all these parts in its command line."""
        return self.program == program and all(part in " ".join(self.argv) for part in parts)


class Refused(Exception):
    """What a program says no with: its exit code, and a line on stderr."""

    def __init__(self, code: int, line: str):
        super().__init__(line)
        self.code = code


class World:
    """Resources in Azure by `kind/name`, objects in the cluster by `Kind/namespace/name`; nothing at first."""

    def __init__(self, log: str = "") -> None:
        # What the server says.
        self.log = log
        self.resources: dict[str, Json] = {}
        self.objects: dict[str, Json] = {}
        # Every text that was applied, as the cluster got it.
        self.applied: list[str] = []
        # What kubectl means where it is not told; at first a cluster that is somebody else's.
        self.current_context = ""
        # What shall never come to pass: feature, job, gpu or health.
        self.stuck = ""
        # How often Azure has no VM for it, by what: cluster or pool.
        self.scarce: dict[str, int] = {}
        self._asked: dict[str, int] = {}

    def comes_to_pass(self, kind: str, which: str) -> bool:
        """Whether this is so by now: not at the first two questions, and never if it is stuck."""
        self._asked[f"{kind}/{which}"] = self._asked.get(f"{kind}/{which}", 0) + 1
        return self.has_come_to_pass(kind, which)

    def has_come_to_pass(self, kind: str, which: str) -> bool:
        """The same, without being a question."""
        return kind != self.stuck and self._asked.get(f"{kind}/{which}", 0) > _PATIENCE

    def begins(self, kind: str, which: str) -> None:
        """From here on it has to come to pass anew."""
        self._asked.pop(f"{kind}/{which}", None)

    def resource(self, kind: str, name: str) -> Json:
        """What Azure has by that name.

        Raises:
            Refused: Nothing; az's exit code for it is 3.
        """
        if (found := self.resources.get(f"{kind}/{name}")) is None:
            raise Refused(3, f"(ResourceNotFound) {kind} {name!r} could not be found")
        return found


def usage(program: str, line: str) -> NoReturn:
    """Refuse as a program does that does not understand its command line."""
    raise Refused(2, f"{program}: {line}")


def split(words: list[str]) -> tuple[list[str], dict[str, str]]:
    """Words that are no flags, and flags with their values: "" for one that has none, a line each for one that is repeated."""
    plain: list[str] = []
    flags: dict[str, str] = {}
    while words:
        word, *words = words
        if not word.startswith("--"):
            plain.append(word)
        elif "=" in word:
            name, _, value = word.partition("=")
            flags[name] = value
        elif words and not words[0].startswith("--"):
            flags[word] = "\n".join([*filter(None, [flags.get(word)]), words.pop(0)])
        else:
            flags[word] = ""
    return plain, flags
