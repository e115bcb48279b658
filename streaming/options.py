"""The settings that `streaming` takes, as plain values.

Knows no flag, variable or file: `app.settings` reads those and hands these in. Secrets are kept out of
every `repr`.
"""

from __future__ import annotations

import msgspec

MIB = 1 << 20
# How weights get to the device: chunk by chunk, or in whole shards by way of the disk.
DIRECT_GPU, HOST_STAGING = "direct-gpu", "host-staging"
_MOST_WRITERS = 4
_LANES_PER_SECOND_READ = 8
_LEAST_ROUNDS = 4
_LEAST_CHUNK_BYTES = MIB


class AzureOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How to reach and authenticate against Azure Blob Storage.

    `credential` is "auto" (first that is present, in the order of `streaming.credentials`) or one name
    of that order. `endpoint` is a full blob service URL (Azurite, private endpoints); without it the
    account's host is `https://{account_name}.{endpoint_suffix}`.
    """

    account_name: str | None = None
    account_key: str | None = None
    sas_token: str | None = None
    connection_string: str | None = None
    endpoint: str | None = None
    endpoint_suffix: str = "blob.core.windows.net"
    credential: str = "auto"
    client_id: str | None = None
    tenant_id: str | None = None
    authority_host: str | None = None
    federated_token_file: str | None = None

    def __repr__(self) -> str:
        """Names and public values; a secret shows only that it is set."""
        secret = {"account_key", "sas_token", "connection_string"}
        shown = {
            name: "***" if name in secret else value
            for name in self.__struct_fields__
            if (value := getattr(self, name)) is not None
        }
        return f"AzureOptions({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


class SourceOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How to read from any source.

    Timeouts are seconds. `request_timeout_s` is for all of one request, `read_timeout_s` for its next byte. `max_retries`
    counts retries of one request, not of the load; none begins once `retry_timeout_s` have passed since its first attempt.
    """

    azure: AzureOptions = AzureOptions()
    connect_timeout_s: float = 5.0
    read_timeout_s: float = 20.0
    request_timeout_s: float = 120.0
    max_retries: int = 8
    retry_timeout_s: float = 180.0


class HedgingOptions(msgspec.Struct, frozen=True, kw_only=True):
    """When a range is read a second time.

    It is slow after `floor_s` and `factor` times what three of four of its peers took. Such reads may ask for `budget_ratio` of
    the load's bytes, and one range; 0 is never.
    """

    budget_ratio: float = 0.05
    factor: float = 2.5
    floor_s: float = 0.1


class ThrottlingOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How hard to pull: reads at once go down to `min_lanes` where the source asks for less, or is slowed by them.

    `max_bandwidth_bytes_per_s` is over all lanes, None no limit; the first read of weights waits up to `start_jitter_s`.
    """

    min_lanes: int = 1
    max_bandwidth_bytes_per_s: int | None = None
    start_jitter_s: float = 0.0


class PipelineOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How many lanes fetch at once, each a chunk, and how many bytes such a ranged GET asks for at most."""

    lanes: int = 16
    chunk_bytes: int = 16 * MIB
    hedging: HedgingOptions = HedgingOptions()
    throttling: ThrottlingOptions = ThrottlingOptions()

    def chunk_bytes_for(self, load_bytes: int) -> int:
        """The chunks of a load of so many bytes: a few for every lane, or nobody could tell how far the load is."""
        return min(self.chunk_bytes, max(_LEAST_CHUNK_BYTES, -(-load_bytes // (_LEAST_ROUNDS * self.lanes))))

    @property
    def writers(self) -> int:
        """How many threads put fetched chunks at their addresses: four keep up with what sixteen cores fetch."""
        return min(self.lanes, _MOST_WRITERS)

    @property
    def landers(self) -> int:
        """How many fetched chunks are on their way to an address at once: one is checked while another is written."""
        return min(self.lanes, 2 * self.writers)

    @property
    def second_reads(self) -> int:
        """How many slow ranges are read a second time at once: an eighth of the lanes, so that memory stays bounded."""
        return max(1, self.lanes // _LANES_PER_SECOND_READ) if self.hedging.budget_ratio > 0 else 0

    @property
    def chunks_held(self) -> int:
        """The most chunks in host memory.

        A chunk arrives in pieces and is joined, so for a moment each read holds it twice; a lander holds one (and a damaged one
        until it has been read again), another waits for a lander, and a GPU's writer has two slots.
        """
        return self._held_by(self.lanes)

    def lanes_for(self, read_bytes: int) -> int:
        """How many lanes may read so much at once in the memory that was meant for chunks; at least one."""
        allowed_bytes = self.chunks_held * self.chunk_bytes
        fewer = range(self.lanes, 1, -1)
        return next((lanes for lanes in fewer if self._held_by(lanes) * read_bytes <= allowed_bytes), 1)

    def _held_by(self, lanes: int) -> int:
        fewer = msgspec.structs.replace(self, lanes=lanes)
        return 2 * (lanes + self.second_reads + fewer.writers) + fewer.landers + 1


class CacheOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Where fetched ranges are kept, and how much of that disk.

    `max_bytes` is for all blobs together, whoever wrote them; of the file system's size, the share `reserve_ratio` stays
    free, because a kubelet evicts pods below 10 % (of an image file system 15 %). At most `queue_bytes` of host
    memory wait to be written.
    """

    folder: str
    max_bytes: int = 100 << 30
    queue_bytes: int = 256 * MIB
    reserve_ratio: float = 0.15


class DestinationOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Which memory the weights land in.

    `device` is "cpu" or "cuda": the GPU that `visible_devices` names, as CUDA_VISIBLE_DEVICES has it. Without `host_fallback`, device memory
    that cannot be shared, or staging memory that cannot be pinned, is an error.
    """

    device: str = "cpu"
    visible_devices: str = "0"
    host_fallback: bool = True
