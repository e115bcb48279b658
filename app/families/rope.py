"""Rotary embedding in a config: which kinds a family may ask for, and what they say.

Understands both spellings: `rope_parameters`, and the older `rope_theta` with `rope_scaling`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from app.families.checks import Config, FieldCheck, above_zero, boolean
from app.families.decoder_config import (
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    RopeConfig,
    RopeScaling,
    YarnScaling,
)


def _factors(value: Any) -> str:
    fine = isinstance(value, list) and value and not any(above_zero(factor) for factor in value)
    return "" if fine else "must be a list of numbers above 0"


class _Kind(NamedTuple):
    """What a kind of scaling must say and what it may; a factor that is guessed would be a wrong answer."""

    needs: dict[str, FieldCheck]
    may: dict[str, FieldCheck]


_LONGROPE = _Kind(
    {"short_factor": _factors, "long_factor": _factors},
    dict.fromkeys(("factor", "attention_factor", "original_max_position_embeddings"), above_zero),
)
_KINDS: dict[str, _Kind] = {
    "default": _Kind({}, {}),
    "linear": _Kind({"factor": above_zero}, {}),
    "llama3": _Kind(
        dict.fromkeys(
            ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"), above_zero
        ),
        {},
    ),
    "yarn": _Kind(
        dict.fromkeys(("factor", "original_max_position_embeddings"), above_zero),
        dict.fromkeys(("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"), above_zero)
        | {"truncate": boolean},
    ),
    "longrope": _LONGROPE,
    "su": _LONGROPE,  # its first name
}
USUAL_KINDS = ("default", "linear", "llama3", "yarn")


def rope_check(kinds: Sequence[str], *, partial: bool = False) -> FieldCheck:
    """A check of `rope_parameters` or `rope_scaling` that lets these kinds pass.

    With `partial`, they may say that only a part of each head is rotated.
    """
    any_kind: dict[str, FieldCheck] = {"rope_theta": above_zero} | (
        {"partial_rotary_factor": above_zero} if partial else {}
    )
    return lambda value: _problem(value, kinds, any_kind)


def _problem(value: Any, kinds: Sequence[str], any_kind: dict[str, FieldCheck]) -> str:
    if value is None:
        return ""
    if not isinstance(value, dict):
        return "must be an object"
    kind = _kind(value)
    if kind not in kinds or value.get("type", kind) != kind:
        return f"rope type {value.get('type', kind)!r} is not served yet, only {', '.join(kinds)}"
    needs, may = _KINDS[kind]
    checks = needs | may | any_kind
    for name in sorted(value.keys() - {"type", "rope_type"}):
        if name not in checks:
            return f"rope parameter {name!r} is not understood"
    for name, check in checks.items():
        if value.get(name) is not None and (problem := check(value[name])):
            return f"rope parameter {name!r} {problem}"
        if value.get(name) is None and name in needs:
            return f"rope parameter {name!r} is missing"
    return ""


def _kind(values: Config) -> str:
    return str(values.get("rope_type") or values.get("type") or "default")


def _values(config: Config) -> Config:
    return config.get("rope_parameters") or config.get("rope_scaling") or {}


def rope_contradiction(config: Config, head_dim: int) -> str:
    """What is wrong between the fields that speak of rope."""
    if config.get("rope_parameters") and config.get("rope_scaling"):
        return "there are both rope_parameters and rope_scaling"
    rotary_dim = _rotary_dim(config, head_dim)
    if rotary_dim % 2 or not 0 < rotary_dim <= head_dim:
        return f"{rotary_dim} of {head_dim} channels of a head cannot be rotated in pairs"
    values = _values(config)
    for name in ("short_factor", "long_factor"):
        if name in values and len(values[name]) != rotary_dim // 2:
            return f"rope parameter {name!r} has {len(values[name])} factors for {rotary_dim // 2} pairs of channels"
    return ""


def rope_config(config: Config, head_dim: int, *, default_theta: float = 10_000.0) -> RopeConfig:
    """What a config that has been checked says of rope."""
    values = _values(config)
    theta = float(values.get("rope_theta") or config.get("rope_theta") or default_theta)
    scaling = _scaling(values, config)
    return RopeConfig(theta, _rotary_dim(config, head_dim), _attention_factor(values, scaling, config), scaling)


def _rotary_dim(config: Config, head_dim: int) -> int:
    share = _values(config).get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    return int(head_dim * share)


def _scaling(values: Config, config: Config) -> RopeScaling | None:
    kind = _kind(values)
    if kind == "linear":
        return LinearScaling(values["factor"])
    if kind == "llama3":
        names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        return Llama3Scaling(*(values[name] for name in names))
    if kind == "yarn":
        return YarnScaling(
            factor=values["factor"],
            original_max_position_embeddings=values["original_max_position_embeddings"],
            beta_fast=values.get("beta_fast") or 32,
            beta_slow=values.get("beta_slow") or 1,
            truncate=bool(values.get("truncate", True)),
        )
    if kind in ("longrope", "su"):
        original = config["original_max_position_embeddings"]
        return LongRopeScaling(tuple(values["short_factor"]), tuple(values["long_factor"]), original)
    return None


def _attention_factor(values: Config, scaling: RopeScaling | None, config: Config) -> float:
    """What a config says, or what the papers suggest for how far a context is stretched."""
    if values.get("attention_factor"):
        return float(values["attention_factor"])
    if isinstance(scaling, YarnScaling):
        mscale, all_dim = values.get("mscale"), values.get("mscale_all_dim")
        if mscale and all_dim:
            return _yarn_mscale(scaling.factor, mscale) / _yarn_mscale(scaling.factor, all_dim)
        return _yarn_mscale(scaling.factor, 1.0)
    if isinstance(scaling, LongRopeScaling):
        original = scaling.original_max_position_embeddings
        factor = values.get("factor") or config["max_position_embeddings"] / original
        return math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return 1.0


def _yarn_mscale(factor: float, mscale: float) -> float:
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0
