"""What a config's field may hold: small checks of a parsed JSON value, and the fields that most families share.

A check gives what is wrong with a value, or an empty string.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Config = Mapping[str, Any]
FieldCheck = Callable[[Any], str]


def anything(_value: Any) -> str:
    """A field that changes nothing in inference."""
    return ""


def positive(value: Any) -> str:
    """A whole number above 0."""
    return "" if type(value) is int and value > 0 else "must be a positive integer"


def optional_positive(value: Any) -> str:
    """A whole number above 0, or null."""
    return "" if value is None else positive(value)


def boolean(value: Any) -> str:
    """True, false or null."""
    return "" if value is None or isinstance(value, bool) else "must be true or false"


def number(value: Any) -> str:
    """Any number."""
    return "" if isinstance(value, int | float) and not isinstance(value, bool) else "must be a number"


def above_zero(value: Any) -> str:
    """A number above 0."""
    return number(value) or ("" if value > 0 else "must be above 0")


def text(value: Any) -> str:
    """A text or null."""
    return "" if value is None or isinstance(value, str) else "must be a text"


def names(value: Any) -> str:
    """A list of texts that is not empty."""
    fine = isinstance(value, list) and value and all(isinstance(name, str) for name in value)
    return "" if fine else "must be a list of names"


def indices(value: Any) -> str:
    """A list of whole numbers from 0 on, or null."""
    fine = value is None or (isinstance(value, list) and all(type(index) is int and index >= 0 for index in value))
    return "" if fine else "must be a list of layer numbers"


def token_ids_problem(value: Any) -> str:
    """What is wrong with an `eos_token_id`: it may be absent, one id or several."""
    ids = value if isinstance(value, list) else [] if value is None else [value]
    return "" if all(type(token_id) is int and token_id >= 0 for token_id in ids) else "must be token ids"


def only(*accepted: Any) -> FieldCheck:
    """One of these values and no other."""
    return lambda value: "" if value in accepted else f"only {' or '.join(map(repr, accepted))} is served yet"


# What any config may carry without changing a logit in inference.
_INERT: Mapping[str, FieldCheck] = dict.fromkeys(
    (
        "_name_or_path",
        "attention_dropout",
        "bos_token_id",
        "initializer_range",
        "pad_token_id",
        "transformers.js_config",
        "transformers_version",
        "unsloth_version",
        "use_cache",
    ),
    anything,
)

# Every family has these; the rest of a family's fields are in its own file.
COMMON_FIELDS: Mapping[str, FieldCheck] = {
    **_INERT,
    "architectures": names,
    "model_type": text,
    "dtype": text,
    "torch_dtype": text,
    "eos_token_id": token_ids_problem,
    "hidden_size": positive,
    "intermediate_size": positive,
    "num_hidden_layers": positive,
    "num_attention_heads": positive,
    "num_key_value_heads": optional_positive,
    "vocab_size": positive,
    "max_position_embeddings": positive,
    "rms_norm_eps": above_zero,
    "hidden_act": only("silu"),
    "tie_word_embeddings": boolean,
    "rope_theta": above_zero,
}

COMMON_REQUIRED = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
    "max_position_embeddings",
    "rms_norm_eps",
)
