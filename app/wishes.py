"""What the settings ask of a model, compared with what there is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from app.messages import EngineOptions
from app.model_support import SupportedModel
from app.sampling_defaults import SamplingDefaults, read_sampling_defaults
from app.settings import Settings
from streaming.errors import CheckpointError, ModelUnsupported

# A server that cannot hold one sequence of this length is of no use to anybody.
_USEFUL_TOKENS = 2048


@dataclass(frozen=True)
class Wishes:
    """Model and engine settings; `shard_count` None means any number, `generation_config` is "auto" or "vllm"."""

    dtype: str
    shard_count: int | None
    warmup_prompt: str
    generation_config: str
    engine: EngineOptions

    @classmethod
    def of(cls, settings: Settings) -> Wishes:
        """What these settings ask for."""
        return cls(
            dtype=settings.model.dtype,
            shard_count=settings.model.shard_count,
            warmup_prompt=settings.startup.warmup_prompt,
            generation_config=settings.model.generation_config,
            engine=settings.engine_options(),
        )

    def check(self, model: SupportedModel, shards: int) -> None:
        """Whether `model`, in so many shards, is what was asked for.

        Raises:
            CheckpointError: Another number of shards.
            ModelUnsupported: A longer context than the model was made for.
        """
        if self.shard_count is not None and self.shard_count != shards:
            raise CheckpointError(
                f"model.shard_count is {self.shard_count}, but the checkpoint has {shards}: correct one of them"
            )
        length_tokens = self.engine.max_model_len_tokens
        if length_tokens is not None and length_tokens > model.max_model_len_tokens:
            raise ModelUnsupported(
                f"--max-model-len {length_tokens} is more than the model's {model.max_model_len_tokens} tokens"
            )

    def sampling_defaults(self, files: Mapping[str, bytes]) -> SamplingDefaults:
        """What the checkpoint recommends for sampling, unless that is to be ignored.

        Raises:
            ModelUnsupported: It cannot be obeyed.
        """
        return read_sampling_defaults(files) if self.generation_config == "auto" else SamplingDefaults()

    def least_cache_bytes(self, model: SupportedModel) -> int:
        """What must be left beside the weights: the cache that was asked for, or one useful sequence."""
        length_tokens = self.engine.max_model_len_tokens or min(model.max_model_len_tokens, _USEFUL_TOKENS)
        return self.engine.kv_cache_bytes or length_tokens * model.kv_bytes_per_token
