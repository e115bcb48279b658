"""The official client in its four ways (plain and streamed, each synchronous and not), with one form of answer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Self

import openai

WAYS = ("sync", "sync stream", "async", "async stream")


@dataclass
class Answer:
    """What came: texts and finish reasons by choice, token ids, scores and the last usage; `parts` as the client typed them."""

    texts: dict[int, str] = field(default_factory=dict)
    finish_reasons: dict[int, str | None] = field(default_factory=dict)
    token_ids: dict[int, list[int]] = field(default_factory=dict)
    logprobs: list[Any] = field(default_factory=list)
    usage: Any = None
    parts: Sequence[Any] = ()

    @property
    def text(self) -> str:
        """The first choice's."""
        return self.texts[0]


class Clients:
    """Both clients of one server, for the length of a `with` block: each takes a while to make."""

    def __init__(self, url: str, api_key: str):
        options: dict[str, Any] = {"base_url": url + "/v1", "api_key": api_key, "max_retries": 0}
        self._stack = ExitStack()
        self._runner = self._stack.enter_context(asyncio.Runner())
        self._sync = self._stack.enter_context(openai.OpenAI(**options))
        self._async = openai.AsyncOpenAI(**options)
        self._stack.callback(lambda: self._runner.run(self._async.close()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def ask(self, way: str, *, chat: bool, **parameters: Any) -> Answer:
        """One request, in one of `WAYS`."""
        if "stream" in way:
            parameters["stream"] = True
        if way.startswith("async"):
            return _answer(self._runner.run(self._ask_async(chat, parameters)))
        reply = (self._sync.chat.completions if chat else self._sync.completions).create(**parameters)
        return _answer(list(reply) if "stream" in parameters else [reply])

    async def _ask_async(self, chat: bool, parameters: dict[str, Any]) -> list[Any]:
        reply = await (self._async.chat.completions if chat else self._async.completions).create(**parameters)
        return [part async for part in reply] if "stream" in parameters else [reply]


def _answer(parts: list[Any]) -> Answer:
    answer = Answer(parts=parts)
    for part in parts:
        _validate(part)
        answer.usage = part.usage or answer.usage
        for choice in part.choices:
            _add(answer, choice)
    return answer


def _validate(part: Any) -> None:
    """Whether an object is what its type says; the client itself lets anything pass."""
    fields = part.to_dict()
    if isinstance(part, openai.types.Completion):
        # Everybody's streams say null until the end, which the client's type does not know.
        fields["choices"] = [
            choice | {"finish_reason": choice["finish_reason"] or "stop"} for choice in fields["choices"]
        ]
    type(part).model_validate(fields)


def _add(answer: Answer, choice: Any) -> None:
    message = getattr(choice, "message", None) or getattr(choice, "delta", None)
    text = choice.text if message is None else message.content
    answer.texts[choice.index] = answer.texts.get(choice.index, "") + (text or "")
    answer.finish_reasons[choice.index] = choice.finish_reason or answer.finish_reasons.get(choice.index)
    answer.token_ids.setdefault(choice.index, []).extend(getattr(choice, "token_ids", None) or [])
    if choice.logprobs is not None:
        answer.logprobs.append(choice.logprobs)
