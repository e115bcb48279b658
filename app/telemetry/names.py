"""Every name that metrics and traces carry, with units and meaning: the one list, from which the docs are made, too.

Metrics have Prometheus names; where one is OpenTelemetry's, `convention` is its name there. Knows no value.
"""

from __future__ import annotations

import msgspec

from streaming.messages import RANGE_BUCKETS_S


class Metric(msgspec.Struct, frozen=True):
    """One metric. Histograms and counters of requests have labels from the conventions, dots as underscores."""

    name: str
    kind: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    convention: str = ""


PROVIDER = "coldstream"

_MODEL_LABELS = (
    "gen_ai_operation_name",
    "gen_ai_provider_name",
    "gen_ai_request_model",
    "gen_ai_response_model",
)

TIME_TO_FIRST_TOKEN = Metric(
    "gen_ai_server_time_to_first_token_seconds",
    "histogram",
    "From the request's arrival to its first token; successful requests only.",
    _MODEL_LABELS,
    (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    "gen_ai.server.time_to_first_token",
)
TIME_PER_OUTPUT_TOKEN = Metric(
    "gen_ai_server_time_per_output_token_seconds",
    "histogram",
    "Time after the first token, per token after it and per choice; successful requests only.",
    _MODEL_LABELS,
    (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5),
    "gen_ai.server.time_per_output_token",
)
REQUEST_DURATION = Metric(
    "gen_ai_server_request_duration_seconds",
    "histogram",
    "From the request's arrival to its last token or its failure (error_type; empty where it succeeded, cancelled where its reader left or its time was up).",
    (*_MODEL_LABELS, "error_type"),
    (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92),
    "gen_ai.server.request.duration",
)
HTTP_ACTIVE = Metric(
    "http_server_active_requests",
    "gauge",
    "Requests but probes that have arrived and are not answered yet.",
    ("http_request_method", "url_scheme"),
    convention="http.server.active_requests",
)
HTTP_DURATION = Metric(
    "http_server_request_duration_seconds",
    "histogram",
    "Every request but probes and the page, from its arrival to the end of its answer; an unknown path has an empty route.",
    ("http_request_method", "http_route", "http_response_status_code"),
    (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    "http.server.request.duration",
)
FINISHED = Metric(
    "coldstream_choices_finished_total", "counter", "Choices that have ended, by finish reason.", ("finish_reason",)
)

RUNNING = Metric("coldstream_requests_running", "gauge", "Sequences (a request's prompts times n) that are computed.")
WAITING = Metric(
    "coldstream_requests_waiting",
    "gauge",
    "Sequences that the engine has not begun, or has preempted; scale on these.",
)
HELD = Metric("coldstream_requests_held", "gauge", "Requests that wait for a server that is not ready.")
REFUSED = Metric(
    "coldstream_requests_refused_total",
    "counter",
    "Requests that were refused because the server was not ready, by why they did not wait (any longer).",
    ("reason",),
)
KV_USED = Metric("coldstream_kv_cache_usage_ratio", "gauge", "Share of the KV cache's blocks that sequences hold.")
KV_BLOCKS = Metric("coldstream_kv_cache_blocks", "gauge", "Blocks of the KV cache.")
PREEMPTIONS = Metric(
    "coldstream_preemptions_total", "counter", "Sequences that gave their blocks up and were computed again later."
)
PROMPT_TOKENS = Metric(
    "coldstream_prompt_tokens_total", "counter", "Tokens of prompts that were computed or found, per sequence."
)
CACHED_TOKENS = Metric(
    "coldstream_prefix_cache_hit_tokens_total", "counter", "Of those, tokens that another sequence had computed."
)
GENERATED_TOKENS = Metric("coldstream_generation_tokens_total", "counter", "Tokens that the engine has generated.")
DEVICE_USED = Metric(
    "coldstream_gpu_memory_used_bytes", "gauge", "GPU memory that is taken, by whomever; only with a GPU."
)
DEVICE_PEAK = Metric(
    "coldstream_gpu_memory_peak_bytes", "gauge", "The most of it that the engine has seen taken; only with a GPU."
)
DEVICE_ALLOCATED = Metric(
    "coldstream_gpu_allocator_allocated_bytes",
    "gauge",
    "What torch's allocator has handed out: the KV cache and what steps compute with; only with a GPU.",
)
DEVICE_RESERVED = Metric(
    "coldstream_gpu_allocator_reserved_bytes",
    "gauge",
    "What it holds for that; the difference is cached or fragmented; only with a GPU.",
)
DEVICE_RETRIES = Metric(
    "coldstream_gpu_allocation_retries_total",
    "counter",
    "Allocations for which it had to give cached memory back first; only with a GPU.",
)
DEVICE_FAILURES = Metric(
    "coldstream_gpu_allocation_failures_total",
    "counter",
    "Allocations that failed for want of memory; only with a GPU.",
)
DEVICE_TOTAL = Metric("coldstream_gpu_memory_bytes", "gauge", "The GPU's memory; only with a GPU.")

STATE = Metric("coldstream_state", "gauge", "1 for the server's state, 0 for the others.", ("state",))
LOAD_BYTES = Metric("coldstream_load_bytes", "gauge", "Bytes that the load fetches in all; known once it is planned.")
LOAD_LANDED = Metric("coldstream_load_landed_bytes", "gauge", "Bytes of them that are at their addresses.")
LOAD_RATE = Metric(
    "coldstream_load_throughput_bytes_per_second",
    "gauge",
    "Over the last five seconds, or four chunks of every lane where those take longer; 0 once loaded.",
)
LOAD_ETA = Metric(
    "coldstream_load_eta_seconds",
    "gauge",
    "Until ready: the last byte at this rate, then the engine's pass over the weights.",
)
RANGE_DURATION = Metric(
    "coldstream_range_fetch_duration_seconds",
    "histogram",
    "Single ranged reads of weights, from being asked for until their bytes were there, retries included; of the last loader, known once the weights have landed. Not with host-staging.",
    buckets=RANGE_BUCKETS_S,
)
RETRIES = Metric(
    "coldstream_fetch_retries_total",
    "counter",
    "Reads of metadata and weights that were tried again, by why the attempt before had failed. Not weights with host-staging.",
    ("cause",),
)
CACHE_HITS = Metric(
    "coldstream_cache_hit_bytes_total",
    "counter",
    "Bytes of weights that were read from the node's disk; only with a cache.",
)
CACHE_MISSES = Metric(
    "coldstream_cache_miss_bytes_total",
    "counter",
    "Bytes of weights that were fetched although there is a cache.",
)
HEDGES = Metric(
    "coldstream_fetch_hedges_total",
    "counter",
    "Ranges of weights that were read a second time, because they were slow.",
)
HEDGES_WON = Metric("coldstream_fetch_hedges_won_total", "counter", "Of those, ranges whose second read came first.")
WASTED_BYTES = Metric(
    "coldstream_fetch_wasted_bytes_total", "counter", "Bytes that were asked for twice on that account."
)
THROTTLES = Metric(
    "coldstream_fetch_throttles_total",
    "counter",
    "Reads of weights that the source refused because it was asked for too much (503, 429).",
)
VERIFIED_BYTES = Metric(
    "coldstream_fetch_verified_bytes_total",
    "counter",
    "Bytes of weights whose digests were the manifest's.",
)
UNVERIFIED_BYTES = Metric(
    "coldstream_fetch_unverified_bytes_total",
    "counter",
    "Bytes of weights that were fetched without digests to compare them with.",
)
MISMATCHES = Metric(
    "coldstream_fetch_digest_mismatches_total",
    "counter",
    "Blocks of weights whose digest was another one; a block that was read again and was wrong again counts twice.",
)
STARTUP_DEVICE_USED = Metric(
    "coldstream_startup_gpu_memory_used_bytes",
    "gauge",
    "GPU memory that was taken at a moment of the start: weights_landed, ready; only with a GPU.",
    ("at",),
)
PHASE_START = Metric(
    "coldstream_startup_phase_start_seconds", "gauge", "When a phase of the startup began, since exec.", ("phase",)
)
PHASE_DURATION = Metric(
    "coldstream_startup_phase_duration_seconds", "gauge", "How long a phase of the startup took.", ("phase",)
)
MILESTONE = Metric(
    "coldstream_startup_milestone_seconds", "gauge", "When a milestone was reached, since exec.", ("milestone",)
)
COLD_START = Metric(
    "coldstream_startup_duration_seconds", "gauge", "The cold start's spans between milestones.", ("span",)
)
FALLBACKS = Metric(
    "coldstream_fallbacks_total", "counter", "What was replaced because it was not to be had.", ("what",)
)
RESTARTS = Metric(
    "coldstream_process_restarts_total", "counter", "Times that a process was started again.", ("process",)
)
SPANS_DROPPED = Metric("coldstream_traces_dropped_total", "counter", "Traces that could not be handed to the exporter.")

METRICS = tuple(value for value in tuple(globals().values()) if isinstance(value, Metric))

# The milestones of a cold start, in order, and the spans between them: /startupz, metrics and traces use these names.
FETCH_START = "artifact_fetch_start"
FETCH_END = "artifact_fetch_end"
STAGING_COMPLETE = "host_staging_complete"
LOAD_COMPLETE = "model_load_complete"
FIRST_TOKEN = "first_token_time"  # noqa: S105 - a token of text
READY = "ready_time"
FIRST_ANSWER = "first_answer_time"
COLD_START_FROM_EXEC_S = "cold_start_from_exec_s"
SPANS = {
    "fetch_s": (FETCH_START, FETCH_END),
    "stage_s": (FETCH_END, STAGING_COMPLETE),
    "load_s": (STAGING_COMPLETE, LOAD_COMPLETE),
    "ttft_s": (LOAD_COMPLETE, FIRST_TOKEN),
    "cold_start_s": (FETCH_START, FIRST_TOKEN),
}

# Spans, and attributes of them that no convention names.
STARTUP_SPAN = "startup"
FIRST_ANSWER_SPAN = "first_answer"
SHARD_SPANS = {"fetch": "shard.fetch", "stage": "shard.stage", "copy": "shard.copy"}
BYTES = "coldstream.bytes"
THROUGHPUT = "coldstream.throughput_bytes_per_s"
SHARD = "coldstream.shard"
UNATTRIBUTED_MS = "unattributed_ms"
OVERLAP_RATIO = "overlap_ratio"
FALLBACK_ATTRIBUTE = "coldstream.fallbacks"
RESTARTS_ATTRIBUTE = "coldstream.restarts.{}"
RETRIES_ATTRIBUTE = "coldstream.retries"
VERIFIED_ATTRIBUTE, UNVERIFIED_ATTRIBUTE = "coldstream.verified_bytes", "coldstream.unverified_bytes"
DEVICE_USED_ATTRIBUTE = "coldstream.gpu_memory.{}_bytes"
RANGE_COUNT = "coldstream.ranges"
RANGE_EVENT = "slow_range"
RANGE_START, RANGE_END, RANGE_DURATION_S = (
    "coldstream.range.start",
    "coldstream.range.end",
    "coldstream.range.duration_s",
)
REQUEST_ID = "coldstream.request_id"
QUEUE_EVENT, READY_EVENT, PREFILL_EVENT, DECODE_EVENT = "queue", "ready", "prefill", "decode"

# What the ledger's phases, which are the startup trace's spans, mean.
PHASES = {
    "interpreter": "exec until the first line of ours; loader and engine are spawned there",
    "server.settings": "until the settings are read",
    "server.bind": "the socket",
    "server.import": "FastAPI imported, the API built",
    "server.tokenizer": "the tokenizer read",
    "loader.spawn": "the loader's interpreter and first imports",
    "source.headers": "both rounds of metadata reads",
    "plan": "every address and every read decided",
    "arena": "the memory of the weights made",
    "weights.fetch": "the first read of weights asked for, until the last byte was fetched",
    "weights.stage": "fetched chunks waited in host memory for a writer",
    "weights.copy": "chunks were put at their addresses (on a GPU by way of pinned memory)",
    "engine.exec": "the engine's interpreter",
    "engine.import": "torch imported, as far as the engine waits for it",
    "engine.transformers": "transformers imported, for a model that our own decoder does not compute",
    "engine.bind": "the skeleton bound to the arena",
    "engine.cache": "the KV cache made",
    "engine.warmup": "a pass on whatever bytes were there; left out where all had landed",
    "engine.capture": "CUDA graphs, as many as the wait for bytes allows; on a GPU only",
    "weights.load": "what is left to copy once all bytes are there; nothing where they are served in place",
    "engine.first_pass": "a pass over the real weights, checked",
    "ready": "the engine's word until `/health` turned 200",
}

# Attributes of OpenTelemetry's conventions: of HTTP server spans, and of inference.
ERROR_TYPE = "error.type"
HTTP_METHOD, HTTP_ROUTE, HTTP_STATUS = "http.request.method", "http.route", "http.response.status_code"
URL_PATH, URL_SCHEME, CLIENT_ADDRESS = "url.path", "url.scheme", "client.address"
OPERATION, PROVIDER_NAME = "gen_ai.operation.name", "gen_ai.provider.name"
REQUEST_MODEL, RESPONSE_MODEL = "gen_ai.request.model", "gen_ai.response.model"
REQUEST_STREAM, REQUEST_CHOICES = "gen_ai.request.stream", "gen_ai.request.choice.count"
REQUEST_TEMPERATURE, REQUEST_TOP_P, REQUEST_TOP_K = (
    "gen_ai.request.temperature",
    "gen_ai.request.top_p",
    "gen_ai.request.top_k",
)
REQUEST_SEED, REQUEST_MAX_TOKENS = "gen_ai.request.seed", "gen_ai.request.max_tokens"
INPUT_TOKENS, OUTPUT_TOKENS = "gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens"
CACHED_INPUT_TOKENS = "gen_ai.usage.cache_read.input_tokens"
FINISH_REASONS = "gen_ai.response.finish_reasons"
