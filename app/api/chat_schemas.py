"""OpenAI's wire types of chats, and nothing else. Knows no template and no model."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from app.api.fields import Refused, Wire, one_or_many
from app.api.schemas import AnswerLogprobs, GenerationRequest


def _json_object(text: str) -> str:
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError) as exc:
        raise PydanticCustomError("json_object", "must be a JSON object, as a string") from exc
    if not isinstance(value, dict):
        raise PydanticCustomError("json_object", "must be a JSON object, as a string")
    return text


class TextPart(Wire):
    """One part of a message's content; only text is understood."""

    type: Literal["text"]
    text: str


def _text_part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


class FunctionCall(Wire):
    """Which function, and its arguments: a JSON object, in a string."""

    name: str
    arguments: Annotated[str, AfterValidator(_json_object)]


class ToolCall(Wire):
    """One call that the assistant made."""

    id: str
    type: Literal["function"]
    function: FunctionCall

    def for_template(self) -> dict[str, Any]:
        """As templates have it: the arguments are an object."""
        function = {"name": self.function.name, "arguments": json.loads(self.function.arguments or "{}")}
        return {"id": self.id, "type": self.type, "function": function}


class Message(Wire):
    """One message of a chat. The fields that are only ever null are what clients send back to us."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    content: Annotated[
        list[TextPart] | None,
        one_or_many(_text_part, "a string or a list of text parts", str | list[TextPart] | None),
        Field(validate_default=True),
    ] = None
    # not honoured
    function_call: Annotated[Any, Refused("tools are not called")] = None
    refusal: Annotated[Any, Refused("only text is understood")] = None
    audio: Annotated[Any, Refused("only text is understood")] = None
    annotations: Annotated[Any, Refused("only text is understood", ([],))] = None

    @field_validator("tool_calls", "tool_call_id")
    @classmethod
    def _is_the_roles(cls, value: object, info: ValidationInfo) -> object:
        """Calls are the assistant's, and what they gave is a tool's."""
        role = "assistant" if info.field_name == "tool_calls" else "tool"
        if value and info.data.get("role") != role:
            raise PydanticCustomError("role", "only messages of role {role} have it", {"role": role})
        return value

    @field_validator("content")
    @classmethod
    def _is_there(cls, content: object, info: ValidationInfo) -> object:
        """Nothing is said only where tools are called."""
        if content is None and not info.data.get("tool_calls"):
            raise PydanticCustomError("content", "must be a string or a list of text parts")
        return content

    def for_template(self) -> dict[str, Any]:
        """What a chat template sees; parts are joined by line breaks."""
        calls = [call.for_template() for call in self.tool_calls or ()]
        return {
            "role": self.role,
            "content": "\n".join(part.text for part in self.content or ()),
            "name": self.name,
            "tool_calls": calls or None,
            "tool_call_id": self.tool_call_id,
        }


Messages = Annotated[list[Message], Field(min_length=1)]


class ChatPrompt(Wire):
    """What makes a prompt of a chat's messages, for /v1/chat/completions and /tokenize."""

    tools: list[dict[str, Any]] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class ChatCompletionRequest(GenerationRequest, ChatPrompt):
    """POST /v1/chat/completions."""

    messages: Messages
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    # who asks, and what is likely to be cached: whatever they say, the answer is the same
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    logprobs: bool | None = None
    top_logprobs: AnswerLogprobs | None = None
    # not honoured
    tool_choice: Annotated[Any, Refused("answers are text, tools are not called", ("none", "auto"))] = None
    parallel_tool_calls: Annotated[Any, Refused("tools are not called", (True, False))] = None
    functions: Annotated[Any, Refused("send tools", ([],))] = None
    function_call: Annotated[Any, Refused("tools are not called", ("none", "auto"))] = None
    reasoning_effort: Annotated[Any, Refused("send what the template understands in chat_template_kwargs")] = None
    modalities: Annotated[Any, Refused("only text is made", (["text"],))] = None
    audio: Annotated[Any, Refused("only text is made")] = None
    prediction: Annotated[Any, Refused("nothing is made of a predicted answer")] = None
    store: Annotated[Any, Refused("nothing is stored", (False,))] = None
    metadata: Annotated[Any, Refused("nothing is stored", ({},))] = None
    verbosity: Annotated[Any, Refused("say in the messages how long the answer is to be", ("medium",))] = None
    moderation: Annotated[Any, Refused("nothing is moderated")] = None
    prompt_cache_options: Annotated[Any, Refused("equal beginnings of prompts share their cached blocks anyway")] = None
    prompt_cache_retention: Annotated[
        Any, Refused("what is cached stays while there is room", ("in_memory", "in-memory"))
    ] = None
    service_tier: Annotated[Any, Refused("there is one tier", ("auto", "default"))] = None
    web_search_options: Annotated[Any, Refused("nothing is searched")] = None
    chat_template: Annotated[Any, Refused("the checkpoint's own template is used")] = None
    documents: Annotated[Any, Refused("write them into the messages", ([],))] = None
