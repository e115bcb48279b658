"""The model, from the checkpoint's metadata: what the server would answer the loader, without a server.

Takes a description and settings, gives findings and what the memory must hold. Never imports torch.
"""

from __future__ import annotations

import math

from app.described_model import description_request
from app.model_support import NoFamily, SupportedModel, support
from app.preflight.finding import MODEL, Finding, failed, ok, shown_bytes, skipped, warning
from app.preflight.judgement.device import Need
from app.settings import Settings
from app.wishes import Wishes
from streaming.describe import TOKENIZER_SOURCE_NAMES, Description
from streaming.dtypes import BITS
from streaming.errors import StreamingError
from streaming.messages import Entry, Origin
from streaming.options import HOST_STAGING
from streaming.plan import CASTABLE, plan_load

_TOKENIZER = "tokenizer.json"
_ANOTHER = "serve another checkpoint, or correct what is named"


def judge_model(found: Description, settings: Settings) -> tuple[list[Finding], Need | None]:
    """Whether it is computed, is what the settings ask for and has a tokenizer; and the memory that it takes."""
    wishes = Wishes.of(settings)
    try:
        model = support(found.files, found.entries, dtype=wishes.dtype)
        findings, need = _ours(found, model, wishes, settings)
    except NoFamily as reason:
        findings, need = _transformers(found, wishes, str(reason))
    except StreamingError as error:
        findings, need = [failed("model", MODEL, str(error), _ANOTHER), skipped("settings", "there is no model")], None
    return [*findings, _tokenizer(found)], need


def _ours(
    found: Description, model: SupportedModel, wishes: Wishes, settings: Settings
) -> tuple[list[Finding], Need | None]:
    cache_bytes = wishes.least_cache_bytes(model)
    layout = model.layout(Origin(arena_id="preflight"), cache_bytes)
    try:
        plan = plan_load(
            found.entries, found.versions, layout, chunk_bytes=settings.storage.pipeline_options().chunk_bytes
        )
    except StreamingError as error:
        return [failed("model", MODEL, str(error), _ANOTHER), skipped("settings", "there is no plan")], None
    seen = ok(
        "model",
        f"{model.architecture}, {model.dtype}, {shown_bytes(plan.arena_bytes)} of weights, "
        f"{shown_bytes(plan.fetch_bytes)} to fetch, context {model.max_model_len_tokens} tokens",
        architecture=model.architecture,
        dtype=model.dtype,
        arena_bytes=plan.arena_bytes,
        fetch_bytes=plan.fetch_bytes,
        max_model_len_tokens=model.max_model_len_tokens,
        is_ours=True,
    )
    is_guarded = settings.model.load_strategy != HOST_STAGING
    return [seen, _settings(found, model, wishes)], Need(plan.arena_bytes, cache_bytes, is_guarded=is_guarded)


def _transformers(found: Description, wishes: Wishes, reason: str) -> tuple[list[Finding], Need | None]:
    """What no family of ours accepts: refused where the server need not ask the engine, else the engine's to say."""
    try:
        request = description_request(found.files, found.entries, dtype=wishes.dtype)
    except StreamingError as error:
        return [failed("model", MODEL, str(error), _ANOTHER), skipped("settings", "there is no model")], None
    weights_bytes = sum(_stored_bytes(entry, request.dtype) for entry in found.entries)
    seen = warning(
        "model",
        f"not for our own decoder ({reason}): transformers' classes may compute it, in {request.dtype}",
        "nothing: the engine decides when it starts, before a weight is fetched, some seconds later than for our own",
        dtype=request.dtype,
        weights_bytes=weights_bytes,
        is_ours=False,
    )
    need = Need(weights_bytes, wishes.engine.kv_cache_bytes or 0, is_guarded=False)
    return [seen, skipped("settings", "the engine knows the model first")], need


def _stored_bytes(entry: Entry, dtype: str) -> int:
    """What a tensor takes once it has landed: cast, where it can be."""
    return math.prod(entry.shape) * BITS[dtype] // 8 if entry.dtype in CASTABLE else entry.end - entry.start


def _settings(found: Description, model: SupportedModel, wishes: Wishes) -> Finding:
    try:
        wishes.check(model, len(found.versions))
        wishes.sampling_defaults(found.files)
    except StreamingError as error:
        return failed("settings", error.exit_code, str(error), "correct the setting, or choose another model")
    return ok("settings", "the model is what the settings ask for")


def _tokenizer(found: Description) -> Finding:
    from app.text.text_model import TextModel

    if _TOKENIZER not in found.files:
        sources = [name for name in TOKENIZER_SOURCE_NAMES if name in found.files]
        if not sources:
            remedy = "upload the whole checkpoint folder, the tokenizer's files included"
            return failed("tokenizer", MODEL, f"there is no {_TOKENIZER}, nor anything to make one of", remedy)
        return warning(
            "tokenizer",
            f"there is no {_TOKENIZER}: the engine makes one of {', '.join(sources)} with transformers, which is slow",
            f"save {_TOKENIZER} beside the weights, once (AutoTokenizer.from_pretrained(...).save_pretrained(...))",
        )
    try:
        vocab_size = TextModel.from_files(found.files).vocab_size
    except StreamingError as error:
        return failed("tokenizer", error.exit_code, str(error), _ANOTHER)
    return ok("tokenizer", f"{_TOKENIZER} with {vocab_size} tokens", vocab_size=vocab_size)
