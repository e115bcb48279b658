"""Which of a checkpoint's tensors each parameter of a transformers class is made of.

Takes names and shapes. transformers' own renamings and conversions decide, as they do in `from_pretrained`; a
conversion is followed only if it lays tensors one after the other, because the arena can do that without a copy.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import torch
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from app.messages import DescribedParameter
from streaming.errors import ModelUnsupported

_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
_Shapes = Mapping[str, tuple[int, ...]]


def described_parameters(
    model: PreTrainedModel, tensors: Mapping[str, tuple[int, ...]], dtype: torch.dtype
) -> list[DescribedParameter]:
    """Every parameter and saved buffer of `model` that `tensors` (shapes by name) has, with its parts.

    Raises:
        ModelUnsupported: One is missing, one is left over, or one would have to be computed.
    """
    wanted, sources = model.state_dict(), _sources(model, tensors)
    precision = _Precision(model, dtype)
    parameters = []
    for name, source in sources.items():
        if name in wanted:
            parts = _parts(name, source)
            _check_shapes(name, tuple(wanted[name].shape), parts, tensors, joined=source.converter is not None)
            parameters.append(
                DescribedParameter(name, tuple(wanted[name].shape), precision.of(name, wanted[name]), parts)
            )
    _check_names(model, wanted, sources)
    return parameters


class _Source:
    """What becomes one parameter: names by the pattern that they matched, and how transformers joins them."""

    def __init__(self, converter: WeightConverter | None):
        self.converter = converter
        self.names: dict[str, list[str]] = defaultdict(list)


def _sources(model: PreTrainedModel, tensors: Iterable[str]) -> dict[str, _Source]:
    """By the parameter's name, or the checkpoint's where there is no such parameter."""
    transforms = get_model_conversion_mapping(model)
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    wanted, prefix = model.state_dict(), model.base_model_prefix
    sources: dict[str, _Source] = {}
    for name in sorted(tensors, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, prefix, wanted)
        if target not in wanted and name in wanted:
            target, pattern = name, None
        source = sources.setdefault(target, _Source(by_pattern[pattern] if pattern else None))
        source.names[pattern or name].append(name)
    return sources


def _check_names(model: PreTrainedModel, wanted: Mapping[str, torch.Tensor], sources: Mapping[str, _Source]) -> None:
    """Nothing is missing but what is tied to something that is there, nothing is left over but what is known to be."""
    tied = tied_names(model)
    missing = [
        name for name in wanted if name not in sources and not any(other in sources for other in tied.get(name, ()))
    ]
    if missing:
        raise ModelUnsupported(f"the checkpoint lacks {missing[0]!r}, which transformers' {type(model).__name__} has")
    ignored = [*(model._keys_to_ignore_on_load_unexpected or ()), r"rotary_emb\.inv_freq$"]  # noqa: SLF001
    for name, source in sources.items():
        if name not in wanted and not any(re.search(pattern, name) for pattern in ignored):
            stored = next(iter(source.names.values()))[0]
            raise ModelUnsupported(
                f"the checkpoint holds {stored!r}, which transformers' {type(model).__name__} does not have"
            )


def tied_names(model: PreTrainedModel) -> dict[str, list[str]]:
    """Names by each name that is tied to them; whichever a checkpoint has, the others are the same tensor."""
    groups: dict[str, list[str]] = defaultdict(list)
    for target, source in model.all_tied_weights_keys.items():
        groups[source].append(target)
    return {
        name: [other for other in (source, *targets) if other != name]
        for source, targets in groups.items()
        for name in (source, *targets)
    }


class _Precision:
    """The dtype of each parameter: the model's, but for those that a class keeps in float32."""

    def __init__(self, model: PreTrainedModel, dtype: torch.dtype):
        plan = model._get_dtype_plan(dtype)  # noqa: SLF001 - what `from_pretrained` asks
        self._kept = [re.compile(pattern.replace("*", ".*")) for pattern in plan]

    def of(self, name: str, tensor: torch.Tensor) -> str:
        """What `name` is stored as."""
        dtype = torch.float32 if any(pattern.search(name) for pattern in self._kept) else tensor.dtype
        if dtype not in _NAMES:
            raise ModelUnsupported(f"{name!r} is to be {dtype}, which is not served")
        return _NAMES[dtype]


def _parts(name: str, source: _Source) -> tuple[str, ...]:
    """The tensors that `name` is made of, in the order in which they lie in it."""
    if source.converter is None:
        (names,) = source.names.values()
        return tuple(names)
    columns = [source.names[pattern] for pattern in source.converter.source_patterns]
    if len({len(column) for column in columns}) > 1:
        raise ModelUnsupported(f"the checkpoint lacks some of the tensors that {name!r} is made of")
    match source.converter.operations:
        case [MergeModulelist(dim=0)] if len(columns) == 1:  # expert after expert
            return tuple(columns[0])
        case [MergeModulelist(dim=0), Concatenate(dim=1)]:  # and each expert's matrices side by side
            return tuple(part for expert in zip(*columns, strict=True) for part in expert)
        case [Concatenate(dim=0)] if len(columns[0]) == 1:
            return tuple(part for column in columns for part in column)
    done = ", ".join(type(operation).__name__ for operation in source.converter.operations)
    raise ModelUnsupported(
        f"{name!r} would have to be computed of the checkpoint's tensors ({done}), which is not served"
    )


def _check_shapes(name: str, shape: tuple[int, ...], parts: Sequence[str], tensors: _Shapes, *, joined: bool) -> None:
    """The parts' shapes are the parameter's, or fill it one after the other."""
    shapes = [tensors[part] for part in parts]
    if joined:
        inner = shape[len(shape) - len(shapes[0]) + 1 :]
        fits = all(part[1:] == inner for part in shapes) and sum(map(math.prod, shapes)) == math.prod(shape)
    else:
        fits = shapes == [shape]
    if not fits:
        raise ModelUnsupported(f"{parts[0]!r} has shape {list(shapes[0])}, its config means {list(shape)} of {name!r}")
