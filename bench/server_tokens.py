"""What a streamed token costs the server: `python -m bench.server_tokens [MODEL] [--streams 64 128] [--step-ms 10]`.

The real server process (HTTP, tokenizer, supervisor, loader) with `bench.paced_engine` in the engine's place: no token
costs more than a line of Python elsewhere, and what is measured is the server alone. The client is this process, a
closed loop over plain sockets. The server has a core of its own, the first one, and the others share the rest: a client
that is woken in the server's place would empty its caches. Processor time is the server process's own.
Every figure is measured `--rounds` times; ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

from bench.load import Shape, prompts_of
from tools.demo_model import ensure_demo_model
from tools.ports import free_port

Figures = dict[str, float]

_EVENT = b"data: {"
_END = b"0\r\n\r\n"
_READY_S = 60


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("model", nargs="?", type=Path, help="a checkpoint folder; the demo model if there is none")
    add("--streams", nargs="+", type=int, default=[64, 128])
    add("--step-ms", type=float, default=10.0, help="how often every stream gets a token")
    add("--input-tokens", type=int, default=512)
    add("--output-tokens", type=int, default=256)
    add("--requests-per-stream", type=int, default=3)
    add("--rounds", type=int, default=3)
    return parser.parse_args(arguments)


def main() -> None:
    """Measure every number of streams and print a line for each."""
    arguments = parse_arguments(sys.argv[1:])
    folder = arguments.model or ensure_demo_model()
    vocab_size = json.loads((folder / "config.json").read_text())["vocab_size"]
    shape = Shape(arguments.input_tokens, arguments.output_tokens, vocab_size)
    rows = {}
    os.sched_setaffinity(0, os.sched_getaffinity(0) - {0})
    with _server(folder, arguments.step_ms) as (pid, port):
        for streams in arguments.streams:
            requests = streams * arguments.requests_per_stream
            rounds = [_round(pid, port, shape, streams, requests) for _ in range(arguments.rounds)]
            rows[streams] = {key: [each[key] for each in rounds] for key in rounds[0]}
            print(f"{streams} streams, a step every {arguments.step_ms:g} ms: {_told(rows[streams])}", flush=True)
    print(json.dumps({"benchmark": "server_tokens", "model": folder.name, "figures": rows}))


def serve(folder: str, port: str, step_ms: str) -> int:
    """`coldstream serve` with the paced engine; returns the exit code."""
    from app import command
    from app.child import spawn

    children = spawn("streaming", os.environ), spawn("bench.paced_engine", os.environ, folder, step_ms)
    os.sched_setaffinity(0, {0})
    try:
        flags = ["--port", port, "--host", "127.0.0.1", "--served-model-name", "m", "--device", "cpu"]
        return command.run(["serve", folder, *flags], os.environ, children)
    finally:
        for child in children:
            child.kill()


@contextmanager
def _server(folder: Path, step_ms: float) -> Iterator[tuple[int, int]]:
    """The process's id and port, once it is ready."""
    port = free_port()
    command = [sys.executable, "-m", "bench.server_tokens", "serve", str(folder), str(port), str(step_ms)]
    paths = os.pathsep.join([str(Path.cwd()), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths})
    try:
        _wait_ready(port)
        yield process.pid, port
    finally:
        process.terminate()
        process.wait()


def _wait_ready(port: int) -> None:
    end_s = time.monotonic() + _READY_S
    while True:
        try:
            with urlopen(f"http://127.0.0.1:{port}/health"):
                return
        except OSError:  # refused, or 503
            if time.monotonic() > end_s:
                raise
            time.sleep(0.1)


def _round(pid: int, port: int, shape: Shape, streams: int, requests: int) -> Figures:
    """A load of answers of one token tells what a request costs; what longer answers cost beyond that is their tokens'."""
    one = _load(pid, port, Shape(shape.input_tokens, 1, shape.vocab_size), streams, requests)
    full = _load(pid, port, shape, streams, requests)
    tokens = requests * (shape.output_tokens - 1)
    return {
        "us_per_token": round((full.cpu_s - one.cpu_s) / tokens * 1e6, 1),
        "us_per_request": round(one.cpu_s / requests * 1e6),
        "tokens_per_s": round(requests * shape.output_tokens / full.seconds),
        "cpu_share": round(full.cpu_s / full.seconds, 2),
    }


class _Load:
    """One closed loop: what it took, by the clock and of the server's processor time."""

    def __init__(self, pid: int, seconds: float, cpu_s: float):
        self.pid, self.seconds, self.cpu_s = pid, seconds, cpu_s


def _load(pid: int, port: int, shape: Shape, streams: int, requests: int) -> _Load:
    bodies = [_request(shape, prompt) for prompt in prompts_of(shape, requests)]
    start_s, start_cpu_s = time.perf_counter(), _cpu_s(pid)
    closed_loop(port, bodies, streams, shape.output_tokens)
    return _Load(pid, time.perf_counter() - start_s, _cpu_s(pid) - start_cpu_s)


def _request(shape: Shape, prompt: list[int]) -> bytes:
    """The very request of `bench.load`."""
    fields = {"model": "m", "prompt": prompt, "max_tokens": shape.output_tokens, "temperature": 0, "ignore_eos": True}
    body = json.dumps({**fields, "stream": True, "stream_options": {"include_usage": True}}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


class _Stream:
    """One connection and the answer that it is reading."""

    def __init__(self, sock: socket.socket):
        self.sock = sock
        self.events = 0
        self.tail = b""

    def read(self) -> bool:
        """Take what there is; True at the answer's end."""
        data = self.sock.recv(1 << 16)
        if not data:
            raise SystemExit(f"the server cut a stream: {self.tail!r}")
        whole = self.tail + data
        self.events += whole.count(_EVENT) - self.tail.count(_EVENT)
        self.tail = whole[-64:]
        return whole.endswith(_END)


def closed_loop(port: int, bodies: list[bytes], streams: int, output_tokens: int) -> None:
    """Keep `streams` requests running until all of `bodies` are answered in full."""
    left = iter(bodies)
    with selectors.DefaultSelector() as selector:
        for body in _first(left, streams):
            stream = _Stream(socket.create_connection(("127.0.0.1", port)))
            selector.register(stream.sock, selectors.EVENT_READ, stream)
            stream.sock.sendall(body)
        while selector.get_map():
            for key, _ in selector.select():
                if key.data.read():
                    _next(selector, key.data, next(left, None), output_tokens)


def _first(left: Iterator[bytes], count: int) -> Iterator[bytes]:
    for _ in range(count):
        yield next(left)


def _next(selector: selectors.BaseSelector, stream: _Stream, body: bytes | None, output_tokens: int) -> None:
    """Check an answer, and ask for the next one if there is one."""
    # Not every token has text of its own: what a token of half a character adds comes with the next.
    if not 0.9 * output_tokens < stream.events - 1 <= output_tokens + 1:
        raise SystemExit(f"{stream.events} events for {output_tokens} tokens: {stream.tail!r}")
    stream.events, stream.tail = 0, b""
    if body is None:
        selector.unregister(stream.sock)
        stream.sock.close()
    else:
        stream.sock.sendall(body)


def _cpu_s(pid: int) -> float:
    """Processor time of all threads so far, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _told(row: dict[str, list[float]]) -> str:
    return ", ".join(f"{key} {statistics.median(values):g} {values}" for key, values in row.items())


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        sys.exit(serve(*sys.argv[2:]))
    main()
