"""A model that transformers computes for us: what the engine is asked about it, and what its answer lays out.

Takes the config and the checkpoint's entries, then the engine's description of transformers' class. Free of torch and
of transformers; knows no address.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from app.messages import DescribedModel, DescribedParameter, DescribeModel
from app.model_support import SupportedModel, architecture, read_config, stop_token_ids, stored_dtype
from streaming.dtypes import BITS
from streaming.errors import ModelUnsupported
from streaming.messages import Entry, Group, TensorLayout
from streaming.plan import CASTABLE


def description_request(files: Mapping[str, bytes], entries: Sequence[Entry], *, dtype: str = "auto") -> DescribeModel:
    """What to ask the engine about a checkpoint that no family of ours accepts.

    Raises:
        ModelUnsupported: transformers need not be asked: it would have to run the checkpoint's own code, or to
            understand tensors that are quantised or not there.
    """
    config = read_config(files)
    if config.get("auto_map"):
        raise ModelUnsupported(f"config.json: auto_map = {config['auto_map']!r}: code beside the weights is never run")
    if config.get("quantization_config"):
        raise ModelUnsupported("config.json: quantization_config: only unquantised weights are served yet")
    stored = [entry for entry in entries if entry.dtype in CASTABLE]
    if not stored:
        raise ModelUnsupported(f"{architecture(config)!r}: the checkpoint has no tensor that could be a weight")
    return DescribeModel(
        config=files["config.json"],
        dtype=stored_dtype(config, stored[0].dtype, dtype),
        tensors={entry.name: entry.shape for entry in entries},
    )


def described_support(
    files: Mapping[str, bytes], entries: Sequence[Entry], request: DescribeModel, answer: DescribedModel
) -> SupportedModel:
    """How to serve this checkpoint with transformers' class.

    Raises:
        ModelUnsupported: A tensor that the class wants is missing, of another size or quantised.
    """
    config = read_config(files)
    by_name = {entry.name: entry for entry in entries}
    for parameter in answer.parameters:
        _check(parameter, by_name)
    return SupportedModel(
        architecture=architecture(config),
        dtype=request.dtype,
        max_model_len_tokens=answer.max_model_len_tokens,
        stop_token_ids=stop_token_ids(config, files),
        vocab_size=answer.vocab_size,
        tensors=tuple(layout for parameter in answer.parameters for layout in _layouts(parameter)),
        groups=tuple(
            Group(parameter.name, parameter.parts) for parameter in answer.parameters if len(parameter.parts) > 1
        ),
        weights_bytes=sum(math.prod(parameter.shape) * BITS[parameter.dtype] // 8 for parameter in answer.parameters),
        kv_bytes_per_token=answer.kv_elements_per_token * BITS[request.dtype] // 8,
        transformers_dtype=request.dtype,
    )


def _check(parameter: DescribedParameter, by_name: Mapping[str, Entry]) -> None:
    elements = 0
    for part in parameter.parts:
        entry = by_name.get(part)
        if entry is None:
            raise ModelUnsupported(f"the checkpoint lacks {part!r}, which its config calls for")
        if entry.dtype not in CASTABLE:
            raise ModelUnsupported(f"{part!r} is stored as {entry.dtype}: only unquantised weights are served yet")
        elements += math.prod(entry.shape)
    if elements != math.prod(parameter.shape):
        raise ModelUnsupported(
            f"{parameter.parts[0]!r} has shape {list(by_name[parameter.parts[0]].shape)}, "
            f"its config means {list(parameter.shape)} of {parameter.name!r}"
        )


def _layouts(parameter: DescribedParameter) -> Iterator[TensorLayout]:
    """A parameter that is one tensor has its own name in the arena, the parts of another keep theirs."""
    alone = len(parameter.parts) == 1
    for part in parameter.parts:
        yield TensorLayout(part, parameter.name if alone else part, parameter.dtype)
