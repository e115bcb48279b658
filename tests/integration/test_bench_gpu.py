"""The GPU benchmark's own parts: what it keeps, in which order it goes, what it reports; and one start of ours on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from bench.gpu import processes, report, rounds
from bench.gpu.contenders import OURS_HTTP, OURS_HTTPS, Contender
from bench.gpu.ours import serve_once
from bench.gpu.processes import ContenderFailed, run_rival, started
from bench.gpu.results import ParametersDiffer, Results
from bench.gpu.rounds import Budget, Runner
from bench.gpu.waterfall import lanes_of
from tools.blob_server import BlobServer
from tools.random_checkpoint import write_checkpoint


def phase(name: str, start_s: float, end_s: float) -> dict[str, object]:
    return {"name": name, "start_s": start_s, "end_s": end_s}


def start(seconds: float, **more: object) -> dict[str, object]:
    return {"seconds": seconds, "phases": [phase("load", 0.0, seconds)], **more}


@pytest.fixture
def results(tmp_path):
    return Results(tmp_path / "results.json", {"shape": "tiny"})


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(rounds, "_PAUSE_S", 0.0)


def test_another_run_goes_on_where_the_first_one_stopped(results, tmp_path):
    results.add("a", 0, start(1.0))
    again = Results(tmp_path / "results.json", {"shape": "tiny"})
    assert again.of("a") == results.of("a")
    assert list(again.missing({"a": 2, "b": 1})) == [(0, "b"), (1, "a")]


def test_measurements_of_something_else_are_not_gone_on_with(results, tmp_path):
    results.add("a", 0, start(1.0))
    with pytest.raises(ParametersDiffer, match="name another file"):
        Results(tmp_path / "results.json", {"shape": "8b"})


def test_every_other_round_is_backwards_and_the_slow_run_fewer(results):
    assert list(results.missing({"a": 3, "slow": 1, "b": 3})) == [
        (0, "a"), (0, "slow"), (0, "b"), (1, "b"), (1, "a"), (2, "a"), (2, "b"),
    ]  # fmt: skip


def test_a_failed_contender_is_not_started_again_and_the_others_go_on(results):
    def fail() -> dict[str, object]:
        raise ContenderFailed("it broke")

    contenders = {"bad": Contender("bad", fail), "good": Contender("good", lambda: start(2.0))}
    runner = Runner(contenders, results, Budget(1000, results), None)
    assert runner.run({"bad": 2, "good": 2})
    assert runner.failures == {"bad": "it broke"}
    assert [measurement["round"] for measurement in results.measurements] == [0, 1]


def test_no_start_is_made_that_would_outlast_the_budget(results):
    budget = Budget(100, results)
    budget.took("long", 90)
    runner = Runner({"long": Contender("long", lambda: start(1.0))}, results, budget, None)
    assert runner.run({"long": 1})
    budget.took("long", 101)
    assert not runner.run({"long": 2})
    assert len(results.of("long")) == 1


def test_the_budget_knows_what_earlier_runs_took(results):
    results.add("long", 0, start(90.0))
    results.add("short", 0, start(1.0))
    budget = Budget(100, results)
    assert not budget.allows("long")
    assert budget.allows("short")


def test_a_warm_up_is_not_recorded(results):
    Runner({"a": Contender("a", lambda: start(1.0))}, results, Budget(1000, results), None).warm_up(["a"])
    assert not results.measurements


def test_figures_compare_with_ours_over_the_same_transport(results):
    for number, seconds in enumerate((1.0, 3.0, 2.0)):
        results.add(OURS_HTTP, number, start(seconds, gpu_mib=seconds))
        results.add(OURS_HTTPS, number, start(2 * seconds))
        results.add("rival", number, start(4 * seconds))
    rows = report.figures(
        results, {OURS_HTTP: OURS_HTTP, OURS_HTTPS: OURS_HTTPS, "rival": OURS_HTTPS, "absent": OURS_HTTP}
    )
    assert rows.keys() == {OURS_HTTP, OURS_HTTPS, "rival"}
    ours = rows[OURS_HTTP]
    assert [ours[key] for key in ("median", "min", "max", "mean", "stdev", "n")] == [2.0, 1.0, 3.0, 2.0, 1.0, 3]
    assert (ours["gpu_mib"], ours["phases"]) == (3.0, [phase("load", 0.0, 2.0)])
    assert (rows["rival"]["times_ours"], ours["times_ours"]) == (2.0, 1.0)
    assert len(report.table_lines(rows)) == 1 + 2 * len(rows)


def test_a_start_that_answers_another_token_is_named(results):
    results.add("right", 0, start(1.0, token_id=7))
    results.add("no answer due", 0, start(1.0))
    results.add("wrong", 0, start(1.0, token_id=8))
    results.add("not a token", 1, start(1.0, token_id=None))
    assert report.wrong_tokens(results, 7) == [
        "wrong, round 0: token 8, not 7",
        "not a token, round 1: token None, not 7",
    ]


def test_the_waterfall_gives_our_longer_phases_lanes_of_their_own():
    rows = {
        "rival": {"median": 9.0, "phases": [phase("import torch", 0.0, 4.0), phase("load", 4.0, 9.0)]},
        OURS_HTTP: {"median": 2.0, "phases": [phase("bind", 0.0, 0.01), phase("engine.import", 0.1, 1.8)]},
    }
    lanes = lanes_of(rows)
    assert [label for label, _ in lanes] == [OURS_HTTP, "engine.import ·", "rival"]
    assert [bar.name for bar in lanes[-1][1]] == ["import torch", "load"]


def test_a_rival_tells_its_phases_and_is_looked_at_while_it_lives(tmp_path):
    told = run_rival(
        "bench.gpu.rival_import_torch", log_path=tmp_path / "log", env=os.environ, look=lambda: {"gpu_mib": 5.0}
    )
    assert [each["name"] for each in told["phases"]] == ["interpreter", "import torch"]
    assert told["phases"][0]["start_s"] == 0
    assert told["phases"][0]["end_s"] == told["phases"][1]["start_s"] > 0
    assert told["seconds"] == told["phases"][1]["end_s"]
    assert told["gpu_mib"] == 5.0
    assert told["peak_rss_mib"] > 50


def test_a_rival_that_dies_says_why_in_one_line(tmp_path):
    with pytest.raises(ContenderFailed, match=r"rival_from_pretrained: .*argument"):
        run_rival("bench.gpu.rival_from_pretrained", log_path=tmp_path / "log", env=os.environ, look=dict)


def test_a_contender_that_hangs_is_killed_with_all_it_started(monkeypatch, tmp_path):
    monkeypatch.setattr(processes, "TIMEOUT_S", 0.5)
    code = "import subprocess; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); p.wait()"
    with started(
        [sys.executable, "-c", code], log_path=tmp_path / "log", env=os.environ, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        sleeper = psutil.Process(int(process.stdout.readline()))
        assert process.wait(20) != 0
        psutil.wait_procs([sleeper], timeout=10)
        assert not sleeper.is_running() or sleeper.status() == psutil.STATUS_ZOMBIE


def test_one_cold_start_of_ours_gives_the_planted_token(tmp_path):
    """From exec over HTTP to the first token, on the CPU, with the ledger and all three processes' memory."""
    folder = tmp_path / "served" / "tiny"
    planted = write_checkpoint(folder, "tiny")
    with BlobServer(folder.parent) as server:
        measurement = serve_once(
            f"{server.url}/tiny",
            ["--device", "cpu"],
            checkpoint=folder,
            prompt=planted["prompt_token_ids"],
            log_path=tmp_path / "log",
            env=os.environ,
            look=dict,
        )
    assert measurement["token_id"] == planted["token_id"]
    assert 0 < measurement["milestones"]["ready_seen"] < measurement["seconds"] < 60
    assert {"engine.import", "source.headers"} <= {each["name"] for each in measurement["phases"]}
    assert measurement["peaks_rss_mib"]["engine"] > measurement["peaks_rss_mib"]["server"] > 0
    json.dumps(measurement)


def test_the_setup_script_is_valid_bash():
    script = Path(__file__).parents[2] / "bench" / "gpu" / "setup.sh"
    subprocess.run(["bash", "-n", str(script)], check=True)
