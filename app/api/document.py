"""The table of parameters in docs/api.md, made from the wire types: `python -m app.api.document docs/api.md` writes it.

Takes the types and a document, gives the document with the table between its marks. Knows no request.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from pydantic.fields import FieldInfo

from app.api.chat_schemas import ChatCompletionRequest
from app.api.fields import Refused, Wire
from app.api.schemas import CompletionRequest

_ENDPOINTS: tuple[type[Wire], ...] = (CompletionRequest, ChatCompletionRequest)
_BEGIN, _END = "<!-- parameters: made by app.api.document -->\n", "<!-- end of parameters -->\n"
_HEADER = "| parameter | accepts | `/v1/completions` | `/v1/chat/completions` |\n|---|---|---|---|"
_RANGES = {"minimum": ">= {}", "exclusiveMinimum": "> {}", "maximum": "<= {}", "exclusiveMaximum": "< {}"}
_TYPES = {"integer": "integer", "number": "number", "string": "string", "boolean": "boolean", "object": "object"}


def with_table(document: str) -> str:
    """The document with today's table between its marks."""
    before, rest = document.split(_BEGIN)
    return before + _BEGIN + markdown() + _END + rest.split(_END)[1]


def markdown() -> str:
    """Every parameter that either endpoint knows, by name."""
    fields = [endpoint.model_fields for endpoint in _ENDPOINTS]
    return "\n".join((_HEADER, *(_line(name, [known.get(name) for known in fields]) for name in _names()))) + "\n"


def _names() -> list[str]:
    return sorted({name for endpoint in _ENDPOINTS for name in endpoint.model_fields})


def _line(name: str, fields: list[FieldInfo | None]) -> str:
    schemas = [endpoint.model_json_schema() for endpoint in _ENDPOINTS]
    found = [_accepts(schema["properties"][name], schema) for schema in schemas if name in schema["properties"]]
    accepts = "; ".join(dict.fromkeys(filter(None, found)))
    return f"| `{name}` | {accepts} | {' | '.join(map(_verdict, fields))} |"


def _verdict(field: FieldInfo | None) -> str:
    """Whether the endpoint honours a parameter, and if not why."""
    if field is None:
        return "400: unknown"
    refused = next((each for each in field.metadata if isinstance(each, Refused)), None)
    if refused is None:
        return "honoured"
    neutral = ", ".join(f"`{msgspec.json.encode(value).decode()}`" for value in refused.neutral)
    return f"400 unless {neutral}: {refused.why}" if neutral else f"400: {refused.why}"


def _accepts(schema: dict[str, Any], root: dict[str, Any]) -> str:
    """A JSON schema in a few words; nothing for what has none of its own."""
    if "$ref" in schema:
        return "object: " + ", ".join(root["$defs"][schema["$ref"].rpartition("/")[2]]["properties"])
    if "anyOf" in schema:
        return " or ".join(filter(None, (_accepts(each, root) for each in schema["anyOf"])))
    if schema.get("type") == "array":
        items = _accepts(schema["items"], root)
        return "list" + (f" of {items}" if items else "") + "".join(_lengths(schema))
    kind = _TYPES.get(schema.get("type", ""), "")
    return " ".join((kind, *_ranges(schema))).strip()


def _ranges(schema: dict[str, Any]) -> Iterator[str]:
    if "minimum" in schema and "maximum" in schema and schema["maximum"] < 2**31:
        yield f"{schema['minimum']:g} to {schema['maximum']:g}"
        return
    limits = [(key, text) for key, text in _RANGES.items() if key in schema]
    for key, text in limits:
        # Bounds of the number's width say nothing to a reader.
        if abs(schema[key]) < 2**31:
            yield text.format(f"{schema[key]:g}")


def _lengths(schema: dict[str, Any]) -> Iterator[str]:
    if "maxItems" in schema:
        yield f" (at most {schema['maxItems']})"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(with_table(path.read_text(encoding="utf-8")), encoding="utf-8")
