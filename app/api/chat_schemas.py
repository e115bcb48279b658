"""OpenAI's wire types of chats, and nothing else. Knows no template and no model."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from app.api.fields import Refused, Wire, one_or_many
from app.api.schemas import AnswerLogprobs, GenerationRequest


class TextPart(Wire):
    """One part of a message's content; only text is understood."""

    type: Literal["text"]
    text: str


def _text_part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


class Message(Wire):
    """One message of a chat. The fields that are only ever null are what clients send back to us."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[TextPart], one_or_many(_text_part, "a string or a list of text parts")]
    name: str | None = None
    # not honoured
    tool_calls: Annotated[Any, Refused("tools are not called", ([],))] = None
    function_call: Annotated[Any, Refused("tools are not called")] = None
    refusal: Annotated[Any, Refused("only text is understood")] = None
    audio: Annotated[Any, Refused("only text is understood")] = None
    annotations: Annotated[Any, Refused("only text is understood", ([],))] = None

    def for_template(self) -> dict[str, str | None]:
        """What a chat template sees; parts are joined by line breaks."""
        return {"role": self.role, "content": "\n".join(part.text for part in self.content), "name": self.name}


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
    service_tier: Annotated[Any, Refused("there is one tier", ("auto", "default"))] = None
    web_search_options: Annotated[Any, Refused("nothing is searched")] = None
    chat_template: Annotated[Any, Refused("the checkpoint's own template is used")] = None
    documents: Annotated[Any, Refused("write them into the messages", ([],))] = None
