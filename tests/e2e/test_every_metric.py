"""Every metric tells of something, and every panel of the dashboard shows it: one server meets all that is counted."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import msgspec
import pytest

from app.telemetry import names
from streaming.cache.store import VERSION
from streaming.digests import summarize
from streaming.manifest import MANIFEST_NAME, Manifest, encoded
from streaming.messages import Plan
from streaming.options import CacheOptions
from streaming.upload_origin import checkpoint_files
from tests.coldstream import Server, serving, wait_for
from tests.collector import sink
from tests.loader import load
from tests.prometheus import asked, lint, prometheus, unparsable
from tests.unit.test_grafana_dashboard import DASHBOARD, TARGETS, used
from tests.unit.test_metrics import ONLY_A_GPU_CAN, samples
from tools.blob_server import BlobRequest, BlobServer, Fault, Hook, Throttle
from tools.random_checkpoint import write_checkpoint

# 50 blocks of 16 tokens, 256 bytes each, for four sequences at once, each of which grows to 19 blocks.
TIGHT = ("--kv-cache-memory-bytes", str(50 * 16 * 256), "--max-num-seqs", "4")
# One read after the other, so that a rate is known after the first of four.
SLOWLY = ("--concurrency", "1")
# Six of them hold tensors. One of those is in the cache; of the others the fourth has peers enough for its stall to be seen.
SHARDS = 12
LONG_PROMPT = (
    "A cold start is over when the first token of the first answer has been read by whoever asked for it. " * 2
)


def test_every_metric_becomes_something_and_every_panel_shows_it(tmp_path):
    """Load, reads again and twice, a broken cache, wrong digests, queue, preemption, prefix hits, dead children; all is seen."""
    write_checkpoint(tmp_path / "tiny", "tiny", shards=SHARDS)
    with observed(tmp_path / "tiny", tmp_path) as (server, client, start_s):
        _ask_too_early(server, client)
        server.wait_ready()
        wait_for(lambda: _crowd(server, client), 60)
        for _ in range(2):
            server.complete(LONG_PROMPT, max_tokens=2)
        _lose_the_exporter(server)
        _lose_the_engine(server)
        server.complete("Hello", max_tokens=4)
        wait_for(lambda: not _silent(client), 20)
        text = server.client.get("/metrics").content
        needs_a_gpu = {target["expr"] for _, target in TARGETS if used(target["expr"]) <= ONLY_A_GPU_CAN}
        wait_for(lambda: _without_data(client, start_s, server) == needs_a_gpu, 20)  # a rate takes two scrapes
    assert lint(text) == ""
    assert re.search(r"cache: \d+ of \d+ bytes \(\d+\.\d %\) came from ", (tmp_path / "log").read_text())


@contextlib.contextmanager
def observed(folder: Path, tmp_path: Path) -> Iterator[tuple[Server, httpx.Client, float]]:
    """A server that loads for seconds, a Prometheus that watches it from the first one on, and when that was."""
    start_s = time.time()
    with (
        BlobServer(folder) as source,
        sink() as (_, sink_port),
        serving(
            source.url,
            *TIGHT,
            *SLOWLY,
            *_troubled(source, folder, tmp_path / "cache"),
            log_path=tmp_path / "log",
            environ={
                "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{sink_port}",
                "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            },
        ) as server,
        prometheus(server.url.removeprefix("http://"), tmp_path) as client,
    ):
        yield server, client, start_s


def _troubles() -> Hook:
    """The first answer of all and the first read of weights are refused; the fourth shard that is read stalls once."""
    faults = {"all": Fault(status=503), "weights": Fault(status=503)}
    read: list[str] = []

    def hook(request: BlobRequest) -> Fault | None:
        is_weight = request.path.endswith(".safetensors") and request.start > 0
        if is_weight and request.path not in read:
            read.append(request.path)
            time.sleep(15.0 if len(read) == 4 else 0.0)  # over four times what the others take
        return faults.pop("all", None) or (faults.pop("weights", None) if is_weight else None)

    return hook


def _troubled(source: BlobServer, folder: Path, cache: Path) -> tuple[str, ...]:
    """The flags of a load with a broken cache and a flawed manifest; the source is slow from then on."""
    result = load(source.url, cache=CacheOptions(folder=str(cache), reserve_ratio=0.0))
    assert result.plan is not None
    _break_cache(cache)
    _write_flawed_manifest(folder, result.plan)
    source.throttle = Throttle(350e3)
    source.hook = _troubles()
    return "--cache-dir", str(cache), "--fail-if-checksum-mismatch", "false"


def _write_flawed_manifest(folder: Path, plan: Plan) -> None:
    """Of one shard it has digests of other bytes, of another one none."""
    differs, *_, unknown = sorted({chunk.shard for chunk in plan.chunks})
    files = {path.name: summarize(path, 1 << 20).digests for path in checkpoint_files(folder) if path.name != unknown}
    other = bytes(byte ^ 1 for byte in files[differs].crc64nvme)
    files[differs] = msgspec.structs.replace(files[differs], crc64nvme=other)
    (folder / MANIFEST_NAME).write_bytes(encoded(Manifest(block_bytes=1 << 20, files=files)))


def _break_cache(folder: Path) -> None:
    """It has one shard left, and cannot be written to."""
    lock, *shards = sorted((folder / VERSION).iterdir(), reverse=True)
    for shard in shards[1:]:
        shutil.rmtree(shard)
    lock.unlink()
    lock.mkdir()


def _ask_too_early(server: Server, client: httpx.Client) -> None:
    """One request is refused, another waits; until a scrape has seen it."""
    body = {"model": "m", "prompt": "Hello", "max_tokens": 2}
    wait_for(server.state)
    assert server.client.post("/v1/completions", json=body).status_code == 503
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(server.client.post, "/v1/completions", json=body, headers={"X-Coldstream-Wait": "60"})
        wait_for(lambda: names.HELD.name not in _silent(client), 20)
        assert held.result().status_code == 200


def _crowd(server: Server, client: httpx.Client) -> bool:
    """Six sequences for room for four, which outgrow the cache; whether a scrape came in the middle."""
    with ThreadPoolExecutor(6) as pool:
        prompts = [f"{number} is the number of" for number in range(6)]
        list(pool.map(lambda prompt: server.complete(prompt, max_tokens=300, ignore_eos=True), prompts))
    return not _silent(client) & {names.RUNNING.name, names.WAITING.name, names.KV_USED.name, names.HTTP_ACTIVE.name}


def _lose_the_exporter(server: Server) -> None:
    """What is traced from now on goes nowhere."""
    server.child("app.telemetry.exporter").kill()

    def dropped() -> bool:
        server.client.get("/v1/models")
        return samples(server.client.get("/metrics").text)["coldstream_traces_dropped_total"][""] > 0

    wait_for(dropped)


def _lose_the_engine(server: Server) -> None:
    """In the middle of an answer."""
    begun = threading.Event()

    def ask() -> None:
        body = {"model": "m", "prompt": "Count:", "max_tokens": 700, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as answer:
            for _ in answer.iter_lines():
                begun.set()

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask)
        assert begun.wait(30)
        server.child("app.engine").kill()
        asking.result()
    server.wait_ready()


def _silent(client: httpx.Client) -> set[str]:
    """Metrics of the list that Prometheus has never seen above zero, but those that need a GPU."""
    silent = set()
    for metric in names.METRICS:
        name = f"{metric.name}_count" if metric.kind == "histogram" else metric.name
        if not asked(client, "query", query=f"max_over_time({name}[10m]) > 0"):
            silent.add(metric.name)
    assert silent >= ONLY_A_GPU_CAN
    return silent - ONLY_A_GPU_CAN


def _without_data(client: httpx.Client, start_s: float, server: Server) -> set[str]:
    """Expressions of the dashboard that have given nothing since the start."""
    times = {"start": start_s, "end": time.time(), "step": 1}
    instance = server.url.removeprefix("http://")
    expressions = {target["expr"] for _, target in TARGETS}
    return {each for each in expressions if not asked(client, "query_range", query=_filled_in(each, instance), **times)}


def _filled_in(expression: str, instance: str) -> str:
    """As Grafana would send it."""
    return expression.replace("$instance", ".*").replace("$start", instance).replace("$__rate_interval", "1m")


def test_every_expression_of_the_dashboard_is_promql(tmp_path):
    """As promtool reads it; and it does refuse what is none."""
    expressions = [_filled_in(target["expr"], "pod:8000") for _, target in TARGETS]
    assert not any("$" in expression for expression in expressions)
    assert unparsable(expressions, tmp_path) == ""
    assert unparsable(["sum by (x) rate("], tmp_path) != ""


@pytest.mark.parametrize("variable", ["instance", "start"])
def test_the_variables_query_names_a_metric_from_the_first_second(variable):
    """Else there would be nothing to choose from while a server loads."""
    (found,) = [each for each in DASHBOARD["templating"]["list"] if each["name"] == variable]
    assert names.STATE.name in json.dumps(found["query"])
