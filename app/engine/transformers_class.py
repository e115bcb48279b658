"""transformers' own class for a config.json: chosen, and built without a weight.

Takes a config, gives a module whose every parameter is on the meta device and whose buffers are what the class'
constructor computes. A config that the class does not know to the last field is refused: what nobody reads might
change the answer. Runs no code that comes with a checkpoint.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec
import torch
import transformers
from torch import nn
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from app.engine.skeleton import TORCH_DTYPES
from app.engine.transformers_attention import IMPLEMENTATION
from app.model_support import architecture
from streaming.errors import ModelUnsupported

# What hub configs carry beside the fields of their class without changing a logit: older names of fields that the
# class has under another, sizes that follow from others, wishes to libraries, notes of fine-tuning.
_INERT_FIELDS = frozenset(
    {
        "cache_implementation",
        "finetuning_task",
        "gradient_checkpointing",
        "hidden_act",
        "hidden_activation",
        "mlp_type",
        "n_ctx",
        "output_past",
        "sliding_window_size",
        "task_specific_params",
        "tokenizer_class",
        "transformers.js_config",
        "unsloth_version",
        "use_bfloat16",
        "use_cache",
    }
)
# Others look at the longest sequence of a step, so that one sequence's answer would depend on its neighbours.
_ROPE_TYPES = frozenset({"default", "linear", "llama3", "yarn"})


def build_class(config_json: bytes, dtype: str) -> PreTrainedModel:
    """The causal language model that a config.json names, in `dtype` ("BF16"), in evaluation mode.

    Raises:
        ModelUnsupported: transformers has no such class, no way to replace its attention, or refuses the config; or
            the model is none that this engine can drive.
    """
    values: dict[str, Any] = msgspec.json.decode(config_json)
    config = _config(values)
    model_class = _model_class(values, config)
    _check_config(values, config)
    config._attn_implementation = IMPLEMENTATION  # noqa: SLF001 - transformers' own way to choose it
    config.output_router_logits = False  # they are for a loss
    usual_dtype = torch.get_default_dtype()
    torch.set_default_dtype(TORCH_DTYPES[dtype])
    try:
        with no_init_weights(), _parameters_on_meta():
            model: PreTrainedModel = model_class(config)
    except Exception as error:  # transformers raises whatever its classes raise
        raise ModelUnsupported(f"transformers cannot build {model_class.__name__} of this config: {error}") from error
    finally:
        torch.set_default_dtype(usual_dtype)
    _check_modules(model)
    nn.Module.train(model, mode=False)
    return model


def _config(values: Mapping[str, Any]) -> PretrainedConfig:
    model_type = str(values.get("model_type"))
    if model_type not in CONFIG_MAPPING:
        raise ModelUnsupported(
            f"architecture {architecture(values)!r} (model_type {model_type!r}) is unknown to transformers "
            f"{transformers.__version__}, too"
        )
    config_class = CONFIG_MAPPING[model_type]
    try:
        config: PretrainedConfig = config_class.from_dict(dict(values))
        _check_fields(values, config, usual=config_class())
    except ModelUnsupported:
        raise
    except Exception as error:  # transformers raises whatever its checks raise
        reason = " ".join(str(error).split())
        raise ModelUnsupported(f"config.json: transformers refuses it: {reason}") from error
    return config


def _model_class(values: Mapping[str, Any], config: PretrainedConfig) -> type[PreTrainedModel]:
    name = architecture(values)
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if config.is_encoder_decoder:
        raise ModelUnsupported(f"architecture {name!r} is an encoder with a decoder, which is not served")
    if model_class is None or model_class.__name__ != name:
        raise ModelUnsupported(
            f"architecture {name!r} (model_type {config.model_type!r}) is no causal language model of transformers "
            f"{transformers.__version__}"
        )
    if not model_class._supports_attention_backend:  # noqa: SLF001 - how classes declare it
        raise ModelUnsupported(f"transformers' {name} does not let its attention be replaced, so it is not served")
    found: type[PreTrainedModel] = model_class
    return found


def _check_config(values: Mapping[str, Any], config: PretrainedConfig) -> None:
    name = architecture(values)
    if config.sub_configs:
        raise ModelUnsupported(
            f"{name} is made of several models ({', '.join(config.sub_configs)}): only text is served"
        )
    if getattr(config, "quantization_config", None) is not None:
        raise ModelUnsupported("config.json: quantization_config: only unquantised weights are served yet")
    if "type_vocab_size" in _field_names(config):
        raise ModelUnsupported(f"{name} is an encoder that can also be run as a decoder, which is not served")
    if getattr(config, "add_cross_attention", False):
        raise ModelUnsupported("config.json: add_cross_attention: there is nothing to attend to")


def _check_fields(values: Mapping[str, Any], config: PretrainedConfig, usual: PretrainedConfig) -> None:
    """Every field that says something is one of the class': `usual` is what it makes of no field at all."""
    known = _field_names(config) | _INERT_FIELDS
    for field, value in values.items():
        # What a class takes under an older name is gone by now or in its source; what it never heard of is an attribute.
        unheard = hasattr(config, field) and not hasattr(usual, field)
        if unheard and value and field not in known and not field.startswith("_") and not _is_read(field, config):
            raise ModelUnsupported(
                f"config.json: field {field!r} = {value!r} is not understood, not by transformers "
                f"{transformers.__version__} either, so nothing is guessed"
            )


def _is_read(field: str, config: PretrainedConfig) -> bool:
    """Whether the file of a config's class speaks of `field`."""
    return f'"{field}"' in inspect.getsource(sys.modules[type(config).__module__])


def _field_names(config: PretrainedConfig) -> set[str]:
    """What a config's class declares, under every name that it goes by."""
    declared = {field.name for field in dataclasses.fields(config)}
    rope = {"rope_scaling", "rope_theta"} if "rope_parameters" in declared else set()
    return declared | set(config.attribute_map) | rope


def _check_modules(model: PreTrainedModel) -> None:
    if model.base_model is model:
        raise ModelUnsupported(f"transformers' {type(model).__name__} does not tell its trunk from its head")
    for name, buffer in model.named_buffers():
        if not buffer.isfinite().all():
            raise ModelUnsupported(f"config.json means no number for {name!r}")
    for name, module in model.named_modules():
        rope_type = getattr(module, "rope_type", "default")
        for kind in rope_type.values() if isinstance(rope_type, dict) else (rope_type,):
            if kind not in _ROPE_TYPES:
                raise ModelUnsupported(
                    f"rope type {kind!r} looks at a whole step in transformers: only {', '.join(sorted(_ROPE_TYPES))}"
                )
        if isinstance(module, nn.modules.conv._ConvNd):  # noqa: SLF001 - the base of all
            raise ModelUnsupported(f"{name} is a convolution: only attention may look at other tokens")


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Every parameter that a module registers keeps its shape alone; buffers are computed as usual."""
    register = nn.Module.register_parameter

    def register_on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.detach().to("meta"), requires_grad=False)
        register(module, name, parameter)

    nn.Module.register_parameter = register_on_meta  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
