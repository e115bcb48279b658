"""/metrics: what a request adds to, and what is read off the service at the moment of a scrape.

The only file that knows prometheus-client, whose import costs 50 ms: it is imported once probes are answered, before
there is an API. Takes a service; gives Prometheus' text, or OpenMetrics with exemplars where that is asked for.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from app.lifecycle import State
from app.service import Service
from app.telemetry import names
from app.telemetry.http_requests import HttpRequest
from app.telemetry.names import Metric
from app.telemetry.requests import WatchedRequest

Sample = tuple[Metric, float] | tuple[Metric, float, str] | tuple[Metric, float, str, str]
MetricFamily = GaugeMetricFamily | CounterMetricFamily | HistogramMetricFamily


class Metrics:
    """One process's metrics."""

    def __init__(self, service: Service):
        # Else each counter has a second series, with a time that process_start_time_seconds tells as well.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._registry.register(_ServiceCollector(service))
        self._http = self._histogram(names.HTTP_DURATION)
        self._duration = self._histogram(names.REQUEST_DURATION)
        self._first_token = self._histogram(names.TIME_TO_FIRST_TOKEN)
        self._per_token = self._histogram(names.TIME_PER_OUTPUT_TOKEN)
        self._finished = self._counter(names.FINISHED)
        self._prompt_tokens = self._counter(names.PROMPT_TOKENS)
        self._cached_tokens = self._counter(names.CACHED_TOKENS)

    def render(self, accept: str) -> tuple[bytes, str]:
        """The body of a scrape, and its content type."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

    def observe_http(self, request: HttpRequest) -> None:
        """Count one answered HTTP request."""
        self._http.labels(request.method, request.route, str(request.status)).observe(
            request.end_s - request.start_s, _exemplar(request)
        )

    def observe(self, request: WatchedRequest) -> None:
        """Count one request for text; times to tokens are of successful ones only, as the conventions have it."""
        labels = (request.operation, names.PROVIDER, request.model, request.served_model)
        exemplar = _exemplar(request)
        self._duration.labels(*labels, request.error or "").observe(request.ended_s - request.arrived_s, exemplar)
        self._prompt_tokens.inc(request.prompt_tokens)
        self._cached_tokens.inc(request.cached_tokens)
        for reason in request.finish_reasons:
            self._finished.labels(reason).inc()
        if request.error is not None or request.first_token_s is None:
            return
        self._first_token.labels(*labels).observe(request.first_token_s - request.arrived_s, exemplar)
        later_tokens = request.output_tokens / request.choices - 1
        if later_tokens > 0:
            self._per_token.labels(*labels).observe((request.ended_s - request.first_token_s) / later_tokens, exemplar)

    def _histogram(self, metric: Metric) -> Histogram:
        return Histogram(metric.name, metric.help, metric.labels, buckets=metric.buckets, registry=self._registry)

    def _counter(self, metric: Metric) -> Counter:
        return Counter(metric.name, metric.help, metric.labels, registry=self._registry)


class _ServiceCollector(Collector):
    """What a scrape reads off the service; a metric whose value is not known yet is left out."""

    def __init__(self, service: Service):
        self._service = service

    def collect(self) -> Iterator[MetricFamily]:
        """Every family with its samples."""
        families: dict[str, Any] = {}
        for metric, value, *labels in self._samples():
            if metric.name not in families:
                kind = GaugeMetricFamily if metric.kind == "gauge" else CounterMetricFamily
                families[metric.name] = kind(metric.name, metric.help, labels=metric.labels)
            families[metric.name].add_metric(labels, value)
        yield from families.values()
        yield from self._reads()

    def _samples(self) -> Iterator[Sample]:
        yield from self._load()
        yield from self._startup()
        yield from self._engine()
        yield names.HELD, self._service.waiting_room.held
        yield from _labelled(names.REFUSED, self._service.waiting_room.refused)
        yield names.GENERATED_TOKENS, self._service.engine.generated_tokens
        for labels, count in self._service.active_requests.items():
            yield names.HTTP_ACTIVE, count, *labels
        yield names.SPANS_DROPPED, self._service.dropped_traces()

    def _reads(self) -> Iterator[HistogramMetricFamily]:
        """All shards' together: a label of theirs would be thousands of series per pod that never change again."""
        summaries = [shard.ranges for shard in self._service.ledger.shards if shard.ranges is not None]
        if not summaries:
            return
        metric = names.RANGE_DURATION
        counts = itertools.accumulate(map(sum, zip(*(summary.counts for summary in summaries), strict=True)))
        buckets = list(zip([*map(floatToGoString, metric.buckets), "+Inf"], counts, strict=True))
        sum_s = sum(summary.sum_s for summary in summaries)
        yield HistogramMetricFamily(metric.name, metric.help, buckets=buckets, sum_value=sum_s)

    def _load(self) -> Iterator[Sample]:
        state = self._service.lifecycle.state
        for each in State:
            yield names.STATE, float(each is state), each.value
        if self._service.lifecycle.progress is None:
            return
        health = self._service.lifecycle.health()
        yield names.LOAD_BYTES, health.bytes_total
        yield names.LOAD_LANDED, health.bytes_landed
        yield names.LOAD_RATE, health.throughput_bytes_per_s if state is State.LOADING else 0.0
        if health.eta_s is not None:
            yield names.LOAD_ETA, health.eta_s

    def _startup(self) -> Iterator[Sample]:
        ledger = self._service.ledger
        for name, (start_s, end_s) in ledger.phases.items():
            yield names.PHASE_START, start_s, name
            yield names.PHASE_DURATION, end_s - start_s, name
        yield from _labelled(names.MILESTONE, ledger.milestones)
        yield from _labelled(names.COLD_START, ledger.durations())
        yield from _labelled(names.FALLBACKS, ledger.fallback_counts())
        yield from _labelled(names.RESTARTS, ledger.restarts)
        yield from _labelled(names.RETRIES, ledger.counters.retries)
        yield names.HEDGES, ledger.counters.hedges
        yield names.HEDGES_WON, ledger.counters.hedges_won
        yield names.WASTED_BYTES, ledger.counters.wasted_bytes
        yield names.THROTTLES, ledger.counters.throttles
        yield names.VERIFIED_BYTES, ledger.counters.verified_bytes
        yield names.UNVERIFIED_BYTES, ledger.counters.unverified_bytes
        yield names.MISMATCHES, ledger.counters.mismatches
        yield from _labelled(names.STARTUP_DEVICE_USED, ledger.device_used_bytes)
        yield names.CACHE_HITS, ledger.counters.cache_hit_bytes
        yield names.CACHE_MISSES, ledger.counters.cache_miss_bytes

    def _engine(self) -> Iterator[Sample]:
        load = self._service.load
        totals = load.totals()
        yield names.PREEMPTIONS, totals.get("preemptions", 0)
        if "allocation_retries" in totals:
            yield names.DEVICE_RETRIES, totals["allocation_retries"]
            yield names.DEVICE_FAILURES, totals["allocation_failures"]
        stats = load.stats
        yield names.RUNNING, stats.running if stats else 0
        yield names.WAITING, stats.waiting if stats else 0
        if stats is None:
            return
        yield names.KV_BLOCKS, stats.num_blocks
        yield names.KV_USED, stats.used_blocks / stats.num_blocks
        if stats.device is not None:
            yield names.DEVICE_TOTAL, stats.device.total_bytes
            yield names.DEVICE_USED, stats.device.used_bytes
            yield names.DEVICE_PEAK, stats.device.peak_bytes
            yield names.DEVICE_ALLOCATED, stats.device.allocated_bytes
            yield names.DEVICE_RESERVED, stats.device.reserved_bytes


def _exemplar(request: HttpRequest | WatchedRequest) -> dict[str, str] | None:
    return None if request.trace is None else request.trace.exemplar


def _labelled(metric: Metric, values: Mapping[str, float]) -> Iterator[Sample]:
    for label, value in values.items():
        yield metric, value, label
