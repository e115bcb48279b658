"""`coldstream preflight` as a process: one JSON object or one table, and the exit code that serve would have."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.e2e.test_refusals import coldstream, serve

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
    for check in report["checks"]:
        assert check.keys() == {"name", "status", "detail", "action", "figures"}
        assert check["status"] in {"ok", "warning", "failed", "skipped"}
        assert bool(check["action"]) == (check["status"] in {"warning", "failed"})


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("/nonexistent",), 3),
        (("http://127.0.0.1:9/model",), 3),
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


def test_the_table_is_for_people(demo_model_dir):
    """Without a terminal it has no colour; the last line is the verdict."""
    done = coldstream("preflight", str(demo_model_dir), "--device", "cpu")
    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    assert done.stdout.splitlines()[-1] == f"{demo_model_dir} would be served here"
    assert "Traceback" not in done.stderr
