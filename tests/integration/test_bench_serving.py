"""The serving benchmarks, run small: against a server that counts, and on a model of two layers."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from bench.load import Answer, Endpoint, LoadFailed, Shape, closed_loop, figures, open_loop
from tests.coldstream import serving
from tools.random_checkpoint import write_checkpoint

SHAPE = Shape(input_tokens=12, output_tokens=5, vocab_size=2048)


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory):
    """A tiny random model, served."""
    folder = tmp_path_factory.mktemp("tiny")
    write_checkpoint(folder / "model", "tiny", shards=1)
    with serving(str(folder / "model"), "--device", "cpu", log_path=folder / "log") as server:
        server.wait_ready()
        yield Endpoint(server.url, "m")


def test_both_loops_count_every_token(endpoint):
    """Throughput is the tokens that were asked for over the time that they took."""
    for found in (
        closed_loop(endpoint, SHAPE, concurrency=3, requests=7),
        open_loop(endpoint, SHAPE, requests_per_s=50.0, requests=7),
    ):
        assert found["output_tokens_per_s"] > 0
        assert 0 < found["ttft_p50_ms"] <= found["ttft_p99_ms"]
        assert found["gap_p50_ms"] <= found["gap_p99_ms"]


def test_a_refused_request_fails_the_load(endpoint):
    """An answer that is no answer must not count as a fast one."""
    with pytest.RaisesGroup(pytest.RaisesExc(LoadFailed, match="404")):
        closed_loop(Endpoint(endpoint.url, "another"), SHAPE, concurrency=1, requests=1)


def test_percentiles_are_of_all_answers_together():
    """A gap of any client is a gap."""
    answers = [Answer(0.1, (0.01, 0.02), 3), Answer(0.3, (0.5,), 2)]
    found = figures(answers, seconds=2.0)
    assert found["output_tokens_per_s"] == 2.5
    assert (found["ttft_p50_ms"], found["gap_p50_ms"], found["gap_p99_ms"]) == (300.0, 20.0, 500.0)


def test_a_decode_step_is_measured_beside_its_floor():
    """On two layers and a CPU, the figures are there and the floor is below them."""
    command = [
        sys.executable,
        "-m",
        "bench.gpu.decode_step",
        "--shape",
        "tiny",
        "--device",
        "cpu",
        "--prompt-tokens",
        "32",
    ]
    command += ["--rows", "1", "2", "--steps", "3", "--context-tokens", "20"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert [row["times_floor"] > 1 for row in summary["rows"].values()] == [True, True]
