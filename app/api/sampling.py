"""A request's sampling parameters as the engine takes them, one set per choice.

Takes validated requests, gives `Generation`s. Pure; knows no HTTP and no text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from app.api.generation import Generation, Prompt
from app.api.schemas import GenerationRequest
from app.errors import InvalidRequest
from app.messages import SamplingParams
from app.service import ServedModel

_MAX_SEED = 2**63 - 1
_Number = TypeVar("_Number", int, float)


@dataclass(frozen=True)
class Scores:
    """How many alternatives to score beside each token of the answer and of the prompt; None scores nothing."""

    answer: int | None = None
    prompt: int | None = None


def plan_generation(
    request: GenerationRequest,
    model: ServedModel,
    prompts: Sequence[Prompt],
    *,
    max_tokens: int | None,
    scores: Scores,
    param: str,
    continues: bool,
) -> Generation:
    """Every choice of a request, prompt-major: `n` of the first prompt, then `n` of the next.

    Args:
        request: The validated body.
        model: The model that it names.
        prompts: Token ids, with their texts where they are echoed.
        max_tokens: How long an answer may be; None, and whatever does not fit, mean the rest of the context. 0 asks for
            nothing but the prompt.
        scores: The log probabilities to compute.
        param: Which parameter the prompts came from, for errors.
        continues: Whether the answer's text goes on where the prompt's ends.

    Raises:
        InvalidRequest: A prompt is empty or leaves no room, or the model cannot obey a parameter.
    """
    n = request.n or 1
    _check(request, model, max_tokens)
    limit = min((tokens for tokens in (max_tokens, model.defaults.max_new_tokens) if tokens is not None), default=None)
    # Where no token is wanted the engine draws one all the same, which is dropped: a prompt may fill the context.
    least = 0 if limit == 0 else 1
    rooms = [_room_tokens(prompt.token_ids, model.max_model_len_tokens, least, param) for prompt in prompts]
    sampling = [_sampling(request, model, room if limit is None else min(room, limit), scores) for room in rooms]
    _check_leaves_a_token(sampling[0], model.vocab_size)
    return Generation(
        prompts=tuple(prompt for prompt in prompts for _ in range(n)),
        sampling=tuple(_seeded(each, choice) for each in sampling for choice in range(n)),
        choices=n,
        stops=tuple(request.stop or ()),
        continues=continues,
        scores_only=max_tokens == 0,
        include_stop=bool(request.include_stop_str_in_output),
        skip_special_tokens=request.skip_special_tokens is not False,
    )


def _check(request: GenerationRequest, model: ServedModel, max_tokens: int | None) -> None:
    _check_token_ids(request.logit_bias or (), "logit_bias", model.vocab_size)
    _check_token_ids(request.allowed_token_ids or (), "allowed_token_ids", model.vocab_size)
    if max_tokens is not None and (request.min_tokens or 0) > max_tokens:
        raise InvalidRequest(
            f"min_tokens is {request.min_tokens} but the answer ends after {max_tokens} tokens: ask for fewer",
            param="min_tokens",
        )


def _room_tokens(prompt: tuple[int, ...], max_model_len_tokens: int, least: int, param: str) -> int:
    """How many tokens the context has left after the prompt; at least `least`, which is 0 or 1."""
    if not prompt:
        raise InvalidRequest("the prompt has no tokens", param=param)
    room = max_model_len_tokens - len(prompt)
    if room < least:
        raise InvalidRequest(
            f"the prompt has {len(prompt)} tokens and the model's context is {max_model_len_tokens} tokens: "
            f"shorten it{' so that at least one token fits behind it' if least else ''}",
            param=param,
        )
    return room


def _check_token_ids(token_ids: Iterable[int], param: str, vocab_size: int) -> None:
    wrong = next((token_id for token_id in token_ids if not 0 <= token_id < vocab_size), None)
    if wrong is not None:
        raise InvalidRequest(f"token id {wrong} is not in [0, {vocab_size})", param=param)


def _sampling(request: GenerationRequest, model: ServedModel, max_tokens: int, scores: Scores) -> SamplingParams:
    own_stops = () if request.ignore_eos else model.stop_token_ids
    defaults = model.defaults
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=_first(request.temperature, defaults.temperature, 1.0),
        top_p=_first(request.top_p, defaults.top_p, 1.0),
        top_k=max(0, _first(request.top_k, defaults.top_k, 0)),
        min_p=_first(request.min_p, defaults.min_p, 0.0),
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        repetition_penalty=_first(request.repetition_penalty, defaults.repetition_penalty, 1.0),
        logit_bias=tuple((request.logit_bias or {}).items()),
        allowed_token_ids=tuple(request.allowed_token_ids or ()),
        bad_words=tuple(_bad_words(request.bad_words or (), model)),
        seed=request.seed,
        min_tokens=min(request.min_tokens or 0, max_tokens),
        stop_token_ids=own_stops + tuple(request.stop_token_ids or ()),
        logprobs=scores.answer,
        prompt_logprobs=scores.prompt,
    )


def _first(asked: _Number | None, recommended: _Number | None, usual: _Number) -> _Number:
    """The request's word, else the checkpoint's, else the usual value."""
    if asked is not None:
        return asked
    return usual if recommended is None else recommended


def _check_leaves_a_token(sampling: SamplingParams, vocab_size: int) -> None:
    """Refuse what the engine could not begin with."""
    banned = {word[0] for word in sampling.bad_words if len(word) == 1}
    if sampling.min_tokens:
        banned.update(sampling.stop_token_ids)
    if banned.issuperset(sampling.allowed_token_ids or range(vocab_size)):
        raise InvalidRequest(
            "allowed_token_ids, bad_words and min_tokens together leave no token to draw",
            param="allowed_token_ids" if sampling.allowed_token_ids else "bad_words",
        )


def _seeded(sampling: SamplingParams, choice: int) -> SamplingParams:
    """Each choice of a seeded request has its own draws, and the same ones every time."""
    if sampling.seed is None:
        return sampling
    return msgspec.structs.replace(sampling, seed=(sampling.seed + choice) & _MAX_SEED)


def _bad_words(words: Iterable[str], model: ServedModel) -> Iterator[tuple[int, ...]]:
    """The token ids of each word as it begins a text and, where that is another first token, behind a space.

    Raises:
        InvalidRequest: A word has no tokens, or one that the model cannot make.
    """
    for word in words:
        bare = model.text.encode(word.lstrip(), add_special_tokens=False)
        spaced = model.text.encode(" " + word.lstrip(), add_special_tokens=False)
        if not bare:
            raise InvalidRequest(f"the bad word {word!r} has no tokens", param="bad_words")
        _check_token_ids((*bare, *spaced), "bad_words", model.vocab_size)
        yield bare
        # Of another length, the space is a token of its own and the word behind it is `bare` again.
        if spaced[0] != bare[0] and len(spaced) == len(bare):
            yield spaced
