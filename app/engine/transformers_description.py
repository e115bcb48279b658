"""What transformers' class for a checkpoint wants of it, found out before a weight is fetched.

Takes a config.json and the checkpoint's names and shapes. The class is run once on the meta device, with attention
replaced by a recorder: what its layers ask for that our attention has not is refused. Knows no address.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from app.engine.models.transformers_model import Halves, TransformersShape
from app.engine.skeleton import TORCH_DTYPES
from app.engine.transformers_attention import Call, Recorder
from app.engine.transformers_class import build_class
from app.engine.transformers_tensors import described_parameters
from app.messages import DescribedModel, DescribeModel
from streaming.errors import ModelUnsupported

_PROBE_TOKENS = 3
# Keywords of attention that we follow, and those that say nothing about its result.
_FOLLOWED = frozenset({"scaling", "sliding_window", "softcap"})
_WITHOUT_MEANING = frozenset({"dropout", "position_ids", "use_cache", "output_attentions", "output_hidden_states"})
_LAYER_TYPES = ("full_attention", "sliding_attention")


def describe(request: DescribeModel) -> DescribedModel:
    """The parameters and sizes of the class that `request.config` names.

    Raises:
        ModelUnsupported: transformers has no such class, or the engine could not compute it exactly.
    """
    model = build_class(request.config, request.dtype)
    parameters = described_parameters(model, request.tensors, TORCH_DTYPES[request.dtype])
    shape = probe(model)
    return DescribedModel(
        parameters=tuple(parameters),
        max_model_len_tokens=shape.max_position_embeddings,
        vocab_size=shape.vocab_size,
        kv_elements_per_token=shape.kv_elements_per_token,
    )


def probe(model: PreTrainedModel) -> TransformersShape:
    """The sizes of `model`, whose parameters are on meta, from what its layers ask for in one pass.

    Raises:
        ModelUnsupported: A layer asks for what our attention has not, or the pass needs values.
    """
    name, shell = type(model).__name__, copy.deepcopy(model)
    nn.Module.to(shell, "meta")
    config = shell.config
    # The usual way to run experts looks at dtypes and values, which meta tensors have not.
    config._experts_implementation = "batched_mm"  # noqa: SLF001 - transformers' own way to choose it
    halves, recorder = Halves(shell), Recorder()
    tokens = torch.zeros(_PROBE_TOKENS, dtype=torch.long, device="meta")
    try:
        with torch.inference_mode():
            hidden = halves.hidden(tokens, tokens, recorder)
            logits = halves.logits(hidden)
    except Exception as error:  # whatever its code raises
        raise ModelUnsupported(f"transformers' {name} cannot be driven by this engine: {error}") from error
    _check_calls(config, recorder.calls)
    if hidden.ndim != 2 or logits.shape[:-1] != (_PROBE_TOKENS,):
        raise ModelUnsupported(f"transformers' {name} gives logits of shape {list(logits.shape)}")
    _, kv_heads, _, head_dim = recorder.calls[0].key
    return TransformersShape(
        vocab_size=logits.shape[-1],
        hidden_size=hidden.shape[-1],
        intermediate_size=getattr(config, "intermediate_size", None) or 4 * hidden.shape[-1],
        num_layers=len(recorder.calls),
        num_heads=recorder.calls[0].query[1],
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=_max_position_embeddings(config),
    )


def _max_position_embeddings(config: Any) -> int:
    length_tokens = getattr(config, "max_position_embeddings", None)
    if type(length_tokens) is not int or length_tokens < 1:
        raise ModelUnsupported("config.json: max_position_embeddings is missing")
    return length_tokens


def _check_calls(config: Any, calls: list[Call]) -> None:
    """Every layer attends once, in a way that `AttentionSpec` can say, and caches as much as the others."""
    layers = [getattr(call.module, "layer_idx", None) for call in calls]
    if layers != list(range(config.num_hidden_layers)):
        raise ModelUnsupported(
            f"of {config.num_hidden_layers} layers, {layers} attend: all must, once and in order, for the KV cache"
        )
    for layer, call in enumerate(calls):
        if problem := _problem(call) or _window_problem(config, layer, call):
            raise ModelUnsupported(f"the attention of layer {layer} ({type(call.module).__name__}) {problem}")
    if len({call.key for call in calls}) > 1:
        raise ModelUnsupported("the layers' keys differ in their number of heads or channels, which is not served")


def _problem(call: Call) -> str:
    options = call.options
    unknown = sorted(
        name
        for name, value in options.items()
        if name not in _FOLLOWED | _WITHOUT_MEANING and not (name == "is_causal" and value)
    )
    if unknown:
        return f"has {unknown[0]!r}, which is not served"
    if not getattr(call.module, "is_causal", True):
        return "looks ahead"
    if call.masked or options.get("dropout"):
        return "has a mask or drops values"
    if call.key != call.value or call.query[2:] != call.key[2:] or call.key[2] != _PROBE_TOKENS:
        return f"has queries {list(call.query)}, keys {list(call.key)} and values {list(call.value)} of unlike shapes"
    if call.query[0] != 1 or call.query[1] % call.key[1]:
        return f"has {call.query[1]} heads for {call.key[1]} key heads"
    return ""


def _window_problem(config: Any, layer: int, call: Call) -> str:
    """Whether the layer's window is the one that its mask would have had, as transformers builds none for us."""
    kinds = getattr(config, "layer_types", None)
    kind = kinds[layer] if kinds else "sliding_attention"  # without types, all layers have the window if there is one
    if kind not in _LAYER_TYPES:
        return f"is of type {kind!r}, which is not served"
    said = getattr(config, "sliding_window", None) if kind == "sliding_attention" else None
    seen = call.options.get("sliding_window")
    longest = _max_position_embeddings(config)
    if min(seen or longest, longest) != min(said or longest, longest):
        return f"sees {seen} tokens, its config says {said}"
    return ""
