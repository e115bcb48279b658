"""The landing benchmark's own parts: curves, ratios, points and pacing; and one real run of it on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.gpu import landing_report, landing_shaped
from bench.gpu.landing import main, parse_arguments, sweep_of
from bench.gpu.landing_curve import Arrival, Curve, figures
from bench.gpu.landing_points import OBSTORE, OURS, TLS, h2d_name, point_name, runai_name
from bench.gpu.processes import run_rival
from bench.gpu.results import Results
from streaming.options import MIB, PipelineOptions
from tools.blob_server import BlobServer
from tools.nginx_binary import NginxError, ensure_programs
from tools.random_checkpoint import write_checkpoint

FAKE_DRIVER = Path(__file__).parents[1] / "fake_driver"
GB = 10**9


def lockstep(lanes: int, rounds: int) -> list[Arrival]:
    """Every lane lands 1 GB each second, all at once: what fair sharing of a link looks like."""
    return [Arrival(float(second), GB) for second in range(1, rounds + 1) for _ in range(lanes)]


def measurement(**more: object) -> dict[str, object]:
    return {"seconds": 2.0, "planned_s": 0.5, "bytes": GB, "steady": 4.0, "transfer": 2.0, "whole": 1.0} | more


@pytest.fixture
def results(tmp_path):
    return Results(tmp_path / "results.json", {"shape": "tiny"})


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A tiny checkpoint over HTTP."""
    folder = tmp_path_factory.mktemp("served") / "models" / "tiny"
    write_checkpoint(folder, "tiny")
    with BlobServer(folder.parent) as server:
        yield folder, f"{server.url}/tiny"


def run(module: str, *arguments: object, log: Path, **environ: str) -> dict[str, object]:
    return run_rival(
        f"bench.gpu.{module}",
        *map(str, arguments),
        log_path=log,
        env={**os.environ, **environ},
        look=dict,
    )


def test_lanes_that_land_together_are_a_steady_rate():
    """Bursts of eight chunks a second are 8 GB/s in every tenth, whatever the tenths cut through."""
    assert Curve(0.0, lockstep(8, 7), lanes=8).tenths() == pytest.approx([8.0] * 10)


def test_a_pause_is_seen_in_its_tenth_alone():
    late = [Arrival(each.time_s + 5 * (number >= 5), GB) for number, each in enumerate(lockstep(1, 10))]
    tenths = Curve(0.0, late, lanes=1).tenths()
    assert tenths == pytest.approx([1.0] * 5 + [1 / 6] + [1.0] * 4, abs=1e-4)


def test_the_steady_rate_leaves_out_how_a_load_begins_and_ends():
    arrivals = [Arrival(9.0, GB), *(Arrival(9.0 + second, GB) for second in range(1, 9)), Arrival(27.0, GB)]
    found = figures(exec_s=-1.0, planned_s=0.0, landed_s=30.0, arrivals=arrivals, lanes=1, cpu_s=60.0)
    assert found["steady"] == pytest.approx(1.0)
    assert found["transfer"] == pytest.approx(10 / 30, abs=1e-4)
    assert found["whole"] == pytest.approx(10 / 31, abs=1e-4)
    assert (found["seconds"], found["planned_s"], found["first_landed_s"], found["bytes"]) == (31.0, 1.0, 10.0, 10 * GB)


def test_what_landed_at_once_has_no_rate():
    assert Curve(1.0, [Arrival(1.0, GB), Arrival(1.0, GB)], lanes=2).rate(0.1, 0.9) is None


def test_arrivals_may_be_told_out_of_order():
    arrivals = lockstep(2, 5)
    assert Curve(0.0, arrivals[::-1], lanes=2).tenths() == Curve(0.0, arrivals, lanes=2).tenths()


def test_ours_is_compared_point_by_point_and_its_best_with_run_ais_best(results):
    results.add(point_name(OURS, TLS, 8, 16), 0, measurement(steady=3.0))
    results.add(point_name(OURS, TLS, 16, 16), 0, measurement(steady=5.0))
    results.add(point_name(OBSTORE, TLS, 8, 16), 0, measurement(steady=6.0))
    results.add(runai_name(8), 0, measurement(steady=2.0))
    results.add(runai_name(16), 0, measurement(steady=2.5))
    found = landing_report.ratios(landing_report.figures(results))
    assert found["coldstream, TLS, 8 x 16 MiB / obstore alone, steady"] == 0.5
    assert "coldstream, TLS, 16 x 16 MiB / obstore alone, steady" not in found
    assert found["coldstream, TLS, best / Run:ai, best, steady"] == 2.0


def test_figures_are_median_and_extremes_and_a_ceiling_may_lack_some(results):
    for number, steady in enumerate((1.0, 3.0, 2.0)):
        results.add("a", number, measurement(steady=steady, peak_rss_mib=None))
    results.add(h2d_name("pinned", 16), 0, {"bytes": 1, "seconds": 1.0, "transfer": 54.0})
    rows = landing_report.figures(results)
    assert (rows["a"]["steady"], rows["a"]["peak_rss_mib"], rows["a"]["n"]) == ([2.0, 1.0, 3.0], None, 3)
    assert rows[h2d_name("pinned", 16)]["steady"] is None
    header, _, *body = landing_report.detail_lines(rows)
    assert len(body) == 2
    assert {line.count("|") for line in (header, *body)} == {10}


def test_the_matrix_has_lanes_down_and_chunks_across(results):
    grid = [(8, 4), (8, 16), (16, 4), (16, 16)]
    results.add(point_name(OURS, TLS, 16, 4), 0, measurement(steady=7.0))
    lines = landing_report.matrix_lines(landing_report.figures(results), TLS, grid, "steady")
    assert lines[0] == "| TLS: lanes | 4 MiB | 16 MiB |"
    assert lines[2:] == ["| 8 |  |  |", "| 16 | 7.00 (7.00-7.00) |  |"]


def test_evenness_is_the_worst_tenth_of_any_load_over_the_fixed_rate(results):
    results.add("a", 0, measurement(tenths=[0.8, *[2.0] * 9]))
    results.add("a", 1, measurement(tenths=[1.6, *[2.0] * 3, 1.8, *[2.0] * 5]))
    results.add("burst", 0, measurement(tenths=[None] * 10))
    even = landing_report.evenness(results, 2.0)
    assert even.keys() == {"a"}
    assert (even["a"]["least"], even["a"]["least_inner"], even["a"]["tenths"][0]) == (0.4, 0.9, 0.6)


def test_the_peak_at_the_defaults_is_the_most_of_every_transport(results):
    lanes, chunk_mib = PipelineOptions().lanes, PipelineOptions().chunk_bytes // MIB
    results.add(point_name(OURS, TLS, lanes, chunk_mib), 0, measurement(peak_rss_mib=300.0))
    results.add(point_name(OURS, TLS, lanes + 1, chunk_mib), 0, measurement(peak_rss_mib=999.0))
    results.add("memory, sparse60", 0, measurement(peak_rss_mib=500.0))
    rows = landing_report.figures(results)
    assert landing_report.memory_peaks_mib(rows, "8b") == {"8b": 300.0, "sparse60": 500.0}


def test_a_shaped_source_is_for_ours_and_obstore_alone():
    flags = ["--results", "x", "--lanes", "4", "8", "--chunks-mib", "16"]
    free, fixed = (sweep_of(parse_arguments([*flags, *more])) for more in ([], ["--shaped-mbit", "8000"]))
    assert free.grid == fixed.grid == ((4, 16), (8, 16))
    assert free.has_h2d
    assert free.runai_concurrency == (8, 16, 32)
    assert not fixed.has_h2d
    assert not fixed.runai_concurrency


def test_all_who_share_a_pace_get_its_rate_together():
    pace = landing_shaped.Pace(1_000_000)
    start_s = time.monotonic()
    for _ in range(20):
        pace.take(10_000)
    assert 0.17 <= time.monotonic() - start_s < 0.5


def test_a_relay_paces_where_tc_is_missing(monkeypatch, capsys, source, tmp_path):
    """The loader reads the checkpoint through it, no faster than it says."""
    folder, url = source
    monkeypatch.setenv("PATH", "")
    port = int(url.split(":")[2].split("/")[0])
    nbytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    with landing_shaped.shaped((port, port), 4.0, tmp_path) as (plain_port, _):
        relayed = url.replace(f":{port}/", f":{plain_port}/")
        told = run("landing_ours", relayed, "cpu", 2, 1 << 16, log=tmp_path / "log")
    assert capsys.readouterr().out.startswith("no tc (it is not installed)")
    assert 0 < told["transfer"] * GB < 1.3 * 500_000
    assert told["bytes"] <= nbytes


def test_ours_and_obstore_alone_fetch_the_same_bytes(source, tmp_path):
    _, url = source
    ours = run("landing_ours", url, "cpu", 4, 1 << 16, log=tmp_path / "log")
    alone = run("landing_obstore", url, 4, 1 << 16, log=tmp_path / "log")
    assert ours["bytes"] == alone["bytes"] > 0
    assert 0 < ours["planned_s"] < ours["first_landed_s"] <= ours["seconds"] < 60
    assert ours["loader_peak_rss_mib"] > 10
    json.dumps([ours, alone])


def test_ours_and_the_bus_are_measured_through_the_driver(source, tmp_path):
    """With the tests' driver, whose GPU is host memory."""
    _, url = source
    path = os.pathsep.join((str(FAKE_DRIVER), os.environ.get("PYTHONPATH", "")))
    assert run("landing_ours", url, "cuda", 2, 1 << 16, log=tmp_path / "log", PYTHONPATH=path)["bytes"] > 0
    for kind in ("pinned", "pageable"):
        told = run("landing_h2d", kind, MIB, 32 * MIB, log=tmp_path / "log", PYTHONPATH=path)
        assert told["bytes"] == 32 * MIB
        assert told["transfer"] > 0


def test_a_run_is_gone_on_with_and_checks_memory(monkeypatch, capsys, tmp_path):
    """From the command line against a real nginx, plain and TLS; the second run has nothing left but to report."""
    try:
        ensure_programs()
    except NginxError as error:
        pytest.skip(str(error))
    monkeypatch.setattr("bench.gpu.rounds._PAUSE_S", 0.0)
    flags = ["--shape", "tiny", "--device", "cpu", "--rounds", "1", "--lanes", "2", "--chunks-mib", "1"]
    flags += ["--runai-concurrency", "--memory-shapes", "tiny", "--served-dir", str(tmp_path / "served")]
    flags += ["--log-dir", str(tmp_path / "log"), "--results", str(tmp_path / "results.json")]
    summaries = []
    for limit_mib, code in ((1024, 0), (1, 1)):
        monkeypatch.setattr(sys, "argv", ["landing", *flags, "--memory-limit", str(limit_mib)])
        assert main() == code
        lines = capsys.readouterr().out.splitlines()
        summaries.append(json.loads(lines[-1]))
    assert len(summaries[0]["figures_median_min_max"]) == 5
    assert summaries[0]["complete"]
    assert summaries[0]["figures_median_min_max"] == summaries[1]["figures_median_min_max"]
    assert "OVER THE LIMIT: tiny" in lines


def test_results_of_another_checkpoint_are_refused_in_one_line(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps({"parameters": {"shape": "8b"}, "measurements": []}))
    command = [sys.executable, "-m", "bench.gpu.landing", "--results", str(tmp_path / "results.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("landing: ")
    assert "name another file" in done.stderr
    assert done.stderr.count("\n") == 1
