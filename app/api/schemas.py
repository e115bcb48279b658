"""OpenAI's wire types of requests, and nothing else: what every generation takes, and completions.

Every field is typed strictly and nothing unknown is let through: a parameter that is not honoured must be
refused by name, never ignored. Knows no model: what depends on it is checked where it is used.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainValidator

from app.api.fields import Prompt, Refused, SentPrompts, Wire, as_prompts, by_token_id, one_or_many

MAX_STOP_TOKENS = 128
MAX_STOP_STRINGS = 16
MAX_BAD_WORDS = 128
MAX_CHOICES = 128
MAX_LOGPROBS = 20

TokenId = Annotated[int, Field(ge=0, lt=2**31)]
AnswerLogprobs = Annotated[int, Field(ge=0, le=MAX_LOGPROBS)]


StopString = Annotated[str, Field(min_length=1)]
StopStrings = StopString | Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS)] | None


class StreamOptions(Wire):
    """`continuous_usage_stats` is vLLM's: the usage so far in every chunk."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class GenerationRequest(Wire):
    """What both endpoints take. null means the default everywhere."""

    model: str
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Annotated[
        list[StopString] | None,
        Field(max_length=MAX_STOP_STRINGS),
        one_or_many(str, "a string or a list of strings", StopStrings),
    ] = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: Annotated[dict[int, Annotated[float, Field(ge=-100, le=100)]] | None, BeforeValidator(by_token_id)] = (
        None
    )
    # vLLM's extensions
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    allowed_token_ids: Annotated[list[int], Field(min_length=1)] | None = None
    bad_words: Annotated[list[Annotated[str, Field(min_length=1)]] | None, Field(max_length=MAX_BAD_WORDS)] = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    stop_token_ids: Annotated[list[TokenId] | None, Field(max_length=MAX_STOP_TOKENS)] = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    add_special_tokens: bool | None = None
    truncate_prompt_tokens: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    prompt_logprobs: AnswerLogprobs | None = None
    return_token_ids: bool | None = None
    request_id: Annotated[str, Field(pattern=r"^[!-~]{1,128}$")] | None = None
    # not honoured
    response_format: Annotated[Any, Refused("answers are free text", ({"type": "text"},))] = None
    structured_outputs: Annotated[Any, Refused("answers are free text")] = None
    use_beam_search: Annotated[Any, Refused("tokens are sampled", (False,))] = None
    length_penalty: Annotated[Any, Refused("there is no beam search", (1,))] = None
    spaces_between_special_tokens: Annotated[Any, Refused("none are written", (True,))] = None
    return_tokens_as_token_ids: Annotated[Any, Refused("ask for return_token_ids", (False,))] = None
    priority: Annotated[Any, Refused("requests are served in order of arrival", (0,))] = None
    truncation_side: Annotated[Any, Refused("the prompt's end is kept", ("left",))] = None
    logprob_token_ids: Annotated[Any, Refused("the likeliest tokens are named")] = None
    stream_interval: Annotated[Any, Refused("every token is told at once", (1,))] = None
    thinking_token_budget: Annotated[Any, Refused("thoughts are tokens like any other")] = None
    kv_transfer_params: Annotated[Any, Refused("keys and values stay in this server")] = None
    vllm_xargs: Annotated[Any, Refused("there are no plug-ins", ({},))] = None
    cache_salt: Annotated[Any, Refused("equal prompts share their cached blocks")] = None


class CompletionRequest(GenerationRequest):
    """POST /v1/completions."""

    prompt: Annotated[tuple[Prompt, ...], PlainValidator(as_prompts, json_schema_input_type=SentPrompts)]
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    best_of: Annotated[int, Field(ge=1)] | None = None
    echo: bool | None = None
    logprobs: AnswerLogprobs | None = None
    suffix: str | None = None
    # not honoured
    prompt_embeds: Annotated[Any, Refused("prompts are text or token ids")] = None
