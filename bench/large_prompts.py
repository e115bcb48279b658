"""/livez while prompts of a megabyte arrive: `python -m bench.large_prompts [--prompts 10] [--rounds 3]`.

Each round asks /livez every 5 ms over one connection, first undisturbed, then while another process sends all the prompts
at once and waits for their answers (400: a megabyte is more than the context; it is tokenised to know that). Ends with one
JSON line.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from tests.coldstream import Server, serving
from tools.demo_model import ensure_demo_model

_PAUSE_S = 0.005
_UNDISTURBED_S = 2.0
_SENTENCE = "The quick brown fox, 1,234 times: "


def _send_all(url: str, count: int) -> None:
    """Every prompt at once, each its own."""

    def send(number: int) -> None:
        prompt = f"{number}: " + _SENTENCE * ((1 << 20) // len(_SENTENCE))
        answer = httpx.post(url + "/v1/completions", json={"model": "m", "prompt": prompt}, timeout=120)
        assert answer.status_code == 400, answer.text

    threads = [threading.Thread(target=send, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _waits_ms(url: str, going_on: Callable[[], bool]) -> list[float]:
    """How long each /livez took for as long as something goes on."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    waits: list[float] = []
    while going_on():
        start_s = time.perf_counter()
        connection.request("GET", "/livez")
        connection.getresponse().read()
        waits.append((time.perf_counter() - start_s) * 1000)
        time.sleep(_PAUSE_S)
    connection.close()
    return waits


def _round(server: Server, prompts: int) -> dict[str, float]:
    end_s = time.monotonic() + _UNDISTURBED_S
    alone = _waits_ms(server.url, lambda: time.monotonic() < end_s)
    sender = multiprocessing.get_context("spawn").Process(target=_send_all, args=(server.url, prompts))
    start_s = time.monotonic()
    sender.start()
    beside = _waits_ms(server.url, sender.is_alive)
    sender.join()
    if sender.exitcode:
        raise RuntimeError("a prompt was not answered as expected")
    return {
        "alone_p99_ms": _percentile(alone, 99),
        "p50_ms": statistics.median(beside),
        "p99_ms": _percentile(beside, 99),
        "max_ms": max(beside),
        "took_s": time.monotonic() - start_s,
    }


def _percentile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100)[percent - 1]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    figures = []
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(str(ensure_demo_model()), log_path=Path(folder) / "log") as server,
    ):
        server.wait_ready()
        for number in range(arguments.rounds):
            figures.append({name: round(value, 1) for name, value in _round(server, arguments.prompts).items()})
            print(f"round {number}: {figures[-1]}", flush=True)
    print(json.dumps({"benchmark": "large_prompts", "prompts": arguments.prompts, "rounds": figures}))


if __name__ == "__main__":
    main()
