"""The settings of the `engine`, `server` and `observability` sections: how the loaded model is served.

Knows no model and no source.
"""

from typing import Annotated

from app.last_words import TERMINATION_LOG
from app.messages import EngineOptions
from app.settings.kinds import (
    BOOL,
    DEVICE,
    MIB,
    SECRETS,
    TEXT,
    URI,
    WORDS,
    choice,
    count,
    integer,
    number,
    size,
)
from app.settings.table import Section, Setting

_ENGINE = EngineOptions()


class EngineSettings(Section, frozen=True, kw_only=True):
    """How the engine runs."""

    device: Annotated[
        str,
        Setting(DEVICE, "Where the model runs; auto is the first visible GPU, or the CPU where there is no driver."),
    ] = "auto"
    max_num_seqs: Annotated[int, Setting(integer(1), "How many sequences one step computes at most.")] = (
        _ENGINE.max_num_seqs
    )
    max_num_batched_tokens: Annotated[
        int, Setting(count(1), "How many tokens one step computes at most.", unit="tokens")
    ] = _ENGINE.max_num_batched_tokens
    block_size: Annotated[int, Setting(integer(1), "Tokens in one block of the KV cache.", unit="tokens")] = (
        _ENGINE.block_size_tokens
    )
    prefix_caching: Annotated[
        bool,
        Setting(
            BOOL,
            "Compute an equal beginning of several prompts once, as long as its blocks are in the KV cache.",
            flags=("--enable-prefix-caching",),
        ),
    ] = _ENGINE.prefix_caching
    kv_cache_bytes: Annotated[
        int | None,
        Setting(
            size(1),
            "Memory of the KV cache.",
            flags=("--kv-cache-memory-bytes",),
            unit="bytes",
            unset="the engine chooses",
        ),
    ] = _ENGINE.kv_cache_bytes
    gpu_memory_utilization: Annotated[
        float,
        Setting(number(0.01, 1), "Share of the GPU's memory that weights and KV cache may fill together."),
    ] = _ENGINE.gpu_memory_utilization
    kernels_dir: Annotated[
        str | None,
        Setting(
            TEXT,
            "A folder of kernels that were compiled ahead, as the image for GPUs has one; what it lacks is compiled.",
            unset="none",
        ),
    ] = _ENGINE.kernels_dir
    step_timeout_s: Annotated[
        float | None,
        Setting(
            number(1),
            "How long a step may take; then the engine is taken for hung, and another one is started.",
            unit="s",
            unset="60 on a GPU, 600 on a CPU",
        ),
    ] = None
    tensor_parallel_size: Annotated[
        int, Setting(integer(1), "Over how many GPUs the model is split; only 1 for now.")
    ] = 1


class ServerSettings(Section, frozen=True, kw_only=True):
    """What HTTP clients meet. With no `api_keys`, everybody may ask."""

    host: Annotated[str, Setting(TEXT, "The address to listen on.")] = "0.0.0.0"  # noqa: S104 - a server in a pod
    port: Annotated[int, Setting(integer(0, 65535), "The port to listen on; 0 is any that is free.")] = 8000
    api_keys: Annotated[
        tuple[str, ...],
        Setting(
            SECRETS,
            "Keys of which a client must send one; a flag is visible to every user of the machine.",
            flags=("--api-key",),
            unset="no key is asked for",
            secret=True,
        ),
    ] = ()
    drain_timeout_s: Annotated[
        float, Setting(number(0), "How long running requests may take to end at shutdown.", unit="s")
    ] = 30.0
    max_waiting_requests: Annotated[
        int, Setting(integer(1), "How many sequences may be in the engine, waiting or running; more are answered 429.")
    ] = 256
    while_loading: Annotated[
        str,
        Setting(
            choice("refuse", "wait"),
            "What a request without X-Coldstream-Wait meets before the server is ready: a 503, or its turn.",
        ),
    ] = "refuse"
    while_loading_timeout_s: Annotated[
        float,
        Setting(number(0.001), "How long such a request waits where it does; then it is answered 503.", unit="s"),
    ] = 120.0
    max_held_requests: Annotated[
        int,
        Setting(
            integer(0),
            "How many requests may wait for the server to be ready, each with a body of up to max_body_bytes in memory; "
            "more are answered 503.",
        ),
    ] = 64
    request_deadline_s: Annotated[
        float | None,
        Setting(
            number(0.001),
            "How long a generation may take, waiting for the engine (not for readiness) included; what takes longer ends with an error.",
            unit="s",
            unset="no limit",
        ),
    ] = None
    stream_keep_alive_s: Annotated[
        float,
        Setting(number(0), "After how much silence a stream gets a comment that keeps it open; 0 is never.", unit="s"),
    ] = 15.0
    allowed_origins: Annotated[
        tuple[str, ...],
        Setting(WORDS, "Origins whose pages may use the API from a browser (CORS); * is any.", unset="none"),
    ] = ()
    allowed_methods: Annotated[tuple[str, ...], Setting(WORDS, "HTTP methods that these pages may use.")] = ("*",)
    allowed_headers: Annotated[tuple[str, ...], Setting(WORDS, "Request headers that these pages may send.")] = ("*",)
    allow_credentials: Annotated[
        bool,
        Setting(BOOL, "Whether these pages may send cookies and the like."),
    ] = False
    max_body_bytes: Annotated[
        int, Setting(size(1), "Largest request body; a larger one is answered 413.", unit="bytes")
    ] = 4 * MIB


class ObservabilitySettings(Section, frozen=True, kw_only=True):
    """What is told about a run."""

    log_level: Annotated[str, Setting(choice("debug", "info", "warning", "error"), "The least severe line logged.")] = (
        "info"
    )
    log_format: Annotated[
        str,
        Setting(
            choice("auto", "json", "text"),
            "One JSON object per line, or text for people; auto is text on a terminal and JSON elsewhere.",
        ),
    ] = "auto"
    termination_log: Annotated[
        str,
        Setting(TEXT, "Where the reason of a failed end is written too, if that file exists (Kubernetes reads it)."),
    ] = TERMINATION_LOG
    otlp_traces_endpoint: Annotated[
        str,
        Setting(
            URI,
            "Where traces go; every other OTEL_ variable is honoured as OpenTelemetry's SDK for Python does.",
            variables=("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",),
            unset="OTEL_EXPORTER_OTLP_ENDPOINT, or no traces",
        ),
    ] = ""
    emit_phase_timings: Annotated[bool, Setting(BOOL, "Log the startup ledger, phase by phase.")] = True
    emit_gpu_memory_watermark: Annotated[
        bool,
        Setting(
            BOOL,
            "Log at the end the most GPU memory that was ever taken; the metric is there without it.",
            flags=(),
        ),
    ] = False
    emit_first_token_latency: Annotated[bool, Setting(BOOL, "Report the time to the first token.")] = True
