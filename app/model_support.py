"""config.json to layout, or a refusal: which tensors the engine wants where, before any weight is fetched.

Takes the config, the checkpoint's entries and a dtype; pure and free of torch, because it runs in the server
while the weights wait for its answer. Knows no address. A config is accepted only if every field of it is
understood: a field that is not might change the mathematics, and a wrong answer is worse than none. What no family
accepts may still be a model for `app.described_model`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from app.families.checks import token_ids_problem
from app.families.family import Family, Parameter, TensorSpec
from app.families.registry import FAMILIES
from streaming.dtypes import BITS
from streaming.errors import ModelUnsupported
from streaming.messages import Entry, Group, Layout, Origin, TensorLayout
from streaming.plan import CASTABLE

_DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


class NoFamily(ModelUnsupported):
    """Our own decoder does not compute what this config says; transformers may."""


@dataclass(frozen=True)
class SupportedModel:
    """A model that the engine computes correctly.

    `dtype` is what its weights are stored in ("BF16"); `transformers_dtype` is None where our own decoder computes it,
    else the dtype of transformers' class.
    """

    architecture: str
    dtype: str
    max_model_len_tokens: int
    stop_token_ids: tuple[int, ...]
    vocab_size: int
    tensors: tuple[TensorLayout, ...]
    groups: tuple[Group, ...]
    weights_bytes: int
    kv_bytes_per_token: int
    transformers_dtype: str | None = None

    def layout(self, origin: Origin, reserve_bytes: int = 0) -> Layout:
        """What the loader needs to know of this model; `reserve_bytes` are kept free beside it."""
        return Layout(origin=origin, tensors=self.tensors, groups=self.groups, reserve_bytes=reserve_bytes)


def support(files: Mapping[str, bytes], entries: Sequence[Entry], *, dtype: str = "auto") -> SupportedModel:
    """How to serve this checkpoint.

    Args:
        files: Metadata files by base name; config.json decides, generation_config.json adds stop tokens.
        entries: Every tensor of the checkpoint.
        dtype: "auto" keeps the checkpoint's; else bfloat16, float16 or float32.

    Raises:
        NoFamily: No family has this architecture, or the family does not accept a field of the config.
        ModelUnsupported: A tensor is missing, of another shape or unknown, or the dtype is not computed with.
    """
    config = read_config(files)
    family = accepted_family(config)
    parameters = family.parameters(config)
    wanted = [part for parameter in parameters for part in parameter.parts]
    by_name = {entry.name: entry for entry in entries}
    _check_tensors(family, config, wanted, by_name)
    stored = stored_dtype(config, by_name[wanted[0].name].dtype, dtype)
    return SupportedModel(
        architecture=config["architectures"][0],
        dtype=stored,
        max_model_len_tokens=config["max_position_embeddings"],
        stop_token_ids=stop_token_ids(config, files),
        vocab_size=config["vocab_size"],
        tensors=tuple(layout for parameter in parameters for layout in _layouts(parameter, stored)),
        groups=tuple(_group(parameter) for parameter in parameters if len(parameter.parts) > 1),
        kv_bytes_per_token=family.decoder(config).kv_elements_per_token * BITS[stored] // 8,
        weights_bytes=sum(math.prod(spec.shape) * BITS[stored] // 8 for spec in wanted),
    )


def read_config(files: Mapping[str, bytes]) -> dict[str, Any]:
    """What config.json says.

    Raises:
        ModelUnsupported: It is missing or no JSON object.
    """
    return _decode(files, "config.json")


def _decode(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    if name not in files:
        raise ModelUnsupported(f"there is no {name} beside the weights: upload the whole checkpoint folder")
    try:
        return msgspec.json.decode(files[name], type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ModelUnsupported(f"{name} is not a JSON object: {error}") from error


def accepted_family(config: Mapping[str, Any]) -> Family:
    """The family that computes this config, every field of which it understands.

    Raises:
        NoFamily: There is none.
    """
    family = _family(config)
    _check_fields(family, config)
    return family


def _family(config: Mapping[str, Any]) -> Family:
    name = architecture(config)
    family = FAMILIES.get(name)
    if family is None or config.get("model_type") != family.model_type:
        raise NoFamily(
            f"architecture {name!r} (model_type {config.get('model_type')!r}) is of no family of our decoder"
        )
    return family


def architecture(config: Mapping[str, Any]) -> str:
    """The name of the class that a config asks for."""
    architectures = config.get("architectures")
    return str(architectures[0]) if isinstance(architectures, list) and architectures else "(none)"


def _check_fields(family: Family, config: Mapping[str, Any]) -> None:
    for name, value in config.items():
        if name not in family.fields:
            raise NoFamily(f"config.json: field {name!r} = {value!r} is not understood, so nothing is guessed")
        problem = family.fields[name](value)
        if problem:
            raise NoFamily(f"config.json: {name} = {value!r}: {problem}")
    for name in family.required:
        if config.get(name) is None:
            raise NoFamily(f"config.json: field {name!r} is missing")
    if problem := family.contradiction(config):
        raise NoFamily(f"config.json: {problem}")


def _check_tensors(
    family: Family, config: Mapping[str, Any], wanted: Sequence[TensorSpec], by_name: Mapping[str, Entry]
) -> None:
    for spec in wanted:
        entry = by_name.get(spec.name)
        if entry is None:
            raise ModelUnsupported(f"the checkpoint lacks {spec.name!r}, which its config calls for")
        if entry.shape != spec.shape:
            raise ModelUnsupported(f"{spec.name!r} has shape {list(entry.shape)}, its config means {list(spec.shape)}")
        if entry.dtype not in CASTABLE:
            raise ModelUnsupported(f"{spec.name!r} is stored as {entry.dtype}: only unquantised weights are served yet")
    unknown = by_name.keys() - {spec.name for spec in wanted}
    unexplained = sorted(name for name in unknown if not family.ignores(name, config))
    if unexplained:
        raise ModelUnsupported(f"the checkpoint holds {unexplained[0]!r}, which {family.model_type} does not have")


def _layouts(parameter: Parameter, stored: str) -> list[TensorLayout]:
    """What is stacked keeps its names, what is a parameter by itself gets the parameter's."""
    if len(parameter.parts) == 1:
        return [TensorLayout(parameter.parts[0].name, parameter.name, stored)]
    return [TensorLayout(part.name, part.name, stored) for part in parameter.parts]


def _group(parameter: Parameter) -> Group:
    """Side by side in the arena: one matrix product in the engine instead of several."""
    return Group(parameter.name, tuple(part.name for part in parameter.parts))


def stored_dtype(config: Mapping[str, Any], weights_dtype: str, dtype: str) -> str:
    """One dtype for the whole model, as transformers' "auto" has it: the config's word, else the weights'.

    Raises:
        ModelUnsupported: It is none that the engine computes with.
    """
    if dtype == "auto":
        dtype = config.get("dtype") or config.get("torch_dtype") or weights_dtype
    stored = _DTYPES.get(str(dtype), dtype)
    if stored not in _DTYPES.values():
        raise ModelUnsupported(f"dtype {dtype!r} is not computed with: ask for --dtype {' or '.join(_DTYPES)}")
    return stored


def stop_token_ids(config: Mapping[str, Any], files: Mapping[str, bytes]) -> tuple[int, ...]:
    """Where sequences end; generation_config.json wins over config.json, as in transformers.

    Raises:
        ModelUnsupported: It is said in a way that means no token.
    """
    generation = _decode(files, "generation_config.json") if "generation_config.json" in files else {}
    stop = generation.get("eos_token_id", config.get("eos_token_id"))
    if problem := token_ids_problem(stop):
        raise ModelUnsupported(f"eos_token_id = {stop!r}: {problem}")
    if stop is None:
        return ()
    return tuple(stop) if isinstance(stop, list) else (stop,)
