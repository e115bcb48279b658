"""Reads what was given: flags, variables, the YAML file and vLLM's --model-loader-extra-config.

Takes each source's raw form, gives one `Layer` of named texts a source. Knows names and origins, but
neither precedence nor what a setting is for. YAML is imported only when there is a file.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from app.errors import UsageError
from app.settings.kinds import Kind
from app.settings.table import ACTIVE, Row, variable_of
from app.settings.tree import ROWS, SECTIONS

CONFIG_FLAG = "--config"
CONFIG_VARIABLE = variable_of(CONFIG_FLAG)
LOADER_FLAG = "--model-loader-extra-config"
_QUOTED_LENGTH = 80


class Given(msgspec.Struct, frozen=True):
    """One setting as one source gave it: its texts (one, or one for each of many) and where they stood."""

    row: Row
    kind: Kind
    texts: tuple[str, ...]
    origin: str

    def value(self) -> Any:
        """The typed value.

        Raises:
            UsageError: The text is not of the kind; it is quoted only if it cannot be a secret.
        """
        try:
            values = tuple(self.kind.read(text.strip()) for text in self.texts)
        except ValueError as error:
            raise mistake(self.row, self.origin, self.kind, ", ".join(self.texts)) from error
        return values if self.kind.many else values[0]

    def notice(self) -> str | None:
        """A line to log if giving this changes nothing."""
        status = self.row.setting.status
        return None if status == ACTIVE else f"{self.row.path}={_plain(self.value())} (from {self.origin}) is {status}"


Layer = dict[str, Given]
_Names = Mapping[str, tuple[Row, Kind]]


def names_of(kinds: Callable[[Row], Mapping[str, Kind]], rows: Iterable[Row] = ROWS) -> dict[str, tuple[Row, Kind]]:
    """Every name that `kinds` gives for `rows`, with its setting and what it accepts there."""
    return {name: (row, kind) for row in rows for name, kind in kinds(row).items()}


def put(layer: Layer, given: Given) -> None:
    """Add to a layer, in which nothing may be said twice in two ways.

    Raises:
        UsageError: Another name of the same setting says something else.
    """
    earlier = layer.setdefault(given.row.path, given)
    if earlier.value() != given.value():
        raise UsageError(f"{given.row.path} is given twice: by {earlier.origin} and by {given.origin}; keep one")


def from_flags(texts_by_flag: Mapping[str, list[str]], uri: str | None) -> Layer:
    """The layer of the command line, whose argument URI is another name of --model.

    Raises:
        UsageError: Two flags contradict each other, or vLLM's JSON is wrong.
    """
    names = names_of(Row.flags)
    layer: Layer = {}
    if uri is not None:
        put(layer, Given(*names["--model"], (uri,), "argument URI"))
    for flag, texts in texts_by_flag.items():
        if flag == LOADER_FLAG:
            _put_loader_config(layer, texts[-1])
        else:
            put(layer, Given(*names[flag], _listed(names[flag][1], texts), f"flag {flag}"))
    return layer


def from_environment(environ: Mapping[str, str]) -> Layer:
    """The layer of the environment. An empty variable is an unset one.

    Raises:
        UsageError: A variable COLDSTREAM_... is unknown.
    """
    known = names_of(Row.variables)
    links = _service_links(environ)
    given = {name: text for name, text in environ.items() if text and name not in links}
    for name in given:
        if name.startswith("COLDSTREAM_") and name not in known and name != CONFIG_VARIABLE:
            raise unknown("variable", name, known, "`coldstream serve --help` lists them")
    layer: Layer = {}
    for name, (row, kind) in known.items():
        if name in given:
            texts = _listed(kind, [given[name]])
            if kind.many and len(texts) == 1:
                texts = tuple(texts[0].split(","))
            layer.setdefault(row.path, Given(row, kind, texts, f"variable {name}"))
    return layer


def _listed(kind: Kind, texts: list[str]) -> tuple[str, ...]:
    """The texts, or those that the only one lists as JSON; what is no such list is for the kind to refuse."""
    if kind.json_list and len(texts) == 1 and texts[0].startswith("["):
        with contextlib.suppress(msgspec.DecodeError):
            return tuple(msgspec.json.decode(texts[0], type=list[str]))
    return tuple(texts)


def _service_links(environ: Mapping[str, str]) -> set[str]:
    """What Kubernetes sets for a Service named coldstream..., such as COLDSTREAM_PORT=tcp://10.0.0.1:80."""
    hosts = [name for name in environ if name.startswith("COLDSTREAM") and name.endswith("_SERVICE_HOST")]
    services = "|".join(re.escape(host.removesuffix("_SERVICE_HOST")) for host in hosts)
    link = re.compile(rf"({services})_(SERVICE_(HOST|PORT\w*)|PORT_\d\w*|PORT(?P<url>))")
    matches = ((name, link.fullmatch(name)) for name in environ) if hosts else ()
    return {name for name, match in matches if match and (match["url"] is None or "://" in environ[name])}


def from_file(path: str) -> Layer:
    """The layer of a YAML file.

    Raises:
        UsageError: It cannot be read or parsed, or a section, key or type is wrong.
    """
    from app.settings.yaml_file import parse_yaml

    layer: Layer = {}
    origin = f"file {path}"
    for section, mapping in _mapping(parse_yaml(path), origin).items():
        if section not in SECTIONS:
            raise unknown("section", section, SECTIONS, f"accepted in {origin}: {', '.join(SECTIONS)}")
        names = names_of(_yaml_paths, (row for row in ROWS if row.section == section))
        for key, value in _mapping(mapping, f"{origin}, {section}").items():
            _refuse_secret(f"{section}.{key}", origin)
            _put_native(layer, names, f"{section}.{key}", value, origin)
    return layer


def _yaml_paths(row: Row) -> dict[str, Kind]:
    return {f"{row.section}.{key}": kind for key, kind in row.keys().items()}


def _refuse_secret(path: str, origin: str) -> None:
    row = next((row for row in ROWS if row.setting.secret and row.path == path), None)
    if row is not None:
        raise UsageError(f"{path} (from {origin}) is a secret: set {' or '.join(row.variables())} instead")


def _put_loader_config(layer: Layer, text: str) -> None:
    try:
        config = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise UsageError(f"flag {LOADER_FLAG} is not JSON: {error}") from error
    names = names_of(Row.loader_keys)
    for key, value in _mapping(config, f"flag {LOADER_FLAG}").items():
        _put_native(layer, names, key, value, f"flag {LOADER_FLAG}")


def _put_native(layer: Layer, names: _Names, name: str, value: Any, origin: str) -> None:
    """Add a value that YAML or JSON has typed; null is unset."""
    if name not in names:
        raise unknown("key", name, names, f"accepted in {origin}: {', '.join(names)}")
    if value is None:
        return
    row, kind = names[name]
    where = origin if name == row.path else f"{origin}, {name}"
    values = value if isinstance(value, list) and kind.many else [value]
    if not values or not all(type(item) in kind.native_types for item in values):
        raise mistake(row, where, kind, _plain(value))
    put(layer, Given(row, kind, tuple(map(_plain, values)), where))


def _mapping(value: Any, origin: str) -> dict[Any, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UsageError(f"{origin}: expected keys with values, got {type(value).__name__}")
    return value


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def mistake(row: Row, origin: str, kind: Kind, text: str) -> UsageError:
    """A value that is not of its kind."""
    got = f", got {text[:_QUOTED_LENGTH]!r}" if kind.quotable else ""
    return UsageError(f"{row.path} (from {origin}): expected {kind.accepts}{got}")


def unknown(what: str, name: object, names: Iterable[str], accepted: str) -> UsageError:
    """A name that nobody knows, with the nearest that somebody does."""
    import difflib

    near = difflib.get_close_matches(str(name), list(names), n=1)
    suggestion = f"did you mean {near[0]}? " if near else ""
    return UsageError(f"unknown {what} {name!r}: {suggestion}{accepted}")
