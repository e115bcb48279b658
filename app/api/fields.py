"""What the wire types of requests are made of: strictness, lists in short forms, and parameters that are refused.

Takes JSON values, gives Python ones. Knows no endpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeGuard

from pydantic import BaseModel, BeforeValidator, ConfigDict, GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

Prompt = str | tuple[int, ...]
SentPrompts = str | list[str] | list[int] | list[list[int]]


class Wire(BaseModel):
    """Typed strictly, and nothing unknown is let through."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Refused:
    """A parameter that exists in the API and is not honoured: only null and the neutral values, which change nothing.

    Args:
        why: What a client is told.
        neutral: Values that ask for nothing.
    """

    why: str
    neutral: tuple[object, ...] = ()

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Check the value after whatever else there is to check."""
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def _check(self, value: object) -> object:
        if value is not None and value not in self.neutral:
            raise PydanticCustomError("not_supported", "not supported: {why}", {"why": self.why})
        return value


def as_prompts(value: object) -> tuple[Prompt, ...]:
    """A string, strings, token ids or lists of token ids, as a tuple of prompts."""
    if isinstance(value, str):
        return (value,)
    if value == []:
        raise PydanticCustomError("empty_prompt", "the list of prompts is empty")
    if _is_token_list(value):
        return (tuple(value),)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    if isinstance(value, list) and all(_is_token_list(item) for item in value):
        return tuple(map(tuple, value))
    raise PydanticCustomError(
        "prompt_type", "must be a string, a list of strings, a list of token ids or a list of lists of token ids"
    )


def _is_token_list(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int for item in value)


def one_or_many(wrap: Callable[[str], Any], expected: str, accepts: Any) -> BeforeValidator:
    """Accept a bare string where a list is meant; `wrap` makes the list's item of it, `accepts` is the type of both."""

    def listed(value: object) -> object:
        if isinstance(value, str):
            return [wrap(value)]
        if value is not None and not isinstance(value, list):
            raise PydanticCustomError("string_or_list", f"must be {expected}")
        return value

    return BeforeValidator(listed, json_schema_input_type=accepts)


def by_token_id(value: object) -> object:
    """An object of biases with its keys, which JSON makes strings, as the token ids that they write."""
    if not isinstance(value, dict):
        return value
    if not all(isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 10 for key in value):
        raise PydanticCustomError("token_id_keys", "must be an object from token ids to biases")
    biases = {int(key): bias for key, bias in value.items()}
    if len(biases) < len(value):
        raise PydanticCustomError("token_id_twice", "names a token id twice")
    return biases
