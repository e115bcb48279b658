"""`coldstream preflight` as a process: one JSON object or one table, and the exit code that serve would have."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from tests.e2e.test_refusals import check, coldstream, serve

ROOT = Path(__file__).parents[2]


def test_json_is_all_there_is_on_standard_output(pushed_demo, azure_environment):
    """One object, whose checks are those of docs/operating.md, in its order; exit 0."""
    done = coldstream("preflight", pushed_demo, "--json", "--device", "cpu", environ=azure_environment)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert (report["uri"], report["device"], report["would_serve"], report["exit_code"]) == (
        pushed_demo,
        "cpu",
        True,
        0,
    )
    section = (ROOT / "docs" / "operating.md").read_text().partition("## Before it starts: preflight")[2]
    documented = re.findall(r"^\| `([a-z-]+)` \|", section.partition("\n## ")[0], re.MULTILINE)
    assert [check["name"] for check in report["checks"]] == documented
    for entry in report["checks"]:
        assert entry.keys() == {"name", "status", "detail", "action", "figures"}
        assert entry["status"] in {"ok", "warning", "failed", "skipped"}
        assert bool(entry["action"]) == (entry["status"] in {"warning", "failed"})


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("/nonexistent",), 3),
        (("http://127.0.0.1:9/model", "--retry-timeout", "1"), 3),
        (("http://127.0.0.1:99999/model",), 3),
        (("http://[::1/model",), 3),
        (("http://127.0.0.1:9/model", "--load-strategy", "host-staging"), 3),
        (("DEMO", "--shard-count", "16"), 4),
        (("DEMO", "--max-model-len", "500000"), 4),
        (("DEMO", "--kv-cache-memory-bytes", "10000000000000"), 5),
        (("DEMO", "--tensor-parallel-size", "2"), 2),
        (("DEMO", "--no-such-flag"), 2),
    ],
)
def test_the_exit_code_is_the_one_that_serve_would_have(demo_model_dir, words, code):
    """The same words fail both alike, and preflight says so without a server."""
    words = [str(demo_model_dir) if word == "DEMO" else word for word in words]
    done = coldstream("preflight", *words, "--device", "cpu")
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert serve(*words, "--device", "cpu").returncode == code


@pytest.fixture
def without_torch(tmp_path):
    """An environment in which torch cannot be imported."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise ImportError('not here')\n")
    return {"PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT)))}


def test_a_torch_that_cannot_be_imported_is_found(demo_model_dir, without_torch):
    """Exit 6, as of a server whose engine dies again and again."""
    done = coldstream("preflight", str(demo_model_dir), "--device", "cpu", environ=without_torch)
    assert re.search(r"^torch +failed", done.stdout, re.MULTILINE)
    assert done.returncode == 6


@pytest.mark.slow
def test_a_torch_that_cannot_be_imported_ends_the_server(demo_model_dir, without_torch):
    """The engine dies of it until the server gives up, with the code that preflight gave."""
    assert serve(str(demo_model_dir), "--device", "cpu", environ=without_torch).returncode == 6


def test_the_table_is_for_people(demo_model_dir):
    """Without a terminal it has no colour; the last line is the verdict."""
    done = coldstream("preflight", str(demo_model_dir), "--device", "cpu")
    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    assert done.stdout.splitlines()[-1] == f"{demo_model_dir} would be served here"
    assert "Traceback" not in done.stderr


def test_usage_leaves_standard_output_empty():
    """A program that reads JSON gets none, exit 2 and a line on standard error."""
    done = coldstream("preflight", "--json")
    assert (done.returncode, done.stdout) == (2, "")
    assert "no model" in done.stderr


def test_serve_names_half_an_identity_itself():
    """The server's own start says what preflight says, without asking any other credential."""
    environ = {
        "AZURE_STORAGE_ACCOUNT_NAME": "account",
        "AZURE_TENANT_ID": "tenant",
        "AZURE_FEDERATED_TOKEN_FILE": "/var/run/secrets/azure/tokens/azure-identity-token",
    }
    check(serve("az://models/llama", environ=environ), 3, "AccessDenied", "AZURE_CLIENT_ID is not set", "label the pod")
