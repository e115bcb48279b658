"""OpenAI's wire types of requests, and nothing else.

Every field is typed strictly and nothing unknown is let through: a parameter that is not honoured must be
refused by name, never ignored. Knows no model: what depends on it is checked where it is used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeGuard

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator
from pydantic_core import PydanticCustomError

MAX_STOP_TOKENS = 128
MAX_STOP_STRINGS = 16
MAX_CHOICES = 128

Prompt = str | tuple[int, ...]


def _only(*neutral: object) -> AfterValidator:
    """A parameter that exists in the API and is not honoured yet: null and these values change nothing."""

    def check(value: object) -> object:
        if value is not None and value not in neutral:
            raise PydanticCustomError("not_supported", "not supported yet")
        return value

    return AfterValidator(check)


def _as_prompts(value: object) -> tuple[Prompt, ...]:
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


def _one_or_many(wrap: Callable[[str], Any], expected: str) -> BeforeValidator:
    """Accept a bare string where a list is meant; `wrap` makes the list's item of it."""

    def listed(value: object) -> object:
        if isinstance(value, str):
            return [wrap(value)]
        if value is not None and not isinstance(value, list):
            raise PydanticCustomError("string_or_list", f"must be {expected}")
        return value

    return BeforeValidator(listed)


def _by_token_id(value: object) -> object:
    """An object of biases with its keys, which JSON makes strings, as the token ids that they write."""
    if not isinstance(value, dict):
        return value
    if not all(isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 10 for key in value):
        raise PydanticCustomError("token_id_keys", "must be an object from token ids to biases")
    by_token_id = {int(key): bias for key, bias in value.items()}
    if len(by_token_id) < len(value):
        raise PydanticCustomError("token_id_twice", "names a token id twice")
    return by_token_id


class _Wire(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(_Wire):
    """`continuous_usage_stats` is vLLM's: the usage so far in every chunk."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class GenerationRequest(_Wire):
    """What both endpoints take. null means the default everywhere."""

    model: str
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Annotated[
        list[Annotated[str, Field(min_length=1)]] | None,
        Field(max_length=MAX_STOP_STRINGS),
        _one_or_many(str, "a string or a list of strings"),
    ] = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: Annotated[dict[int, Annotated[float, Field(ge=-100, le=100)]] | None, BeforeValidator(_by_token_id)] = (
        None
    )
    # vLLM's extensions
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    allowed_token_ids: Annotated[list[int], Field(min_length=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    stop_token_ids: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]] | None, Field(max_length=MAX_STOP_TOKENS)] = (
        None
    )
    ignore_eos: bool | None = None


class CompletionRequest(GenerationRequest):
    """POST /v1/completions."""

    prompt: Annotated[tuple[Prompt, ...], PlainValidator(_as_prompts, json_schema_input_type=Any)]
    best_of: Annotated[int, Field(ge=1)] | None = None
    # not honoured yet; `logprobs` 0 does ask for the chosen tokens' own
    echo: Annotated[Any, _only(False)] = None
    logprobs: Annotated[Any, _only()] = None
    suffix: Annotated[Any, _only("")] = None


class TextPart(_Wire):
    """One part of a message's content; only text is understood."""

    type: Literal["text"]
    text: str


def _text_part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


class Message(_Wire):
    """One message of a chat. The fields that are only ever null are what clients send back to us."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[TextPart], _one_or_many(_text_part, "a string or a list of text parts")]
    name: str | None = None
    # not honoured yet
    tool_calls: Annotated[Any, _only([])] = None
    function_call: Annotated[Any, _only()] = None
    refusal: Annotated[Any, _only()] = None
    audio: Annotated[Any, _only()] = None
    annotations: Annotated[Any, _only([])] = None

    def for_template(self) -> dict[str, str | None]:
        """What a chat template sees; parts are joined by line breaks."""
        return {"role": self.role, "content": "\n".join(part.text for part in self.content), "name": self.name}


class ResponseFormat(_Wire):
    """Only free text."""

    type: Literal["text"]


class ChatCompletionRequest(GenerationRequest):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    response_format: ResponseFormat | None = None
    # not honoured yet; without tools, the two that steer them change nothing
    tools: Annotated[Any, _only([])] = None
    tool_choice: Annotated[Any, _only("none", "auto")] = None
    parallel_tool_calls: Annotated[Any, _only(True, False)] = None
    logprobs: Annotated[Any, _only(False)] = None
    top_logprobs: Annotated[Any, _only(0)] = None
