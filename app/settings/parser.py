"""Splits a command line with argparse, and draws --help; every flag comes from the table.

Takes words, gives the texts of arguments and flags. Knows no value: all stay text.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NoReturn

import msgspec

from app.errors import UsageError
from app.settings import bench, preflight, push, verify
from app.settings.kinds import Kind
from app.settings.sources import CONFIG_FLAG, CONFIG_VARIABLE, LOADER_FLAG, names_of, unknown
from app.settings.table import Row
from app.settings.tree import ROWS, SECTIONS
from app.settings.wording import flag_help, flagless_help

_HELP_COLUMNS = 110


class Form(msgspec.Struct, frozen=True):
    """What a command looks like: what it does, its arguments, the sections whose flags it takes, flags of its own.

    `help` may go on after its first line.
    """

    help: str
    arguments: tuple[str, ...]
    sections: tuple[str, ...]
    options: dict[str, bench.Option] = {}

    @property
    def serves(self) -> bool:
        """Whether it takes the command line of `serve`."""
        return "model" in self.sections


_SOURCE_SECTIONS = ("storage", "observability")
FORMS = {
    "serve": Form("stream a model's weights and serve it over the OpenAI API", ("URI",), tuple(SECTIONS)),
    "push": Form(push.HELP, ("SRC", "URI"), _SOURCE_SECTIONS, push.OPTIONS),
    "inspect": Form("show what a checkpoint holds, from its headers alone", ("URI",), _SOURCE_SECTIONS),
    "verify": Form(verify.HELP, ("URI",), _SOURCE_SECTIONS, verify.OPTIONS),
    "bench": Form(bench.HELP, ("URI",), tuple(SECTIONS), bench.OPTIONS),
    "preflight": Form(preflight.HELP, ("URI",), tuple(SECTIONS), preflight.OPTIONS),
}


class Line(msgspec.Struct, frozen=True):
    """A command line, split: arguments by name, in order, texts by flag, and values of the command's own flags."""

    arguments: dict[str, str]
    flags: dict[str, list[str]]
    options: dict[str, Any]


class _Parser(argparse.ArgumentParser):
    """argparse, but a mistake is a `UsageError` and flags are never abbreviated."""

    def __init__(self, **options: Any):
        # Without a width, argparse imports shutil for the terminal's: 4 ms of every cold start.
        formatter = partial(argparse.RawDescriptionHelpFormatter, width=_HELP_COLUMNS)
        super().__init__(allow_abbrev=False, formatter_class=formatter, **options)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {message} (see {self.prog} --help)")


def split(name: str, words: Sequence[str]) -> Line:
    """The words of command `name`, as arguments and flags.

    Raises:
        UsageError: A flag is unknown or lacks its value, or the number of arguments is wrong.
        SystemExit: 0, after --help.
    """
    form = FORMS[name]
    parser = _command_parser(name, form)
    switches = _switches(form)
    known, extra = parser.parse_known_args(_with_values(words, switches))
    if stray := next((word for word in extra if word.startswith("-")), None):
        # A value, or a key that begins with a dash, is not repeated: it may be a secret.
        flag = stray.partition("=")[0] if stray.startswith("--") else stray[:2]
        flags = names_of(Row.flags, _rows(form.sections))
        raise unknown("flag", flag, [CONFIG_FLAG, *flags, *form.options], f"see {parser.prog} --help")
    if extra:  # not repeated: a stray word may be half of a secret
        near = (f"; {flag} takes {switches[flag].accepts}" for flag in words if flag in switches)
        parser.error(f"too many arguments: expected {' '.join(form.arguments)}{next(near, '')}")
    flags_given: dict[str, Any] = vars(known)
    arguments = {key: flags_given.pop(key) for key in form.arguments}
    options = {flag: _value(flag, option, flags_given.pop(flag, None)) for flag, option in form.options.items()}
    return Line({key: word for key, word in arguments.items() if word is not None}, flags_given, options)


def _switches(form: Form) -> dict[str, Kind]:
    """The flags that may stand alone."""
    flags = {flag: kind for row in _rows(form.sections) for flag, kind in row.flags().items()}
    flags |= {flag: option.kind for flag, option in form.options.items()}
    return {flag: kind for flag, kind in flags.items() if kind.alone}


def _with_values(words: Sequence[str], switches: Mapping[str, Kind]) -> list[str]:
    """The words, each flag that may stand alone with its value, which is the next word only where that is one."""
    said: list[str] = []
    rest = list(words)
    while rest and rest[0] != "--":
        word = rest.pop(0)
        if word in switches:
            kind = switches[word]
            word += f"={rest.pop(0) if rest and kind.reads(rest[0]) else kind.alone}"
        said.append(word)
    return said + rest


def _value(flag: str, option: bench.Option, texts: list[str] | None) -> Any:
    if texts is None:
        return option.default
    try:
        return option.kind.read(texts[-1])
    except ValueError as error:
        raise UsageError(f"flag {flag}: expected {option.kind.accepts}, got {texts[-1]!r}") from error


def command_name(words: Sequence[str]) -> str:
    """The first word, which must be a command.

    Raises:
        UsageError: It is none.
        SystemExit: 0, after --help or --version.
    """
    first = words[0] if words else ""
    if first == "--version":
        from importlib.metadata import version

        print(f"coldstream {version('coldstream')}")
        raise SystemExit(0)
    if first in {"-h", "--help"}:
        _overview().print_help()
        raise SystemExit(0)
    if not first:
        raise UsageError(f"no command: expected one of {', '.join(FORMS)}; see coldstream --help")
    if first not in FORMS:
        raise unknown("command", first, FORMS, f"expected one of {', '.join(FORMS)}; see coldstream --help")
    return first


def _overview() -> _Parser:
    lines = (
        f"  {' '.join((name, *form.arguments)):<16} {form.help.partition(chr(10))[0]}" for name, form in FORMS.items()
    )
    commands = "\n".join(("commands:", *lines, "", "`coldstream COMMAND --help` lists its flags and variables."))
    parser = _Parser(prog="coldstream", usage="coldstream COMMAND ...", description=commands)
    parser.add_argument("--version", action="store_true", help="show the version and exit")
    return parser


def _command_parser(name: str, form: Form) -> _Parser:
    usage = f"coldstream {name} {' '.join(form.arguments)} [FLAGS]"
    parser = _Parser(prog=f"coldstream {name}", usage=usage, description=form.help)
    for argument in form.arguments:
        # A model's URI may come from a flag, a variable or the file instead.
        parser.add_argument(argument, nargs="?" if form.serves else None)
    for flag, option in form.options.items():
        default = ",".join(option.default) if isinstance(option.default, tuple) else option.default
        default = "none" if default == "" else default
        _add(parser, flag, option.kind.metavar, f"{option.help} Expects {option.kind.accepts}; default: {default}.")
    _add(parser, CONFIG_FLAG, "FILE", f"YAML file with the sections below. [{CONFIG_VARIABLE}]")
    if form.serves:
        _add(parser, LOADER_FLAG, "JSON", "vLLM's form of --concurrency and --memory-limit.")
    for section in form.sections:
        rows = _rows((section,))
        group = parser.add_argument_group(section, flagless_help(rows))
        for row in rows:
            for flag, kind in row.flags().items():
                _add(group, flag, kind.metavar, flag_help(row, kind), many=kind.many)
    return parser


def _add(group: argparse._ActionsContainer, flag: str, metavar: str, text: str, *, many: bool = False) -> None:
    group.add_argument(
        flag,
        dest=flag,
        metavar=metavar,
        help=text.replace("%", "%%"),
        action="extend" if many else "store",
        nargs="+" if many else 1,
        default=argparse.SUPPRESS,
    )


def _rows(sections: Sequence[str]) -> list[Row]:
    return [row for row in ROWS if row.section in sections]
