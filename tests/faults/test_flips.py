"""One flipped bit, in whichever block: mended if it was flipped on the way, refused if it lies there so."""

from __future__ import annotations

import os

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming.blocks import BlockDigests
from streaming.manifest import MANIFEST_NAME, parse_manifest
from streaming.options import PipelineOptions, SourceOptions
from tests.coldstream import serving
from tests.faults.blobs import Request
from tests.faults.conftest import BLOCK_BYTES, Checkpoint
from tests.faults.faults import Fault, FlipBit
from tests.faults.loading import FINE, load_here
from tests.faults.schedules import Plan, Rule
from tests.faults.server import FaultServer
from tests.loader import load

BLOCK_BY_BLOCK = PipelineOptions(lanes=4, chunk_bytes=BLOCK_BYTES)
BITS = st.integers(0, 8 * BLOCK_BYTES - 1)


def blocks_of(checkpoint: Checkpoint) -> dict[str, BlockDigests]:
    """Every file's, as the manifest has them."""
    manifest = parse_manifest((checkpoint.folder / MANIFEST_NAME).read_bytes())
    return {name: file.blocks(manifest.block_bytes) for name, file in manifest.files.items()}


class AtRest:
    """One bit of a blob, counted from its first, is another one in every answer that holds it."""

    def __init__(self, name: str, bit: int):
        self._name = name
        self._bit = bit

    def __call__(self, request: Request) -> Fault:
        """What this request meets."""
        holds = request.name == self._name and 8 * request.start <= self._bit < 8 * request.end
        return FlipBit(self._bit - 8 * request.start) if holds else Fault()


@st.composite
def weights_bits(draw: st.DrawFn, blocks: dict[str, BlockDigests]) -> tuple[str, int, int, int]:
    """A shard, one of its blocks `[start, end)` beyond the header, and a bit of it, counted from the shard's first."""
    name = draw(st.sampled_from(sorted(name for name in blocks if name.endswith(".safetensors"))))
    start, end = blocks[name].bounds(draw(st.integers(1, blocks[name].count - 1)))
    return name, start, end, draw(st.integers(8 * start, 8 * end - 1))


@settings(max_examples=10)
@given(bit=BITS)
def test_a_bit_flipped_on_the_way_is_mended_in_every_block(warm, tiny, bit):
    """Each block of each shard comes wrong once, is told by its digest, asked for once more and lands right."""
    plan = Plan((Rule(FlipBit(bit), weights_only=True),))
    with tiny.serve(plan) as server:
        outcome = load_here(server.url, SourceOptions(), BLOCK_BY_BLOCK)
    assert outcome.error is None, outcome.error
    tiny.check(outcome, plan)
    blocks = [of_file.count - 1 for name, of_file in blocks_of(tiny).items() if name.endswith(".safetensors")]
    assert outcome.counters.mismatches == sum(blocks) > 50


@settings(max_examples=10)
@given(bit=BITS)
def test_a_bit_flipped_on_the_way_is_mended_in_every_file(warm, tiny, bit):
    """So are configuration, tokenizer, index and headers; what says how they are to be, the manifest, comes as it is."""
    seen = {MANIFEST_NAME}

    def schedule(request: Request) -> Fault:
        is_first = request.name not in seen
        seen.add(request.name)
        return FlipBit(bit) if is_first else Fault()

    with FaultServer(tiny.folder, schedule) as server:
        outcome = load_here(server.url, SourceOptions(), FINE)
    assert outcome.error is None, outcome.error
    tiny.check(outcome, Plan())
    files = {each.name for each in server.requests if isinstance(each.fault, FlipBit)}
    assert {"config.json", "tokenizer.json", "model.safetensors.index.json"} < files


@settings(max_examples=15)
@given(bit=st.integers(0, 1 << 20))
def test_a_bit_flipped_in_the_manifest_lets_no_wrong_byte_in(warm, tiny, bit):
    """What it says may be none of the loader's business (an ETag); else the load is refused."""
    with FaultServer(tiny.folder, lambda request: FlipBit(bit) if request.name == MANIFEST_NAME else Fault()) as server:
        outcome = load_here(server.url, SourceOptions(), FINE)
    if outcome.error is None:
        tiny.check(outcome, Plan())
    else:
        assert (outcome.error.kind, outcome.error.exit_code) == ("CheckpointError", 4)


@settings(max_examples=5)
@given(data=st.data())
def test_a_bit_flipped_at_rest_never_reaches_the_arena(warm, tiny, data):
    """In whichever block of weights: an error with the blob and the range, and in the arena no byte but right ones and none."""
    name, start, end, bit = data.draw(weights_bits(blocks_of(tiny)))
    with FaultServer(tiny.folder, AtRest(name, bit)) as server:
        result = load(server.url, pipeline=FINE)
        assert (result.error.kind, result.error.exit_code) == ("CheckpointError", 4)
        assert f"{server.url}/{name} [{start}, {end})" in result.error.message
    (chunk,) = [chunk for chunk in result.plan.chunks if (chunk.shard == name and chunk.start <= start < chunk.end)]
    assert chunk.chunk_id not in result.landed_chunk_ids
    for segment in chunk.segments:
        assert os.pread(result.fd, segment.arena_nbytes, segment.arena_start) == bytes(segment.arena_nbytes)
    for tensor, expected in tiny.tensors.items():
        found, right = (np.frombuffer(each, np.uint8) for each in (result.tensor(tensor), expected))
        assert bool(((found == right) | (found == 0)).all()), f"{tensor} is corrupt"


def test_a_server_with_a_bit_flipped_at_rest_is_never_ready(tiny, tmp_path):
    """No answer of /health is 200, and the last ones say which blob and range."""
    name, blocks = next((name, each) for name, each in blocks_of(tiny).items() if name.endswith(".safetensors"))
    start, end = blocks.bounds(blocks.count - 1)
    with (
        FaultServer(tiny.folder, AtRest(name, 8 * end - 1)) as source,
        serving(source.url, "--device", "cpu", "--fail-linger", "20", log_path=tmp_path / "log") as server,
    ):
        answers = [(0, {"state": ""})]
        while answers[-1][1]["state"] != "failed":
            if server.state() is not None:
                answers.append(server.health())
    assert 200 not in {status for status, _ in answers}
    assert f"{source.url}/{name} [{start}, {end})" in f"{answers[-1][1]}"
