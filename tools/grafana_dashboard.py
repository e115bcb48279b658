"""The Grafana dashboard, made of the metrics' own names: `python -m tools.grafana_dashboard` writes it.

Gives Grafana's JSON model of rows, panels and queries. Knows no value, no cluster and no data source: those are variables
of the dashboard. `tools.grafana_panels` knows how a panel is written down.
"""

from __future__ import annotations

import json
from pathlib import Path

from app.lifecycle import State
from app.telemetry import names
from app.telemetry.names import Metric
from tools.grafana_panels import Json, Query, bars, dashboard, row, series, states, stats, waterfall

PATH = Path(__file__).resolve().parent.parent / "k8s/components/monitoring/dashboard.json"
_STATE_COLORS = ("#8ab8ff", "blue", "purple", "green", "orange", "red")
_QUANTILES = (0.5, 0.95, 0.99)


def made() -> str:
    """The dashboard's JSON."""
    rows = [
        row("Cold start of $start", _cold_start()),
        row("Latency", _latency()),
        row("Load", _load()),
        row("GPU memory", _gpu_memory()),
        row("Process", _process()),
    ]
    return json.dumps(dashboard(rows, instances_of=names.STATE.name), indent=2) + "\n"


def _cold_start() -> list[Json]:
    return [
        states("State", _state(), dict(enumerate(zip(State, _STATE_COLORS, strict=True), start=1)), width=24, height=5),
        series("Landing rate", [_each(names.LOAD_RATE)], "Bps", width=8),
        series("Bytes landed", [_each(names.LOAD_LANDED, "landed"), _each(names.LOAD_BYTES, "of")], "bytes", width=8),
        series("Time left", [_each(names.LOAD_ETA)], "s", width=8),
        waterfall(
            "Where the time went, in seconds since exec",
            Query(_of_start(names.PHASE_START), "", instant=True),
            Query(_of_start(names.PHASE_DURATION), "", instant=True),
            label="phase",
        ),
        bars("Milestones, since exec", [Query(_of_start(names.MILESTONE), "{{milestone}}", instant=True)], "s"),
        bars("The cold start's spans", [Query(_of_start(names.COLD_START), "{{span}}", instant=True)], "s"),
        stats("Single reads of weights", [_read_quantile(q) for q in _QUANTILES], "s"),
        stats(
            "Weights by where they came from",
            [
                Query(_of_start(names.CACHE_HITS), "the node's disk", instant=True),
                Query(_of_start(names.CACHE_MISSES), "the source, in spite of a cache", instant=True),
            ],
            "bytes",
        ),
        stats(
            "Weights by whether their digests were compared",
            [
                Query(_of_start(names.VERIFIED_BYTES), "verified", instant=True),
                Query(_of_start(names.UNVERIFIED_BYTES), "unverified", instant=True),
            ],
            "bytes",
        ),
        stats("Blocks with another digest", [Query(_of_start(names.MISMATCHES), "", instant=True)], "none"),
        stats(
            "Restarts and fallbacks",
            [
                Query(_of_start(names.RESTARTS), "{{process}} restarted", instant=True),
                Query(_of_start(names.FALLBACKS), "fell back to {{what}}", instant=True),
            ],
            "none",
        ),
        stats(
            "Slow and refused reads",
            [
                Query(_of_start(names.HEDGES), "read a second time", instant=True),
                Query(_of_start(names.HEDGES_WON), "second read came first", instant=True),
                Query(_of_start(names.THROTTLES), "refused", instant=True),
            ],
            "none",
        ),
        stats("Bytes read twice", [Query(_of_start(names.WASTED_BYTES), "", instant=True)], "bytes"),
        stats("Reads tried again", [Query(_of_start(names.RETRIES), "after {{cause}}", instant=True)], "none"),
    ]


def _latency() -> list[Json]:
    return [
        _quantiles("Time to first token", names.TIME_TO_FIRST_TOKEN),
        _quantiles("Time per output token", names.TIME_PER_OUTPUT_TOKEN),
        _quantiles("Request for text, from its arrival to its end", names.REQUEST_DURATION),
        series(
            "HTTP request, p95 by route",
            [Query(_quantile(0.95, names.HTTP_DURATION, "http_route"), "{{http_route}}", exemplars=True)],
            "s",
        ),
    ]


def _load() -> list[Json]:
    return [
        series("Sequences", [_sum(names.RUNNING, "running"), _sum(names.WAITING, "waiting")], "none"),
        series("Requests that wait for readiness", [_sum(names.HELD, "held")], "none"),
        series("Requests refused before readiness, per second", [_rate(names.REFUSED, "{{reason}}", "reason")], "none"),
        series(
            "Open HTTP requests", [_sum(names.HTTP_ACTIVE, "{{http_request_method}}", "http_request_method")], "none"
        ),
        series("KV cache in use", [_each(names.KV_USED)], "percentunit"),
        series("KV cache blocks", [_each(names.KV_BLOCKS)], "none"),
        series(
            "Tokens per second",
            [
                _rate(names.PROMPT_TOKENS, "of prompts"),
                _rate(names.CACHED_TOKENS, "of those, found in the prefix cache"),
                _rate(names.GENERATED_TOKENS, "generated"),
            ],
            "none",
        ),
        series("Prefix cache hits", [_hit_ratio()], "percentunit"),
        series("Preemptions per second", [_rate(names.PREEMPTIONS, "preemptions")], "none"),
        series("Finish reasons per second", [_rate(names.FINISHED, "{{finish_reason}}", "finish_reason")], "none"),
        series("Failed requests for text per second", [_failures()], "none"),
        series("HTTP answers per second", [_statuses()], "none"),
    ]


def _gpu_memory() -> list[Json]:
    return [
        series(
            "GPU memory",
            [
                _each(names.DEVICE_USED, "used"),
                _each(names.DEVICE_PEAK, "most seen used"),
                _each(names.DEVICE_TOTAL, "whole"),
            ],
            "bytes",
        ),
        series(
            "Allocator",
            [_each(names.DEVICE_ALLOCATED, "allocated"), _each(names.DEVICE_RESERVED, "reserved")],
            "bytes",
        ),
        series(
            "Allocations that met a full memory, per second",
            [_rate(names.DEVICE_RETRIES, "retried"), _rate(names.DEVICE_FAILURES, "failed")],
            "none",
        ),
        bars(
            "Used at a moment of the start",
            [Query(_of_start(names.STARTUP_DEVICE_USED), "{{at}}", instant=True)],
            "bytes",
        ),
    ]


def _process() -> list[Json]:
    return [
        series("Resident memory of the server", [_named("process_resident_memory_bytes")], "bytes"),
        series("Processor time of the server", [_named("process_cpu_seconds_total", per_second=True)], "percentunit"),
        series("Open descriptors of the server", [_named("process_open_fds")], "none"),
        series("Traces dropped per second", [_rate(names.SPANS_DROPPED, "dropped")], "none"),
    ]


def _state() -> Query:
    """One number per instance: the position of its state among all."""
    terms = [
        f'{number} * max by (instance) ({names.STATE.name}{{instance=~"$instance", state="{state}"}})'
        for number, state in enumerate(State, start=1)
    ]
    return Query(" + ".join(terms), "{{instance}}")


def _of_start(metric: Metric) -> str:
    return f'{metric.name}{{instance="$start"}}'


def _of_instances(name: str) -> str:
    return f'{name}{{instance=~"$instance"}}'


def _per_second(name: str) -> str:
    return f"rate({_of_instances(name)}[$__rate_interval])"


def _each(metric: Metric, legend: str = "") -> Query:
    """A gauge, instance by instance."""
    return Query(_of_instances(metric.name), " ".join(filter(None, ("{{instance}}", legend))))


def _named(name: str, *, per_second: bool = False) -> Query:
    return Query(_per_second(name) if per_second else _of_instances(name), "{{instance}}")


def _sum(metric: Metric, legend: str, by: str = "") -> Query:
    return Query(_total(_of_instances(metric.name), by), legend)


def _rate(metric: Metric, legend: str, by: str = "") -> Query:
    return Query(_total(_per_second(metric.name), by), legend)


def _total(expression: str, by: str = "") -> str:
    return f"sum by ({by}) ({expression})" if by else f"sum({expression})"


def _hit_ratio() -> Query:
    found, asked = (_total(_per_second(metric.name)) for metric in (names.CACHED_TOKENS, names.PROMPT_TOKENS))
    return Query(f"{found} / {asked}", "tokens of prompts that were found")


def _failures() -> Query:
    name = f"{names.REQUEST_DURATION.name}_count"
    rate = f'rate({name}{{instance=~"$instance", error_type!=""}}[$__rate_interval])'
    return Query(_total(rate, "error_type"), "{{error_type}}")


def _statuses() -> Query:
    label = "http_response_status_code"
    return Query(_total(_per_second(f"{names.HTTP_DURATION.name}_count"), label), "{{" + label + "}}")


def _quantile(quantile: float, metric: Metric, by: str = "") -> str:
    labels = ", ".join(filter(None, ("le", by)))
    return f"histogram_quantile({quantile}, {_total(_per_second(f'{metric.name}_bucket'), labels)})"


def _quantiles(title: str, metric: Metric) -> Json:
    queries = [Query(_quantile(each, metric), f"p{each * 100:g}", exemplars=True) for each in _QUANTILES]
    return series(title, queries, "s")


def _read_quantile(quantile: float) -> Query:
    """Over the whole load: the counts never change after it, so that they have no rate."""
    buckets = f'{names.RANGE_DURATION.name}_bucket{{instance="$start"}}'
    return Query(f"histogram_quantile({quantile}, {_total(buckets, 'le')})", f"p{quantile * 100:g}", instant=True)


if __name__ == "__main__":
    PATH.write_text(made(), encoding="utf-8")
