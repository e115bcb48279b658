"""The layers meet: flag > environment > file > default.

Takes argv and the environment, gives a `Command` with frozen settings. Knows no source's form.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from app.settings.device import choose_device
from app.settings.kinds import shown_bytes
from app.settings.model import default_model_name
from app.settings.parser import FORMS, Line, command_name, split
from app.settings.sources import CONFIG_FLAG, CONFIG_VARIABLE, Given, from_environment, from_file, from_flags
from app.settings.tree import ROWS, SECTIONS, Settings, check_served


class Command(msgspec.Struct, frozen=True):
    """What the user asked for: one of `parser.FORMS`, its positional arguments, its settings, its own flags' values.

    `serve_words` is the same command line for `serve`, where the command takes that, but for secrets: `ps` shows it.
    """

    name: str
    arguments: tuple[str, ...]
    settings: Settings
    options: dict[str, Any]
    serve_words: tuple[str, ...]


def parse(argv: Sequence[str], environ: Mapping[str, str]) -> Command:
    """The command that `argv` (without the program's name) asks for. Reads nothing but the --config file.

    Raises:
        UsageError: Something is unknown, of the wrong kind, missing, or not served by this version.
        SystemExit: 0, after --help or --version were written to the standard output.
    """
    name = command_name(argv)
    line = split(name, argv[1:])
    serve_words = _serve_words(line) if FORMS[name].serves else ()
    path = line.flags.pop(CONFIG_FLAG, [environ.get(CONFIG_VARIABLE, "")])[-1]
    settings = _settings(
        (
            from_file(path) if path else {},
            from_environment(environ),
            from_flags(line.flags, line.arguments.get("URI")),
        )
    )
    if FORMS[name].serves:
        check_served(settings)
        device = choose_device(settings.engine.device, environ)
        settings = msgspec.structs.replace(settings, device=device)
    return Command(name, tuple(line.arguments.values()), settings, line.options, serve_words)


def load(argv: Sequence[str], environ: Mapping[str, str]) -> Settings:
    """The settings of `coldstream serve` with these words; raises as `parse` does."""
    return parse(["serve", *argv], environ).settings


def _serve_words(line: Line) -> tuple[str, ...]:
    """The command line again, without the command's own flags and without secrets."""
    secret = {flag for row in ROWS if row.setting.secret for flag in row.flags()}
    words = ["serve", *line.arguments.values()]
    for flag, texts in line.flags.items():
        if flag not in secret:
            words += [f"{flag}={text}" for text in texts]
    return tuple(words)


def _settings(layers: Iterable[Mapping[str, Given]]) -> Settings:
    """The tree from layers of which a later one wins."""
    winners = {path: given for layer in layers for path, given in layer.items()}
    values: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    for given in winners.values():
        values[given.row.section][given.row.name] = given.value()
    if uri := values["model"].get("uri"):
        values["model"].setdefault("served_model_names", (default_model_name(uri),))
    tree: dict[str, Any] = {name: section(**values[name]) for name, section in SECTIONS.items()}
    settings = Settings(**tree)
    notices = (*(given.notice() for given in winners.values()), _memory_notice(settings))
    return msgspec.structs.replace(settings, notices=tuple(line for line in notices if line))


def _memory_notice(settings: Settings) -> str | None:
    """A line to log if the memory limit reduced the pipeline; raises UsageError if nothing fits."""
    storage, fitted = settings.storage, settings.storage.pipeline_options()
    if (fitted.lanes, fitted.chunk_bytes) == (storage.lanes, storage.chunk_bytes):
        return None
    return (
        f"storage.memory_limit_bytes={storage.memory_limit_bytes} reduces {storage.lanes} lanes with chunks of "
        f"{shown_bytes(storage.chunk_bytes)} to {fitted.lanes} with {shown_bytes(fitted.chunk_bytes)}"
    )
