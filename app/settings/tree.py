"""The whole tree of settings and its table.

Knows no source and no precedence.
"""

from __future__ import annotations

import msgspec

from app.errors import UsageError
from app.messages import EngineOptions
from app.settings.device import Device
from app.settings.kinds import shown_bytes
from app.settings.model import ModelSettings, StartupSettings
from app.settings.serving import EngineSettings, ObservabilitySettings, ServerSettings
from app.settings.storage import StorageSettings
from app.settings.table import Section, rows_of
from streaming.options import DestinationOptions

SECTIONS: dict[str, type[Section]] = {
    "model": ModelSettings,
    "startup": StartupSettings,
    "storage": StorageSettings,
    "engine": EngineSettings,
    "server": ServerSettings,
    "observability": ObservabilitySettings,
}
ROWS = rows_of(SECTIONS)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that was configured.

    `device` is what `engine.device` means on this machine, known for `serve` only. `notices` are lines to log: settings that were given and change nothing, and what was reduced to fit.
    """

    model: ModelSettings = ModelSettings()
    startup: StartupSettings = StartupSettings()
    storage: StorageSettings = StorageSettings()
    engine: EngineSettings = EngineSettings()
    server: ServerSettings = ServerSettings()
    observability: ObservabilitySettings = ObservabilitySettings()
    device: Device = Device("cpu", "")
    notices: tuple[str, ...] = ()

    def destination_options(self) -> DestinationOptions:
        """What the loader takes to choose its memory."""
        return DestinationOptions(
            device=self.device.kind, visible_devices=self.device.visible, host_fallback=self.model.pinned_host_fallback
        )

    def engine_options(self) -> EngineOptions:
        """What the engine process takes."""
        return EngineOptions(
            device=self.device.kind,
            host_fallback=self.model.pinned_host_fallback,
            gpu_memory_utilization=self.engine.gpu_memory_utilization,
            max_model_len_tokens=self.model.max_model_len,
            max_num_seqs=self.engine.max_num_seqs,
            max_num_batched_tokens=self.engine.max_num_batched_tokens,
            block_size_tokens=self.engine.block_size,
            prefix_caching=self.engine.prefix_caching,
            kv_cache_bytes=self.engine.kv_cache_bytes,
            kernels_dir=self.engine.kernels_dir,
        )


def check_served(settings: Settings) -> None:
    """Refuse what cannot be served.

    Raises:
        UsageError: There is no model, it asks for several GPUs, or its bandwidth lets no chunk land before the load counts as stalled.
    """
    if not settings.model.uri:
        raise UsageError(
            "no model: write `coldstream serve URI` (before flags that take several words), or set COLDSTREAM_MODEL"
        )
    if settings.engine.tensor_parallel_size > 1:
        raise UsageError("engine.tensor_parallel_size: not yet: this version serves on one device; use 1")
    chunk_bytes, stall_s = settings.storage.pipeline_options().chunk_bytes, settings.startup.stall_timeout_s
    bytes_per_s = settings.storage.max_bandwidth_bytes_per_s
    if bytes_per_s is not None and chunk_bytes > stall_s * bytes_per_s:
        raise UsageError(
            f"storage.max_bandwidth_bytes_per_s: a chunk of {shown_bytes(chunk_bytes)} takes {chunk_bytes / bytes_per_s:.0f} s, "
            f"longer than --stall-timeout ({stall_s:g} s): make --chunk-bytes smaller, or one of the two others larger"
        )
