"""A family as the server and the engine see it, and the decoder's parameters in a checkpoint's own names.

Takes configs, gives names and shapes. Every family's parameters follow from its decoder config and its naming.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from app.families.checks import Config, FieldCheck
from app.families.decoder_config import DecoderConfig, ExpertsConfig


class TensorSpec(NamedTuple):
    """A tensor that the family's checkpoint must hold."""

    name: str
    shape: tuple[int, ...]


class Parameter(NamedTuple):
    """A parameter of the decoder, and the checkpoint's tensors that it is stacked of, in order."""

    name: str
    parts: tuple[TensorSpec, ...]


class Naming(NamedTuple):
    """What checkpoints call the parts of the decoder's fused matrices, and where they keep a layer's experts."""

    qkv: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    gate_up: tuple[str, ...] = ("gate_proj", "up_proj")
    experts: str = "mlp"
    expert_gate_up: tuple[str, ...] = ("gate_proj", "up_proj")
    expert_down: str = "down_proj"


def ignores(name: str, config: Config) -> bool:
    """Old checkpoints carry rope's frequencies; tied ones may carry the head a second time."""
    return name.endswith(".rotary_emb.inv_freq") or (
        name == "lm_head.weight" and bool(config.get("tie_word_embeddings"))
    )


class Family(NamedTuple):
    """One architecture.

    `contradiction` says what is wrong between fields that are each fine, or gives an empty string; `decoder` may
    rely on that. `ignores` says which further tensors of a checkpoint mean nothing.
    """

    model_type: str
    fields: Mapping[str, FieldCheck]
    required: tuple[str, ...]
    contradiction: Callable[[Config], str]
    decoder: Callable[[Config], DecoderConfig]
    naming: Naming = Naming()
    ignores: Callable[[str, Config], bool] = ignores

    def parameters(self, config: Config) -> list[Parameter]:
        """The decoder's parameters."""
        return list(_parameters(self.decoder(config), self.naming))

    def tensors(self, config: Config) -> list[TensorSpec]:
        """What the checkpoint must hold."""
        return [part for parameter in self.parameters(config) for part in parameter.parts]


def _parameters(config: DecoderConfig, naming: Naming) -> Iterator[Parameter]:
    hidden, vocab = config.hidden_size, config.vocab_size
    yield _same("model.embed_tokens.weight", (vocab, hidden))
    for layer, layer_config in enumerate(config.layers):
        prefix = f"model.layers.{layer}"
        yield from _attention(config, naming, f"{prefix}.self_attn")
        if layer_config.experts is None:
            yield from _feed_forward(config, naming, f"{prefix}.mlp")
        else:
            yield from _experts(config.hidden_size, layer_config.experts, naming, prefix)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield _same(f"{prefix}.{norm}.weight", (hidden,))
    yield _same("model.norm.weight", (hidden,))
    if not config.tie_word_embeddings:
        yield _same("lm_head.weight", (vocab, hidden))


def _attention(config: DecoderConfig, naming: Naming, prefix: str) -> Iterator[Parameter]:
    hidden, head_dim = config.hidden_size, config.head_dim
    q, kv = config.num_heads * head_dim, config.num_kv_heads * head_dim
    sizes = (q, kv, kv) if len(naming.qkv) > 1 else (q + 2 * kv,)
    yield from _stack(f"{prefix}.qkv_proj", _linears(prefix, naming.qkv, sizes), hidden, bias=config.qkv_bias)
    yield from _stack(f"{prefix}.o_proj", {f"{prefix}.o_proj": hidden}, q, bias=config.output_bias)
    if config.head_norms:
        yield _same(f"{prefix}.q_norm.weight", (head_dim,))
        yield _same(f"{prefix}.k_norm.weight", (head_dim,))


def _feed_forward(config: DecoderConfig, naming: Naming, prefix: str) -> Iterator[Parameter]:
    hidden, inner = config.hidden_size, config.intermediate_size
    sizes = (2 * inner // len(naming.gate_up),) * len(naming.gate_up)
    gate_up = _linears(prefix, naming.gate_up, sizes)
    yield from _stack(f"{prefix}.gate_up_proj", gate_up, hidden, bias=config.mlp_bias)
    yield from _stack(f"{prefix}.down_proj", {f"{prefix}.down_proj": hidden}, inner, bias=config.mlp_bias)


def _experts(hidden: int, experts: ExpertsConfig, naming: Naming, prefix: str) -> Iterator[Parameter]:
    """All experts' gates and ups are one matrix, each expert's two side by side, and all downs another."""
    inner = experts.intermediate_size
    ours, theirs = f"{prefix}.mlp", f"{prefix}.{naming.experts}"
    yield Parameter(f"{ours}.gate.weight", (TensorSpec(f"{theirs}.gate.weight", (experts.num_experts, hidden)),))
    each = [f"{theirs}.experts.{expert}" for expert in range(experts.num_experts)]
    gate_up = {f"{expert}.{part}": inner for expert in each for part in naming.expert_gate_up}
    yield from _stack(f"{ours}.experts.gate_up_proj", gate_up, hidden, bias=False)
    down = {f"{expert}.{naming.expert_down}": hidden for expert in each}
    yield from _stack(f"{ours}.experts.down_proj", down, inner, bias=False)


def _linears(prefix: str, parts: tuple[str, ...], outputs: tuple[int, ...]) -> dict[str, int]:
    """Outputs of each part, by its whole name."""
    return {f"{prefix}.{part}": size for part, size in zip(parts, outputs, strict=True)}


def _stack(name: str, outputs: Mapping[str, int], inputs: int, *, bias: bool) -> Iterator[Parameter]:
    """A projection whose rows are those of the checkpoint's, one after the other."""
    yield Parameter(
        f"{name}.weight", tuple(TensorSpec(f"{part}.weight", (size, inputs)) for part, size in outputs.items())
    )
    if bias:
        yield Parameter(f"{name}.bias", tuple(TensorSpec(f"{part}.bias", (size,)) for part, size in outputs.items()))


def _same(name: str, shape: tuple[int, ...]) -> Parameter:
    """A parameter that the checkpoint has as it is."""
    return Parameter(name, (TensorSpec(name, shape),))
