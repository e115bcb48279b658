"""What is measured: our loader, Run:ai's streamer and the two ceilings, each point a process of its own.

Takes where the source is, gives one contender per point. Knows no order and no statistics.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.gpu.contenders import Contender
from bench.gpu.processes import ContenderFailed, run_rival
from streaming.options import MIB, PipelineOptions
from tools.nginx import SYSTEM_CA_FILE, Nginx

PLAIN, TLS = "plain", "TLS"
OURS, OBSTORE, RUNAI, H2D, MEMORY = "coldstream", "obstore alone", "Run:ai", "H2D", "memory"
DEFAULTS = (PipelineOptions().lanes, PipelineOptions().chunk_bytes // MIB)
_H2D_BYTES = 16 * 10**9


@dataclass(frozen=True)
class Sweep:
    """Which points there are.

    `grid` are pairs (lanes, MiB per chunk); `memory_shapes` are landed once more, at the defaults.
    """

    grid: tuple[tuple[int, int], ...]
    transports: tuple[str, ...]
    runai_concurrency: tuple[int, ...] = ()
    has_h2d: bool = False
    memory_shapes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """Where one run finds everything; `ports` are those to ask, plain and TLS, which may be shaped ones."""

    served_dir: Path
    shape: str
    server: Nginx
    ports: tuple[int, int]
    device: str
    log_dir: Path
    h2d_bytes: int = _H2D_BYTES

    def url(self, transport: str, shape: str) -> str:
        """The checkpoint's base URL."""
        plain_port, tls_port = self.ports
        root = f"https://localhost:{tls_port}" if transport == TLS else f"http://127.0.0.1:{plain_port}"
        return f"{root}/models/{shape}"


def point_name(who: str, transport: str, lanes: int, chunk_mib: int) -> str:
    """A point of the sweep."""
    return f"{who}, {transport}, {lanes} x {chunk_mib} MiB"


def runai_name(concurrency: int) -> str:
    """A point of Run:ai's: its Azure client knows TLS alone."""
    return f"{RUNAI}, {TLS}, concurrency {concurrency}"


def h2d_name(kind: str, chunk_mib: int) -> str:
    """A point of the bus."""
    return f"{H2D}, {kind}, {chunk_mib} MiB"


def all_points(source: Source, sweep: Sweep) -> list[Contender]:
    """Every point, in the order of the first round; each of ours follows its ceiling."""
    return [*_grid(source, sweep), *_runai(source, sweep), *_h2d(source, sweep), *_memory(source, sweep)]


def _grid(source: Source, sweep: Sweep) -> Iterator[Contender]:
    for transport, (lanes, chunk_mib) in itertools.product(sweep.transports, sweep.grid):
        url = source.url(transport, source.shape)
        size = (lanes, chunk_mib * MIB)
        for who, module, arguments in (
            (OBSTORE, "landing_obstore", (url, *size)),
            (OURS, "landing_ours", (url, source.device, *size)),
        ):
            yield _point(source, point_name(who, transport, lanes, chunk_mib), module, arguments)


def _runai(source: Source, sweep: Sweep) -> Iterator[Contender]:
    shards = sorted(path.name for path in (source.served_dir / "models" / source.shape).glob("*.safetensors"))
    device = "cuda:0" if source.device == "cuda" else source.device
    for concurrency in sweep.runai_concurrency:
        # The first is documented, the second is what its object stores heed.
        names = ("RUNAI_STREAMER_CONCURRENCY", "RUNAI_STREAMER_OBJ_CONCURRENCY")
        environ = source.server.azure_environment() | dict.fromkeys(names, str(concurrency))
        arguments = (f"az://models/{source.shape}", device, *shards)
        yield _point(source, runai_name(concurrency), "landing_runai", arguments, environ)


def _h2d(source: Source, sweep: Sweep) -> Iterator[Contender]:
    if sweep.has_h2d:
        for kind, chunk_mib in itertools.product(("pinned", "pageable"), sorted({size for _, size in sweep.grid})):
            arguments = (kind, chunk_mib * MIB, source.h2d_bytes)
            yield _point(source, h2d_name(kind, chunk_mib), "landing_h2d", arguments)


def _memory(source: Source, sweep: Sweep) -> Iterator[Contender]:
    lanes, chunk_mib = DEFAULTS
    for shape in sweep.memory_shapes:
        arguments = (source.url(PLAIN, shape), source.device, lanes, chunk_mib * MIB)
        yield _point(source, f"{MEMORY}, {shape}", "landing_ours", arguments)


def _point(
    source: Source, name: str, module: str, arguments: Sequence[object], environ: dict[str, str] | None = None
) -> Contender:
    def run() -> dict[str, Any]:
        if module == "landing_runai" and source.server.ca_file.read_text() not in SYSTEM_CA_FILE.read_text():
            # Its client reads that file alone.
            raise ContenderFailed(
                f"Run:ai needs the server's CA in {SYSTEM_CA_FILE}: --trust-ca, on a disposable machine"
            )
        return _measure(source, module, arguments, environ or {})

    return Contender(name, run)


def _measure(source: Source, module: str, arguments: Sequence[object], environ: dict[str, str]) -> dict[str, Any]:
    told = run_rival(
        f"bench.gpu.{module}",
        *map(str, arguments),
        log_path=source.log_dir / f"{module}.log",
        env={**os.environ, "SSL_CERT_FILE": str(source.server.bundle_file), **environ},
        look=dict,
    )
    # What was seen last was the process that played the server.
    told["peak_rss_mib"] = told.pop("loader_peak_rss_mib", told["peak_rss_mib"])
    return told
