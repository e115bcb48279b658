"""What the loader and the server tell each other, in the order in which it is said.

    server                          loader
      LoadRequest (+ arena fd)  ->            which checkpoint, how; with `resume`, what is left of it
                                <-  Described  config, metadata files, tensor entries
      Layout                    ->            which tensors to land, in which dtype, beside which
                                <-  Planned (+ arena fd)
                                <-  FellBack ...
                                <-  LandedChunks ...   or Staged (+ the shard's fd) ...
                                <-  PhaseTimed ...
                                <-  Counted ...
                                <-  Landed | LoadFailed

Knows no socket (`streaming.wire`) and no process. Times are seconds of CLOCK_BOOTTIME, so that the
marks of several processes share one clock with the kernel's process start times.
"""

from __future__ import annotations

import msgspec

from streaming.blocks import BlockDigests
from streaming.counters import FetchCounters
from streaming.errors import ErrorReport
from streaming.options import DIRECT_GPU, CacheOptions, DestinationOptions, PipelineOptions, SourceOptions


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """Which arena, which rank of it, and which incarnation of the sender a message belongs to."""

    arena_id: str
    rank: int = 0
    ranks: int = 1
    generation: int = 0


class Entry(msgspec.Struct, frozen=True):
    """One tensor as the checkpoint stores it.

    `dtype` is safetensors' name ("BF16"); `[start, end)` are absolute bytes of the shard's blob.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    shard: str
    start: int
    end: int


class BlobVersion(msgspec.Struct, frozen=True):
    """What one shard was when its header was read.

    `etag` is None where the source gives none; `modified_s` is a Unix time.
    """

    name: str
    size_bytes: int
    etag: str | None
    modified_s: float = 0.0

    @property
    def is_pinned(self) -> bool:
        """Whether the service itself can refuse another version: If-Match never matches a weak ETag."""
        return self.etag is not None and not self.etag.startswith("W/")


class TensorLayout(msgspec.Struct, frozen=True):
    """One tensor to land: its name in the checkpoint, its name in the arena, its dtype there."""

    source_name: str
    stored_name: str
    dtype: str


class Group(msgspec.Struct, frozen=True):
    """Tensors that lie side by side, so that the engine sees one matrix (concatenated along dim 0).

    `members` are stored names, in address order.
    """

    name: str
    members: tuple[str, ...]


class Extent(msgspec.Struct, frozen=True):
    """Where a tensor (or a whole group) lives: arena bytes `[start, start + nbytes)`."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    nbytes: int


class Segment(msgspec.Struct, frozen=True):
    """A piece of a chunk that goes to one arena address.

    `slot_start` and `slot_nbytes` are bytes of the fetched chunk in `source_dtype`; the copy at
    `arena_start` has `arena_nbytes` bytes in `stored_dtype`. Equal dtypes mean a plain copy.
    """

    slot_start: int
    slot_nbytes: int
    arena_start: int
    arena_nbytes: int
    source_dtype: str
    stored_dtype: str


class Chunk(msgspec.Struct, frozen=True):
    """One ranged GET: bytes `[start, end)` of a shard, and where its pieces go."""

    chunk_id: int
    shard: str
    start: int
    end: int
    segments: tuple[Segment, ...]

    @property
    def nbytes(self) -> int:
        """Bytes that the read fetches."""
        return self.end - self.start


class Plan(msgspec.Struct, frozen=True):
    """Every address and every read of one rank's load.

    `extents` maps stored names and group names to addresses. `digests` are of the shards whose reads are whole blocks, each of
    which is verified; reads of other shards are not.
    """

    arena_bytes: int
    extents: dict[str, Extent]
    chunks: tuple[Chunk, ...]
    versions: tuple[BlobVersion, ...]
    rank: int = 0
    ranks: int = 1
    digests: dict[str, BlockDigests] = {}

    @property
    def fetch_bytes(self) -> int:
        """Bytes that all its reads fetch."""
        return sum(chunk.nbytes for chunk in self.chunks)


class ArenaMemory(msgspec.Struct, frozen=True):
    """What the arena's descriptor stands for: `nbytes` of host memory (a memfd) or of the GPU.

    `kind` is "host", "device" or "staged". Device memory is rounded up to the driver's granularity. Staged memory
    has no descriptor: the engine makes it, of shards on disk.
    """

    kind: str
    nbytes: int


class Resume(msgspec.Struct, frozen=True):
    """What a dead loader left behind: its plan, its arena and the chunks that had landed."""

    plan: Plan
    memory: ArenaMemory
    landed_chunk_ids: tuple[int, ...]


class LoadRequest(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """The first message to a loader. With `resume`, the arena's fd travels with it.

    `strategy` is `DIRECT_GPU` or `HOST_STAGING`, which takes no `cache`. Without `refuse_mismatches` bytes whose digest
    differs from the manifest's are told (`FellBack`) and land.
    """

    origin: Origin
    uri: str
    strategy: str = DIRECT_GPU
    refuse_mismatches: bool = True
    source: SourceOptions
    pipeline: PipelineOptions
    destination: DestinationOptions = DestinationOptions()
    cache: CacheOptions | None = None
    resume: Resume | None = None


class Layout(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """What the model wants where. A tensor outside every group is a group of its own.

    `reserve_bytes` of device memory must be left beside the weights: the least KV cache.
    """

    origin: Origin
    tensors: tuple[TensorLayout, ...]
    groups: tuple[Group, ...] = ()
    reserve_bytes: int = 0


class Described(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """The checkpoint's headers. `files` are the metadata files that exist, by base name.

    `has_manifest` says whether the checkpoint brings digests of its bytes.
    """

    origin: Origin
    files: dict[str, bytes]
    entries: tuple[Entry, ...]
    versions: tuple[BlobVersion, ...]
    has_manifest: bool = False


class Planned(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """The plan, and when the first byte of it will be asked for (CLOCK_BOOTTIME); the arena's fd, if any, travels with it."""

    origin: Origin
    plan: Plan
    memory: ArenaMemory
    planned_s: float


class LandedChunks(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Chunks whose every byte is at its address since the last such message; none is a sign of life of who waits with reason."""

    origin: Origin
    chunk_ids: tuple[int, ...]


class Staged(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """This shard is on disk, whole, and its chunks with it; its descriptor travels with this."""

    origin: Origin
    shard: str


class FellBack(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Something was not to be had, and what was done instead; the reason is one line."""

    what: str
    reason: str


class Counted(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """What this loader has met until now; at most every second while it changes, and once more before a failure."""

    counters: FetchCounters


class PhaseTimed(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """One phase of the startup ledger; seconds of CLOCK_BOOTTIME."""

    name: str
    start_s: float
    end_s: float


# Upper bounds in seconds of what single reads are counted by; one more count is of those that took longer.
RANGE_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class RangeTime(msgspec.Struct, frozen=True, array_like=True):
    """One read: bytes `[start, end)` of a shard, from being asked for until they were there (CLOCK_BOOTTIME)."""

    start: int
    end: int
    start_s: float
    end_s: float


class RangeSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The reads of one shard: how many took how long (`RANGE_BUCKETS_S`, not cumulated), and the slowest, slowest first."""

    counts: tuple[int, ...]
    sum_s: float
    slowest: tuple[RangeTime, ...]


class ShardTimes(msgspec.Struct, frozen=True, kw_only=True):
    """One shard's way, each interval from its first chunk to its last: fetched, waiting in host memory, copied.

    A shard that went to disk whole was fetched, and that is all that is known of it.
    """

    shard: str
    nbytes: int
    fetch: tuple[float, float]
    stage: tuple[float, float] | None = None
    copy: tuple[float, float] | None = None
    ranges: RangeSummary | None = None


class LoadReport(msgspec.Struct, frozen=True, kw_only=True):
    """What one loader did: the bytes that this process fetched, when it had them, when they had landed.

    `shards` are those of which it fetched any: none where they are on a local disk already and stay there. `counters` are
    what it met on the way, its reads of metadata included.
    """

    fetched_bytes: int
    fetched_s: float
    landed_s: float
    shards: tuple[ShardTimes, ...] = ()
    counters: FetchCounters = msgspec.field(default_factory=FetchCounters)


class Landed(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Every byte of the plan is at its address."""

    origin: Origin
    report: LoadReport


class LoadFailed(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """The load cannot be completed; the loader exits after this."""

    origin: Origin
    error: ErrorReport


ToLoader = LoadRequest | Layout
FromLoader = Described | Planned | FellBack | LandedChunks | Staged | PhaseTimed | Counted | Landed | LoadFailed
