"""Bad input: one line that says what happened and what to do, the right exit code, nobody left behind."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys

import httpx
import pytest

from tests.coldstream import ONE_THREAD, children_of, serving, wait_for
from tests.unit.checkpoints import write_checkpoint
from tools.blob_server import BlobServer
from tools.ports import free_port


def coldstream(*arguments, environ=None):
    """Run a command to its end; nobody it started may be left."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "app", *arguments],
        env={**ONE_THREAD, **os.environ, **(environ or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    output, errors = process.communicate(timeout=60)
    assert children_of(process.pid) == []
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def serve(*arguments, environ=None):
    """Run `serve` on a free port to its end."""
    return coldstream("serve", *arguments, "--host", "127.0.0.1", "--port", str(free_port()), environ=environ)


def check(done, exit_code, *parts):
    """The exit code, one telling line, no traceback."""
    assert done.returncode == exit_code, done.stderr
    (telling,) = [line for line in done.stderr.splitlines() if "ERROR" in line or line.startswith("coldstream: ")]
    assert all(part in telling for part in parts), telling
    assert "Traceback" not in done.stderr


@pytest.fixture
def tiny(tmp_path):
    """A whole, but senseless checkpoint."""
    folder = tmp_path / "tiny"
    write_checkpoint(
        folder, {"one.safetensors": {"a": ("U8", (3,), b"abc")}, "two.safetensors": {"b": ("F32", (1,), bytes(4))}}
    )
    (folder / "config.json").write_text(json.dumps({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}))
    return folder


def test_an_unsupported_architecture_costs_no_weight_byte(tiny):
    """Exit 4 before any shard is read beyond its header."""
    (tiny / "two.safetensors").unlink()
    write_checkpoint(
        tiny,
        {
            "one.safetensors": {"a": ("U8", (1 << 20,), bytes(1 << 20))},
            "two.safetensors": {"b": ("U8", (1 << 20,), bytes(1 << 20))},
        },
    )
    with BlobServer(tiny) as source:
        check(serve(source.url), 4, "ModelUnsupported", "GPT2LMHeadModel")
        shard_reads = [r for r in source.requests if r.path.endswith(".safetensors") and r.status == 206]
    assert shard_reads
    assert all(read.start == 0 and read.end <= 256 << 10 for read in shard_reads)


def test_an_unknown_config_field_is_named(tiny, demo_model_dir):
    """A field that might change the mathematics is not skipped over."""
    config = json.loads((demo_model_dir / "config.json").read_text())
    for path in demo_model_dir.iterdir():
        if path.is_file() and path.name != "config.json":
            (tiny / path.name).unlink(missing_ok=True)
            (tiny / path.name).symlink_to(path)
    (tiny / "config.json").write_text(json.dumps({**config, "attention_sinks": 4}))
    check(serve(str(tiny)), 4, "ModelUnsupported", "attention_sinks")


@pytest.mark.parametrize(
    ("spoil", "parts"),
    [
        (lambda f: shutil.rmtree(f), ("BlobNotFound", "no such folder")),
        (lambda f: [path.unlink() for path in f.glob("*.safetensors*")], ("CheckpointError", "only safetensors")),
        (lambda f: (f / "two.safetensors").unlink(), ("CheckpointError", "names two.safetensors")),
        (lambda f: (f / "one.safetensors").write_bytes(b"\xff" * 99), ("CheckpointError", "one.safetensors")),
        (lambda f: (f / "config.json").unlink(), ("ModelUnsupported", "no config.json")),
    ],
)
def test_a_broken_checkpoint(tiny, spoil, parts):
    """Each flaw is named."""
    spoil(tiny)
    check(serve(str(tiny)), 3 if parts[0] == "BlobNotFound" else 4, *parts)


def test_a_wrong_shard_count(demo_model_dir):
    """model.shard_count is compared with what is there."""
    check(serve(str(demo_model_dir), "--shard-count", "16"), 4, "shard_count is 16", "has 2")


def test_a_config_that_makes_no_sense(demo_model_dir, tiny):
    """Whatever stands in config.json, the answer is one line and exit 4."""
    for path in demo_model_dir.iterdir():
        if path.is_file() and path.name not in ("config.json", "generation_config.json"):
            (tiny / path.name).unlink(missing_ok=True)
            (tiny / path.name).symlink_to(path)
    config = json.loads((demo_model_dir / "config.json").read_text())
    (tiny / "config.json").write_text(json.dumps({**config, "torch_dtype": ["x"]}))
    check(serve(str(tiny)), 4, "ModelUnsupported")


def test_a_longer_context_than_the_model_has(demo_model_dir):
    """--max-model-len is compared with the model's own limit."""
    check(serve(str(demo_model_dir), "--max-model-len", "500000"), 4, "500000", "8192")


def test_a_cache_larger_than_the_machine(demo_model_dir):
    """An impossible KV cache is the device's error."""
    check(serve(str(demo_model_dir), "--kv-cache-memory-bytes", "10000000000000"), 5, "DeviceError", "available")


def test_sources_that_cannot_be_meant():
    """A malformed account or URL is one line and exit 3, not a dead loader."""
    check(
        serve("az://c/x", environ={"AZURE_STORAGE_ACCOUNT_NAME": "a b", "AZURE_STORAGE_SAS_TOKEN": "sv=1"}),
        3,
        "SourceError",
    )
    check(serve("http://[::1/x"), 3, "SourceError")


def test_a_refused_connection():
    """A source that is not there is named, in the time that was asked for."""
    check(serve("http://127.0.0.1:9/model", "--retry-timeout", "1"), 3, "SourceUnavailable", "http://127.0.0.1:9/model")


def test_a_wrong_container_and_key(azurite, azure_environment):
    """What Azure refuses is said without the key."""
    check(serve("az://not-there/x", environ=azure_environment), 3, "BlobNotFound", "az://not-there/x")
    wrong = azure_environment["AZURE_STORAGE_CONNECTION_STRING"].replace("AccountKey=", "AccountKey=d3JvbmcK")
    done = serve("az://models/x", environ={"AZURE_STORAGE_CONNECTION_STRING": wrong})
    check(done, 3, "AccessDenied")
    assert "d3Jvbmc" not in done.stdout + done.stderr


def test_no_account():
    """az:// without an account says what to set."""
    check(serve("az://models/x"), 3, "AZURE_STORAGE_ACCOUNT_NAME")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("--no-such-flag", "1"), "--no-such-flag"),
        (("--tensor-parallel-size", "2"), "not yet"),
        (("--load-format", "gguf"), "gguf"),
        (("--dtype", "int3"), "int3"),
    ],
)
def test_usage_errors(arguments, part):
    """Exit 2 before anything is started."""
    check(serve("/model", *arguments), 2, part)


def test_a_port_in_use():
    """Exit 6, and no child was started for it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = coldstream("serve", "/model", "--host", "127.0.0.1", "--port", str(port))
    check(done, 6, str(port), "--port")


def test_fail_linger_keeps_the_reason_on_health(tmp_path):
    """For as long as it was asked to, /health says why; then the server exits with the reason's code."""
    with serving(str(tmp_path / "missing"), "--fail-linger", "2", log_path=tmp_path / "log") as server:

        def failed():
            try:
                return server.health()[1]["state"] == "failed"
            except httpx.TransportError:
                return False

        wait_for(failed)
        status, health = server.health()
        assert server.client.get("/livez").status_code == 503
        _, wait_status = os.waitpid(server.pid, 0)
    assert status == 503
    assert "no such folder" in health["detail"]
    assert os.waitstatus_to_exitcode(wait_status) == 3


def test_inspect_tells_what_a_checkpoint_is(demo_model_dir, tiny):
    """Shards, tensors, bytes, dtypes, architecture, whether it can be served, and the memory."""
    done = coldstream("inspect", str(demo_model_dir))
    assert done.returncode == 0, done.stderr
    for part in ("LlamaForCausalLM", "272 in 2 shards", "BF16", "model-00002-of-00002.safetensors", "yes", "0.25 GiB"):
        assert part in done.stdout
    refused = coldstream("inspect", str(tiny))
    assert refused.returncode == 4
    assert "served        no" in refused.stdout
    check(coldstream("inspect", "/nonexistent"), 3, "no such folder")
