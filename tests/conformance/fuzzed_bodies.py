"""Bodies that no client ought to send: valid ones, changed in their values, their shape or their bytes.

Takes a random generator, gives paths and bodies. Knows no answer.
"""

from __future__ import annotations

import json
import random
from typing import Any

from app.api.chat_schemas import ChatCompletionRequest
from app.api.schemas import CompletionRequest
from app.api.tokenizer import DetokenizeRequest, TokenizeRequest

_CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
_MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "tool_calls": [_CALL]}]
_VALID: dict[str, tuple[dict[str, Any], list[str]]] = {
    "/v1/completions": ({"model": "m", "prompt": "hi"}, list(CompletionRequest.model_fields)),
    "/v1/chat/completions": ({"model": "m", "messages": _MESSAGES}, list(ChatCompletionRequest.model_fields)),
    "/tokenize": ({"prompt": "hi"}, list(TokenizeRequest.model_fields)),
    "/detokenize": ({"tokens": [1, 2]}, list(DetokenizeRequest.model_fields)),
}
_LEAVES: list[Any] = [
    None, True, False, 0, 1, 2, 3, 5, 20, 63, 64, 128, 2047, 2048, -1, 2**31, 2**63, 2**64, 10**30, -(2**63),
    0.0, -0.0, 0.5, 1.0, 2.0, 1e-300, 1e300, float("nan"), float("inf"), "", " ", "a", "hi", "1", "m", "\x00", "\ud83d",
    "🙂", "é" * 50, "x" * 5000, "<|im_end|>", "{{ 1 }}", "user", "tool", "assistant", "function", "text", "auto", "none",
]  # fmt: skip
_WHOLE: list[Any] = [
    [1, 2, 3], [[1], [2, 3]], ["a", "b"], {"5": 1}, {"300": 100, "301": -100}, {"include_usage": True}, _MESSAGES,
    [{"type": "text", "text": "x"}], [_CALL], [300, 300], list(range(60)), {"type": "text"},
]  # fmt: skip

# What is honoured, each by itself; together some contradict each other.
_PLAUSIBLE: dict[str, list[Any]] = {
    "model": ["m"],
    "prompt": ["hi", "", "x" * 70, [1, 2, 3], [[1], [2, 3]], ["a", "🙂"], [300] * 64, [300] * 63],
    "messages": [_MESSAGES, _MESSAGES[:1], [{"role": "system", "content": [{"type": "text", "text": "x"}]}]],
    "n": [1, 2, 3],
    "max_tokens": [0, 1, 5, 64, 10**6],
    "max_completion_tokens": [1, 5],
    "temperature": [0, 0.5, 1, 2, 1e-300],
    "top_p": [1e-300, 0.5, 1],
    "top_k": [-1, 0, 1, 50, 2**30],
    "min_p": [0, 0.5, 1],
    "seed": [0, -1, 2**63 - 1, -(2**63)],
    "stop": ["a", ["b", "🙂"], "x" * 5000, []],
    "stop_token_ids": [[1], [300, 2**31 - 1], []],
    "frequency_penalty": [-2, 2],
    "presence_penalty": [-2, 2],
    "repetition_penalty": [0.01, 1.1, 100],
    "logit_bias": [{}, {"300": 100}, {"300": -100, "301": 0.5}],
    "logprobs": [0, 1, 20, True, False],
    "top_logprobs": [0, 20],
    "prompt_logprobs": [0, 20],
    "min_tokens": [0, 1, 5],
    "allowed_token_ids": [[300], [300, 300], list(range(2000))],
    "bad_words": [["a"], ["hi", " there"], ["x" * 500]],
    "truncate_prompt_tokens": [-1, 1, 3, 64, 2**31 - 1],
    "stream_options": [{"include_usage": True}, {"continuous_usage_stats": True}, {}],
    "request_id": ["job-7"],
    "suffix": ["", "end"],
    "best_of": [1, 2],
    "tools": [[_CALL], []],
    "chat_template_kwargs": [{"x": 1}, {"messages": 1}],
    "tokens": [[1, 2], [2**31 - 1], list(range(2000))],
}


def fuzzed(chance: random.Random) -> tuple[str, bytes]:
    """A path, and a body for it."""
    path, (valid, names) = chance.choice(list(_VALID.items()))
    body: Any = dict(valid)
    for _ in range(chance.choice([1, 1, 2, 3, 8])):
        name = chance.choice(names) if chance.random() < 0.98 else "frobnicate"
        plausible = _PLAUSIBLE.get(name, [None, True, False])
        body[name] = chance.choice(plausible) if chance.random() < 0.7 else _value(chance, 0)
    if chance.random() < 0.3:
        body.update({"stream": True})
    if chance.random() < 0.15:
        _change_within(body, chance)
    text = json.dumps(body).encode()
    return path, _damaged(text, chance) if chance.random() < 0.1 else text


def _value(chance: random.Random, depth: int) -> Any:
    kind = chance.random()
    if kind < 0.7 or depth > 3:
        return chance.choice(_LEAVES)
    if kind < 0.85:
        return chance.choice(_WHOLE)
    items = [_value(chance, depth + 1) for _ in range(chance.randrange(4))]
    return items if kind < 0.93 else {str(chance.choice(_LEAVES)): item for item in items}


def _change_within(body: Any, chance: random.Random) -> None:
    """Replace something below the top, if there is anything."""
    inside = json.loads(json.dumps(body))
    at: Any = inside
    while isinstance(at, dict | list) and at:
        key = chance.choice(list(at)) if isinstance(at, dict) else chance.randrange(len(at))
        if chance.random() < 0.4:
            at[key] = _value(chance, 1)
            break
        at = at[key]
    body.clear()
    body.update(inside)


def _damaged(text: bytes, chance: random.Random) -> bytes:
    """Bytes cut, doubled, replaced or nested beyond measure."""
    at = chance.randrange(len(text))
    ways = (
        text[:at],
        text[at:],
        text[:at] + text,
        text[:at] + bytes([chance.randrange(256)]) + text[at + 1 :],
        b"[" * 20_000,
        b'{"a":' * 5_000 + b"1" + b"}" * 5_000,
        b"",
    )
    return chance.choice(ways)
