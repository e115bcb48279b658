"""A transformers model whose every parameter is a view of the arena: what `app.engine.skeleton` is to our decoder.

Takes a config.json that `app.engine.transformers_description` has described. Copies no weight and looks at none.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import nn

from app.engine.models.transformers_model import TransformersModel
from app.engine.skeleton import TORCH_DTYPES, assign_views, stored
from app.engine.transformers_class import build_class
from app.engine.transformers_description import probe
from app.engine.transformers_tensors import tied_names
from streaming.errors import CheckpointError
from streaming.messages import Extent

logger = logging.getLogger(__name__)


def bound_transformers_model(
    config_json: bytes, dtype: str, arena: torch.Tensor, extents: Mapping[str, Extent]
) -> TransformersModel:
    """The model in `dtype` ("BF16") that computes with `arena` (bytes,), on its device.

    Raises:
        CheckpointError: A parameter has no extent, or one of another size.
    """
    causal = build_class(config_json, dtype)
    shape = probe(causal)
    tied = tied_names(causal)
    views = {}
    for name, parameter in causal.state_dict().items():
        source = next((other for other in (name, *tied.get(name, ())) if other in extents), name)
        view = stored(source, arena, extents)
        if view.numel() != parameter.numel():
            raise CheckpointError(f"{name} has {view.numel()} elements, its config means {list(parameter.shape)}")
        views[name] = view.view(parameter.shape)
    assign_views(causal, views, arena)
    _move_buffers(causal, arena.device)
    logger.info("%d parameters of transformers' %s bound to the arena", len(views), type(causal).__name__)
    return TransformersModel(causal, shape, TORCH_DTYPES[dtype], arena.device)


def _move_buffers(causal: nn.Module, device: torch.device) -> None:
    """Everything that is no parameter to where the weights are; what was saved is there already."""
    for module in causal.modules():
        for tensors in (module._buffers, vars(module)):  # noqa: SLF001 - some classes keep tables as attributes
            for name, tensor in list(tensors.items()):
                if isinstance(tensor, torch.Tensor):
                    tensors[name] = tensor.to(device)
