"""The empty model and its binding to the arena.

Takes config.json, the arena's bytes and the extents, gives a model whose every parameter is a view of the
arena. Copies nothing and looks at no value, so it does not matter whether the weights have arrived.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import msgspec
import torch
from torch import nn

from app.engine.models.decoder import Decoder
from app.families.registry import decoder_config
from streaming.errors import CheckpointError
from streaming.messages import Extent

logger = logging.getLogger(__name__)

# Names as safetensors writes them; the dtypes that a parameter may have in the arena.
TORCH_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_EMBEDDING = "model.embed_tokens.weight"


def build_skeleton(
    config_json: bytes, extents: Mapping[str, Extent], device: torch.device, max_model_len_tokens: int | None = None
) -> Decoder:
    """The model that will compute on `device`, with every parameter on meta, in the dtype of the arena's embedding.

    Args:
        config_json: Of a model that `app.model_support` accepted.
        extents: By parameter name.
        device: Where the arena is.
        max_model_len_tokens: The longest sequence; None means the model's own limit.

    Raises:
        CheckpointError: The arena has no embedding, or its dtype is not one of ours.
    """
    dtype = _torch_dtype(_EMBEDDING, _extent(_EMBEDDING, extents))
    config = decoder_config(msgspec.json.decode(config_json))
    model = Decoder(config, dtype, device, max_model_len_tokens or config.max_position_embeddings)
    elements = 0
    for name, parameter in model.named_parameters():
        if not parameter.is_meta:
            raise RuntimeError(f"{name} was allocated before the arena was there")
        elements += parameter.numel()
    logger.info("%d parameters on meta", elements)
    return model


def bind(model: Decoder, arena: torch.Tensor, extents: Mapping[str, Extent]) -> None:
    """Make every parameter of `model` a view of `arena` (bytes,), found by its name in `extents`.

    Raises:
        CheckpointError: A parameter has no extent, or one of another shape, dtype or place.
    """
    views = {name: _view(name, parameter, arena, extents) for name, parameter in model.state_dict().items()}
    assign_views(model, views, arena)
    logger.info("%d parameters bound to the arena", len(views))


def assign_views(module: nn.Module, views: Mapping[str, torch.Tensor], arena: torch.Tensor) -> None:
    """Make `views` (by name) the parameters and saved buffers of `module`; all of them lie in `arena` then."""
    module.load_state_dict(views, assign=True)
    start, end = arena.data_ptr(), arena.data_ptr() + arena.nbytes
    for name, tensor in module.state_dict().items():
        if not start <= tensor.data_ptr() <= tensor.data_ptr() + tensor.nbytes <= end:
            raise RuntimeError(f"{name} is not a view of the arena")


def _view(name: str, parameter: torch.Tensor, arena: torch.Tensor, extents: Mapping[str, Extent]) -> torch.Tensor:
    extent = _extent(name, extents)
    dtype = _torch_dtype(name, extent)
    if extent.shape != tuple(parameter.shape) or dtype is not parameter.dtype:
        raise CheckpointError(
            f"{name} is {extent.dtype} {list(extent.shape)} in the checkpoint "
            f"but the config needs {parameter.dtype} {list(parameter.shape)}"
        )
    end = extent.start + extent.nbytes
    if extent.nbytes != parameter.nbytes or end > arena.nbytes:
        raise CheckpointError(f"{name} lies at bytes [{extent.start}, {end}) of an arena of {arena.nbytes}")
    return stored(name, arena, extents)


def stored(name: str, arena: torch.Tensor, extents: Mapping[str, Extent]) -> torch.Tensor:
    """The tensor of this name, as a view of `arena` (bytes,).

    Raises:
        CheckpointError: It has no extent, or a dtype that is not one of ours.
    """
    extent = _extent(name, extents)
    flat = arena[extent.start : extent.start + extent.nbytes]
    return flat.view(_torch_dtype(name, extent)).view(extent.shape)


def _extent(name: str, extents: Mapping[str, Extent]) -> Extent:
    try:
        return extents[name]
    except KeyError as error:
        raise CheckpointError(f"the checkpoint has no {name}, which the config needs") from error


def _torch_dtype(name: str, extent: Extent) -> torch.dtype:
    try:
        return TORCH_DTYPES[extent.dtype]
    except KeyError as error:
        raise CheckpointError(f"{name} is {extent.dtype}, which the engine does not compute with") from error
