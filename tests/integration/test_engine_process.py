"""The engine as a process of its own, spoken to over a socket pair as the server does."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models

from app.messages import (
    Abort,
    BindArena,
    ConvertedTokenizer,
    ConvertTokenizer,
    DescribedModel,
    DescribeModel,
    EngineFailed,
    EngineOptions,
    EngineReady,
    EngineStats,
    FromEngine,
    RequestFailed,
    SamplingParams,
    StartEngine,
    StepOutput,
    Submit,
    WeightsLanded,
)
from streaming.messages import ArenaMemory, Origin, PhaseTimed
from streaming.wire import Connection
from tests.integration.packed_class import packed_class
from tests.integration.packed_model import PackedModel, packed_model

TIMEOUT_S = 60.0
PROMPT = (3, 1, 4, 1, 5)
BLOCK_SIZE = 4


class Engine:
    """A running engine process and the server's end of its socket."""

    def __init__(self, stderr: Path, **environ: str):
        ours, theirs = socket.socketpair()
        self.stderr = stderr
        with theirs, stderr.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "app.engine", str(theirs.fileno()), str(os.getpid())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stderr=log,
                env=dict(os.environ) | environ,
            )
        self.connection: Connection[FromEngine] = Connection(ours, FromEngine)
        self.connection.send(StartEngine())
        self.phases: list[PhaseTimed] = []
        self.seen: set[str] = set()  # whose tokens came

    def next(self) -> FromEngine:
        """The next message that is neither a phase nor tells how full it is; phases are kept."""
        while True:
            assert self.connection.poll(TIMEOUT_S), self.stderr.read_text()
            message, _ = self.connection.recv()
            if isinstance(message, PhaseTimed):
                self.phases.append(message)
            elif not isinstance(message, EngineStats):
                return message

    def wait_for_phase(self, name: str) -> None:
        """Read up to the end of a phase, before which nothing but phases may come."""
        while not any(phase.name == name for phase in self.phases):
            assert self.connection.poll(TIMEOUT_S), self.stderr.read_text()
            message, _ = self.connection.recv()
            assert isinstance(message, PhaseTimed), message
            self.phases.append(message)

    def generate(self, request_id: str, prompt=PROMPT, **sampling) -> list[int]:
        """The tokens of one greedy sequence."""
        params = SamplingParams(**{"max_tokens": 8, "temperature": 0.0} | sampling)
        self.connection.send(Submit(request_id, tuple(prompt), params))
        tokens, finish_reason = [], None
        while finish_reason is None:
            message = self.next()
            assert isinstance(message, StepOutput), message
            for token in message.tokens:
                self.seen.add(token.request_id)
                if token.request_id == request_id:
                    tokens.append(token.token_id)
                    finish_reason = token.finish_reason
        return tokens

    def close(self) -> int:
        """Hang up, as a dead server does; the exit code."""
        self.connection.close()
        return self.process.wait(TIMEOUT_S)


@pytest.fixture
def start(tmp_path):
    """Start engines that do not outlive the test."""
    with contextlib.ExitStack() as stack:

        def start_one(**environ: str) -> Engine:
            engine = Engine(tmp_path / "stderr", **environ)
            stack.callback(engine.process.wait)
            stack.callback(engine.process.kill)
            stack.callback(engine.connection.close)
            return engine

        yield start_one


@pytest.fixture
def arena():
    """Make memfd arenas; what is written to one later shows in every mapping of it."""
    with contextlib.ExitStack() as stack:

        def make(nbytes: int) -> int:
            fd = os.memfd_create("arena")
            stack.callback(os.close, fd)
            os.ftruncate(fd, nbytes)
            return fd

        yield make


def bind(engine: Engine, packed: PackedModel, fd: int, **options) -> None:
    engine.connection.send(
        BindArena(
            origin=Origin(arena_id="test"),
            config=packed.config_json,
            extents=packed.extents,
            memory=ArenaMemory("host", len(packed.arena)),
            options=EngineOptions(**{"block_size_tokens": BLOCK_SIZE} | options),
            transformers_dtype=packed.transformers_dtype,
        ),
        [fd],
    )


def reference_tokens(packed: PackedModel, prompt=PROMPT, max_tokens: int = 8) -> list[int]:
    ids = torch.tensor([prompt])
    mask = torch.ones_like(ids)
    return packed.reference.generate(ids, attention_mask=mask, max_new_tokens=max_tokens, do_sample=False)[
        0, len(prompt) :
    ].tolist()


def test_weights_that_land_after_the_binding_are_served(start, arena):
    """Bound and warmed on an empty arena, then landed: greedy tokens are transformers', without transformers."""
    packed = packed_model()
    engine = start(PYTHONPROFILEIMPORTTIME="1")
    fd = arena(len(packed.arena))
    bind(engine, packed, fd, max_model_len_tokens=40, max_num_seqs=2)
    engine.wait_for_phase("engine.warmup")
    os.pwrite(fd, packed.arena, 0)
    engine.connection.send(WeightsLanded(PROMPT))
    warmup_prompt = (PROMPT * 16)[:16]
    (first_token_id,) = reference_tokens(packed, warmup_prompt, max_tokens=1)
    assert engine.next() == EngineReady(max_model_len_tokens=40, kv_cache_blocks=20, first_token_id=first_token_id)
    assert [phase.name for phase in engine.phases] == [
        "engine.exec",
        "engine.import",
        "engine.bind",
        "engine.cache",
        "engine.warmup",
        "weights.load",
        "engine.first_pass",
    ]
    ends = [mark for phase in engine.phases for mark in (phase.start_s, phase.end_s)]
    assert ends == sorted(ends)

    assert engine.generate("a") == reference_tokens(packed)
    engine.connection.send(Submit("b", PROMPT, SamplingParams(max_tokens=36)))
    refused = engine.next()
    assert isinstance(refused, RequestFailed)
    assert refused.request_id == "b"
    engine.connection.send(Submit("c", PROMPT, SamplingParams(max_tokens=30, temperature=0.0)))
    engine.connection.send(Abort("c"))
    engine.generate("heard after the abort")
    engine.seen.clear()
    assert engine.generate("d", (7, 7, 7)) == reference_tokens(packed, (7, 7, 7))
    assert engine.seen == {"d"}  # "c" would have had tokens left

    assert engine.close() == 0
    log = engine.stderr.read_text()
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in log.splitlines() if "import time" in line}
    assert "torch" in imported
    assert "transformers" not in imported
    assert "Warning" not in log


def test_bytes_that_are_not_numbers_do_not_stop_the_warm_up(start, arena):
    """An arena of NaN warms up; weights that stay NaN after landing are refused as a damaged checkpoint."""
    packed = packed_model()
    engine = start()
    fd = arena(len(packed.arena))
    os.pwrite(fd, b"\xff" * len(packed.arena), 0)
    bind(engine, packed, fd)
    engine.wait_for_phase("engine.warmup")
    engine.connection.send(WeightsLanded(()))
    failed = engine.next()
    assert isinstance(failed, EngineFailed)
    assert (failed.error.kind, failed.error.exit_code) == ("CheckpointError", 4)
    assert "logits are not finite" in failed.error.message
    assert engine.process.wait(TIMEOUT_S) == 4
    assert "Traceback" not in engine.stderr.read_text()


def test_a_tensor_that_is_missing_fails_the_engine_at_once(start, arena):
    """A checkpoint without a tensor that the config needs is refused before its weights land."""
    packed = packed_model()
    del packed.extents["model.layers.1.self_attn.qkv_proj.weight"]
    engine = start()
    bind(engine, packed, arena(len(packed.arena)))
    failed = engine.next()
    assert isinstance(failed, EngineFailed)
    assert "model.layers.1.self_attn.qkv_proj.weight" in failed.error.message
    assert engine.process.wait(TIMEOUT_S) == 4


def test_an_arena_that_is_too_small_fails_the_engine(start, arena):
    """Addresses beyond the memory that came with them are a device error, not a bus error."""
    packed = packed_model()
    engine = start()
    bind(engine, packed, arena(mmap.PAGESIZE))
    failed = engine.next()
    assert isinstance(failed, EngineFailed)
    assert (failed.error.kind, failed.error.exit_code) == ("DeviceError", 5)


def test_an_engine_without_a_server_ends_quietly(start):
    """The server's death before anything was said is the engine's end, without a word; Ctrl-C is not."""
    engine = start()
    engine.wait_for_phase("engine.import")
    engine.process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        engine.process.wait(0.3)
    assert engine.close() == 0
    assert engine.stderr.read_text() == ""


def test_an_engine_with_another_parent_does_not_start():
    """A parent that died before the engine could ask for its death is noticed."""
    with tempfile.TemporaryFile() as not_a_parent:
        command = [sys.executable, "-P", "-m", "app.engine", str(not_a_parent.fileno()), "1"]
        assert subprocess.run(command, timeout=TIMEOUT_S, check=False).returncode == 1


def test_a_tokenizer_is_converted_before_the_binding(start, arena):
    """Files that transformers can read come back as a tokenizer.json, and the engine goes on to bind."""
    vocabulary = {"[UNK]": 0, "hello": 1, "world": 2}
    tokenizer_json = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]")).to_str()
    engine = start()
    files = {
        "tokenizer.json": tokenizer_json.encode(),
        "tokenizer_config.json": json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}).encode(),
    }
    engine.connection.send(ConvertTokenizer(files))
    converted = engine.next()
    assert isinstance(converted, ConvertedTokenizer)
    assert Tokenizer.from_str(converted.tokenizer_json.decode()).get_vocab() == vocabulary
    packed = packed_model()
    bind(engine, packed, arena(len(packed.arena)))
    engine.wait_for_phase("engine.warmup")


def test_a_tokenizer_that_cannot_be_converted_fails_the_engine(start):
    """Files that no tokenizer can be made of are an unsupported model."""
    engine = start()
    engine.connection.send(ConvertTokenizer({"tokenizer.model": b"not a sentencepiece model"}))
    failed = engine.next()
    assert isinstance(failed, EngineFailed)
    assert (failed.error.kind, failed.error.exit_code) == ("ModelUnsupported", 4)
    assert engine.process.wait(TIMEOUT_S) == 4


def test_a_class_of_transformers_is_described_and_then_bound(start, arena):
    """The description comes before anything is bound; the engine then serves that class from the arena."""
    packed = packed_class("olmo2")
    engine = start()
    shapes = {name: extent.shape for name, extent in packed.extents.items()}
    engine.connection.send(DescribeModel(config=packed.config_json, dtype="F32", tensors=shapes))
    engine.wait_for_phase("engine.transformers")
    described = engine.next()
    assert isinstance(described, DescribedModel)
    assert {parameter.name for parameter in described.parameters} == packed.extents.keys()
    fd = arena(len(packed.arena))
    bind(engine, packed, fd)
    os.pwrite(fd, packed.arena, 0)
    engine.connection.send(WeightsLanded(PROMPT))
    while not isinstance(engine.next(), EngineReady):
        pass
    assert engine.generate("1", max_tokens=8) == reference_tokens(packed)


@pytest.mark.slow
def test_a_class_that_cannot_be_served_fails_the_engine(start):
    """An architecture without attention is an unsupported model, as is a tokenizer that cannot be converted."""
    engine = start()
    config = json.dumps({"architectures": ["MambaForCausalLM"], "model_type": "mamba"}).encode()
    engine.connection.send(DescribeModel(config=config, dtype="F32", tensors={}))
    engine.wait_for_phase("engine.transformers")
    failed = engine.next()
    assert isinstance(failed, EngineFailed)
    assert (failed.error.kind, failed.error.exit_code) == ("ModelUnsupported", 4)
