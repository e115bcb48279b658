"""A request's sampling parameters as the engine takes them, one set per choice.

Takes validated requests, gives `Generation`s. Pure; knows no HTTP and no text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from app.api.generation import Generation
from app.api.schemas import GenerationRequest
from app.errors import InvalidRequest
from app.messages import SamplingParams
from app.service import ServedModel

_MAX_SEED = 2**63 - 1


def plan_generation(
    request: GenerationRequest,
    model: ServedModel,
    prompts: Sequence[tuple[int, ...]],
    *,
    max_tokens: int | None,
    param: str,
    continues: bool,
) -> Generation:
    """Every choice of a request, prompt-major: `n` of the first prompt, then `n` of the next.

    Args:
        request: The validated body.
        model: The model that it names.
        prompts: Token ids.
        max_tokens: How long an answer may be; None, and whatever does not fit, mean the rest of the context.
        param: Which parameter the prompts came from, for errors.
        continues: Whether the answer's text goes on where the prompt's ends.

    Raises:
        InvalidRequest: A prompt is empty or leaves no room, or the model cannot obey a parameter.
    """
    n = request.n or 1
    _check_token_ids(request.logit_bias or (), "logit_bias", model.vocab_size)
    _check_token_ids(request.allowed_token_ids or (), "allowed_token_ids", model.vocab_size)
    if max_tokens is not None and (request.min_tokens or 0) > max_tokens:
        raise InvalidRequest(
            f"min_tokens is {request.min_tokens} but the answer ends after {max_tokens} tokens: ask for fewer",
            param="min_tokens",
        )
    rooms = [_room_tokens(prompt, model.max_model_len_tokens, param) for prompt in prompts]
    return Generation(
        prompts=tuple(prompt for prompt in prompts for _ in range(n)),
        sampling=tuple(
            _sampling(request, model, min(room, max_tokens or room), choice) for room in rooms for choice in range(n)
        ),
        stops=tuple(request.stop or ()),
        prompt_tokens=sum(map(len, prompts)),
        continues=continues,
    )


def _room_tokens(prompt: tuple[int, ...], max_model_len_tokens: int, param: str) -> int:
    """How many tokens the context has left after the prompt; at least one."""
    if not prompt:
        raise InvalidRequest("the prompt has no tokens", param=param)
    room = max_model_len_tokens - len(prompt)
    if room < 1:
        raise InvalidRequest(
            f"the prompt has {len(prompt)} tokens and the model's context is {max_model_len_tokens} tokens: "
            "shorten it so that at least one token fits behind it",
            param=param,
        )
    return room


def _check_token_ids(token_ids: Iterable[int], param: str, vocab_size: int) -> None:
    wrong = next((token_id for token_id in token_ids if not 0 <= token_id < vocab_size), None)
    if wrong is not None:
        raise InvalidRequest(f"token id {wrong} is not in [0, {vocab_size})", param=param)


def _sampling(request: GenerationRequest, model: ServedModel, max_tokens: int, choice: int) -> SamplingParams:
    own_stops = () if request.ignore_eos else model.stop_token_ids
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=1.0 if request.temperature is None else request.temperature,
        top_p=1.0 if request.top_p is None else request.top_p,
        top_k=max(0, request.top_k or 0),
        min_p=request.min_p or 0.0,
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        repetition_penalty=request.repetition_penalty or 1.0,
        logit_bias=tuple((request.logit_bias or {}).items()),
        allowed_token_ids=tuple(request.allowed_token_ids or ()),
        # Each choice of a seeded request has its own draws, and the same ones every time.
        seed=None if request.seed is None else (request.seed + choice) & _MAX_SEED,
        min_tokens=min(request.min_tokens or 0, max_tokens),
        stop_token_ids=own_stops + tuple(request.stop_token_ids or ()),
    )
