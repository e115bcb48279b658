"""Log probabilities in OpenAI's two shapes, and vLLM's for prompts.

Takes tokens with their texts as the engine scored them, gives wire types. Knows no request.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from app.api.answers import ChatLogprobs, ChatTokenLogprob, CompletionLogprobs, PromptLogprob, TokenLogprob
from app.api.generation import TextToken
from app.messages import TokenLogprobs
from app.text.token_names import TokenNames

# JSON has no infinity: what vLLM writes for a token that cannot come.
_IMPOSSIBLE = -9999.0


def completion_logprobs(
    tokens: Sequence[TextToken], start_chars: int, count: int, names: TokenNames
) -> CompletionLogprobs:
    """The tokens side by side; their texts are the text.

    Args:
        tokens: Of one choice; the first token of a prompt has no logprob.
        start_chars: How much of the choice's text precedes them.
        count: How many alternatives to name beside each.
        names: What the alternatives are called.
    """
    lengths = (len(token.text) for token in tokens)
    return CompletionLogprobs(
        text_offset=list(accumulate(lengths, initial=start_chars))[:-1],
        token_logprobs=[_finite(token.logprobs.logprob) if token.logprobs else None for token in tokens],
        tokens=[token.text for token in tokens],
        top_logprobs=[
            _alternatives(token, token.logprobs, count, names) if token.logprobs else None for token in tokens
        ],
    )


def chat_logprobs(tokens: Sequence[TextToken], count: int, names: TokenNames) -> ChatLogprobs:
    """One entry per token; the bytes of all are the text's."""
    return ChatLogprobs(
        [
            ChatTokenLogprob(
                token.text,
                _finite(token.logprobs.logprob),
                list(names.piece_bytes(token.token_id, token.text)),
                [_named(token_id, logprob, names) for token_id, logprob in _top(token.logprobs, count)],
            )
            for token in tokens
            if token.logprobs is not None
        ]
    )


def prompt_logprobs(
    token_ids: Sequence[int], scores: Sequence[TokenLogprobs], count: int, names: TokenNames
) -> list[dict[str, PromptLogprob] | None]:
    """In vLLM's shape: null for the first token, then by token id the token itself and `count` alternatives."""
    listed: list[dict[str, PromptLogprob] | None] = [None]
    for token_id, score in zip(token_ids[1:], scores, strict=True):
        ranked = {
            str(other): PromptLogprob(_finite(logprob), rank, names.text(other))
            for rank, (other, logprob) in enumerate(_top(score, count), start=1)
        }
        own = PromptLogprob(_finite(score.logprob), score.rank, names.text(token_id))
        listed.append(
            {str(token_id): own} | {other: entry for other, entry in ranked.items() if other != str(token_id)}
        )
    return listed


def _alternatives(token: TextToken, score: TokenLogprobs, count: int, names: TokenNames) -> dict[str, float]:
    """Logprobs by text: the token's own, then the alternatives; of equal texts the likeliest counts."""
    found = {token.text: _finite(score.logprob)}
    for token_id, logprob in _top(score, count):
        text = token.text if token_id == token.token_id else names.text(token_id)
        found[text] = max(found.get(text, _IMPOSSIBLE), _finite(logprob))
    return found


def _top(score: TokenLogprobs, count: int) -> list[tuple[int, float]]:
    return list(zip(score.top_token_ids[:count], score.top_logprobs[:count], strict=True))


def _named(token_id: int, logprob: float, names: TokenNames) -> TokenLogprob:
    text = names.text(token_id)
    return TokenLogprob(text, _finite(logprob), list(names.piece_bytes(token_id, text)))


def _finite(logprob: float) -> float:
    return max(logprob, _IMPOSSIBLE)
