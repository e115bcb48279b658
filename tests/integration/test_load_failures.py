"""A load that cannot succeed: typed, named, in bounded time, without a secret."""

from __future__ import annotations

import pytest

from streaming.options import AzureOptions, SourceOptions
from tests.checkpoints import SMALL, random_shards, raw
from tests.loader import load
from tests.unit.checkpoints import write_checkpoint
from tools.blob_server import BlobServer, Fault


@pytest.mark.parametrize("etag", ["strong", "weak", "none"])
def test_a_blob_overwritten_between_header_and_range_is_refused(folder, etag):
    """Whatever ETag the source gives, two versions are never mixed."""
    random_shards(folder, megabytes=1)
    shard = folder / "model-00001.safetensors"

    overwrite = iter([True])

    def hook(request):
        """The header was read from 0; the first read of weights finds another file."""
        if request.path.endswith(shard.name) and request.start > 0 and next(overwrite, False):
            shard.write_bytes(shard.read_bytes() + b"x")

    with BlobServer(folder, etag=etag, hook=hook) as server:
        result = load(server.url, pipeline=SMALL)
    assert result.report is None
    assert result.error.kind == "BlobChanged"
    assert result.error.exit_code == 3
    assert "model-00001.safetensors" in result.error.message


def test_a_body_that_ends_early_is_asked_for_again(folder):
    """A cut connection costs a retry, not the load."""
    expected = random_shards(folder, megabytes=1)
    cuts = iter([True, True, True])

    def cut(request):
        if request.end - request.start > 10_000 and request.path.endswith(".safetensors"):
            return Fault(cut_after_bytes=5_000) if next(cuts, False) else None
        return None

    with BlobServer(folder, hook=cut) as server:
        result = load(server.url, pipeline=SMALL, source=SourceOptions(max_retries=5))
    assert result.error is None
    assert all(result.tensor(name) == raw(tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("status", [500, 503])
def test_a_source_that_keeps_failing_is_named(folder, status):
    """After every retry the error names the blob and the status, and the loader's exit code is 3."""
    random_shards(folder, megabytes=1)

    def fail(request):
        return Fault(status=status) if request.path.endswith("2.safetensors") and request.start > 0 else None

    with BlobServer(folder, hook=fail) as server:
        result = load(server.url, pipeline=SMALL)
    assert result.error.kind == "SourceUnavailable"
    assert "model-00002.safetensors" in result.error.message
    assert str(status) in result.error.message


KEY = "c2VjcmV0LXNlY3JldA=="


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"uri": "az://nothing-here/x"}, "BlobNotFound", "check account, container and prefix"),
        ({"uri": "az://models/nothing"}, "BlobNotFound", "check account, container and prefix"),
        ({"account_key": KEY}, "AccessDenied", "Storage Blob Data Reader"),
        ({"sas_token": "sv=2021-08-06&sig=c2VjcmV0LXNlY3JldA%3D%3D"}, "AccessDenied", "Storage Blob Data Reader"),
        ({"credential": "anonymous"}, "AccessDenied|BlobNotFound", "az://models"),
        ({"endpoint": "http://127.0.0.1:9/devstoreaccount1"}, "SourceUnavailable", "az://models"),
    ],
)
def test_what_is_wrong_with_an_azure_source_is_said(azurite_source, pushed_demo, change, kind, message):
    """Wrong container, prefix, key, token, credential or host: one line, exit 3, no secret."""
    azure = {name: getattr(azurite_source.azure, name) for name in azurite_source.azure.__struct_fields__}
    options = SourceOptions(
        azure=AzureOptions(**azure | {name: value for name, value in change.items() if name != "uri"}),
        max_retries=1,
        retry_timeout_s=5,
        connect_timeout_s=2,
    )
    result = load(change.get("uri", pushed_demo), source=options)
    assert result.error is not None
    assert result.error.kind in kind.split("|")
    assert message in result.error.message
    assert result.error.exit_code == 3
    assert "c2VjcmV0" not in result.error.message
    assert "\n" not in result.error.message


def test_no_credential_at_all_is_said(monkeypatch):
    """Without any credential the error says what to set, quickly and without a probe of the network."""
    monkeypatch.setenv("PATH", "/nonexistent")
    options = SourceOptions(azure=AzureOptions(account_name="nobody"), max_retries=0)
    result = load("az://models/x", source=options)
    assert result.error.kind == "AccessDenied"
    assert "AZURE_STORAGE_SAS_TOKEN" in result.error.message


@pytest.mark.parametrize(
    ("break_it", "kind", "message"),
    [
        (lambda f: [path.unlink() for path in f.glob("*.safetensors*")], "CheckpointError", "no other .safetensors"),
        (lambda f: (f / "two.safetensors").unlink(), "CheckpointError", "names two.safetensors"),
        (
            lambda f: (f / "two.safetensors").write_bytes((f / "two.safetensors").read_bytes()[:-1]),
            "CheckpointError",
            "two.safetensors: truncated",
        ),
        (lambda f: (f / "one.safetensors").write_bytes(b"\xff" * 64), "CheckpointError", "one.safetensors"),
        (lambda f: (f / "one.safetensors").write_bytes(b""), "CheckpointError", "one.safetensors"),
        (lambda f: (f / "model.safetensors.index.json").write_text("{}"), "CheckpointError", "weight_map"),
    ],
)
@pytest.mark.parametrize("remote", [False, True])
def test_broken_checkpoints_are_refused_by_name(folder, break_it, kind, message, remote):
    """A checkpoint that is not whole ends the load before a weight moves, with exit 4."""
    write_checkpoint(
        folder, {"one.safetensors": {"a": ("U8", (3,), b"abc")}, "two.safetensors": {"b": ("F32", (1,), bytes(4))}}
    )
    (folder / "config.json").write_text("{}")
    break_it(folder)
    with BlobServer(folder) as server:
        result = load(server.url if remote else str(folder))
    assert (result.error.kind, result.error.exit_code) == (kind, 4)
    assert message in result.error.message
    assert result.plan is None


def test_a_missing_folder_is_said():
    """A path that is not there is the source's error."""
    assert load("/nonexistent/model").error.kind == "BlobNotFound"
