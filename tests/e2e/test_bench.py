"""`coldstream bench` with real servers: a table, a JSON line, and nobody left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys

import psutil
import pytest

from app.settings.bench import COLUMNS
from tests.coldstream import alive, wait_for
from tests.e2e.test_refusals import check, coldstream


def test_both_strategies_are_measured_on_the_users_model(pushed_small, azure_environment):
    """One server after the other from Blob storage; every column of every run adds up, and no key of the user's is needed."""
    environ = {**azure_environment, "COLDSTREAM_API_KEY": "s3cret,s3cret too"}
    done = coldstream("bench", pushed_small, "--runs", "2", "--max-model-len", "512", environ=environ)
    assert done.returncode == 0, done.stderr
    header, direct, staged, _legend, verdict, report = done.stdout.splitlines()
    assert header.split() == ["strategy", *COLUMNS, "gain"]
    assert direct.startswith("direct-gpu ")
    assert staged.startswith("host-staging ")
    assert "fits one autoscaler cycle" in verdict
    found = json.loads(report)
    assert (found["uri"], found["device"], found["runs"].keys()) == (pushed_small, "cpu", found["figures"].keys())
    for run in [run for runs in found["runs"].values() for run in runs]:
        spans = [run[column] for column in COLUMNS]
        assert min(spans[0], *spans[2:]) > 0
        assert sum(spans[:4]) < run["cold_start_s"] + 0.01
    assert set(found["gain_pct"]) == {"host-staging"}
    order = re.findall(r"run (\d) of 2, (\S+):", done.stderr)
    assert order == [("1", "direct-gpu"), ("1", "host-staging"), ("2", "host-staging"), ("2", "direct-gpu")]
    assert "s3cret" not in done.stdout + done.stderr


def test_a_server_that_fails_ends_the_bench_with_its_code_and_reason(tmp_path):
    """The user learns what the server would have said."""
    check(coldstream("bench", str(tmp_path / "missing"), "--runs", "1"), 3, "BlobNotFound", "no such folder")
    check(coldstream("bench", str(tmp_path), "--device", "cpu", "--tensor-parallel-size", "2"), 2, "use 1")


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_a_bench_that_is_stopped_leaves_nobody(demo_model_dir, number, code):
    """Ctrl-C, a kill and a kill -9 take the server, its loader and its engine along, whose command lines tell no key."""
    bench = subprocess.Popen(
        [sys.executable, "-P", "-m", "app", "bench", str(demo_model_dir), "--api-key", "s3cret"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        family = wait_for(lambda: len(found := psutil.Process(bench.pid).children(recursive=True)) >= 3 and found)
        assert "s3cret" not in str([process.cmdline() for process in family])
        os.kill(bench.pid, number)
        _, errors = bench.communicate(timeout=40)
    finally:
        bench.kill()
    assert bench.returncode == code
    assert "Traceback" not in errors
    wait_for(lambda: not any(alive(process) for process in family), 2)
