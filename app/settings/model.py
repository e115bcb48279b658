"""The settings of the `model` and `startup` sections: what is served, and what happens until it is.

Knows no source of bytes and no engine.
"""

from typing import Annotated

from app.settings.kinds import BOOL, NOT, TEXT, TEXTS, URI, choice, count, integer, mapped, number, switch
from app.settings.table import Section, Setting
from streaming.options import DIRECT_GPU, HOST_STAGING

_LOAD_FORMATS = mapped(dict.fromkeys(("auto", "safetensors", "runai_streamer"), "safetensors"))


class ModelSettings(Section, frozen=True, kw_only=True):
    """Which model, under which name, in which form. `uri` is set for `serve` and "" elsewhere."""

    uri: Annotated[
        str,
        Setting(
            URI,
            "Where the checkpoint lies; also the positional argument of serve.",
            flags=("--model",),
            variables=("MODEL_SOURCE_URI",),
            unset="none",
        ),
    ] = ""
    served_model_names: Annotated[
        tuple[str, ...],
        Setting(
            TEXTS,
            "What clients may call the model; the first is the name in answers.",
            flags=("--served-model-name",),
            unset="the last path component of the URI",
        ),
    ] = ()
    dtype: Annotated[
        str,
        Setting(
            choice("auto", "bfloat16", "float16", "float32"),
            "The weights' dtype in memory; auto is the checkpoint's own, as far as the device computes in it.",
        ),
    ] = "auto"
    max_model_len: Annotated[
        int | None,
        Setting(count(1), "Longest prompt and answer together.", unit="tokens", unset="the model's own limit"),
    ] = None
    generation_config: Annotated[
        str,
        Setting(
            choice("auto", "vllm"),
            "Where sampling defaults come from: auto is the checkpoint's generation_config.json, vllm none at all.",
        ),
    ] = "auto"
    format: Annotated[
        str, Setting(choice("safetensors"), "The checkpoint's format.", flags=(("--load-format", _LOAD_FORMATS),))
    ] = "safetensors"
    shard_count: Annotated[
        int | None,
        Setting(integer(1), "How many shards the checkpoint must have.", unset="not checked"),
    ] = None
    load_strategy: Annotated[
        str,
        Setting(
            choice(DIRECT_GPU, HOST_STAGING),
            "How weights reach the device: streamed into its memory, or, to compare, by way of whole shards on disk.",
            variables=("MODEL_LOAD_STRATEGY",),
            keys=(("direct_gpu_load", switch(DIRECT_GPU, HOST_STAGING)),),
        ),
    ] = DIRECT_GPU
    pinned_host_fallback: Annotated[
        bool,
        Setting(
            BOOL,
            "Land the weights through host memory where the GPU's cannot be shared or pinned, instead of failing.",
            flags=("--pinned-host-fallback", ("--no-host-fallback", NOT)),
            variables=("USE_PINNED_HOST_FALLBACK",),
        ),
    ] = True


class StartupSettings(Section, frozen=True, kw_only=True):
    """What happens between exec and ready, and when that fails."""

    warmup_prompt: Annotated[
        str, Setting(TEXT, "Its first 16 tokens pass once through the real weights before /health says 200.")
    ] = "Hello"
    readiness_probe_initial_delay_seconds: Annotated[
        int | None,
        Setting(
            integer(0),
            "Taken from configurations of servers that need it.",
            flags=(),
            unit="s",
            unset="none",
            status="unnecessary: /health is 503 until ready",
        ),
    ] = None
    fail_if_checksum_mismatch: Annotated[
        bool,
        Setting(
            BOOL,
            "Refuse bytes whose checksum differs from the manifest's; otherwise they are logged, counted and used.",
        ),
    ] = True
    stall_timeout_s: Annotated[
        float,
        Setting(
            number(1),
            "After how long without a landed byte the load goes on over new connections; if that does not help, it fails.",
            unit="s",
        ),
    ] = 120.0
    engine_start_timeout_s: Annotated[
        float,
        Setting(
            number(1),
            "How long the engine may be silent between landed weights and ready; then another one is started.",
            unit="s",
        ),
    ] = 600.0
    fail_linger_s: Annotated[
        float, Setting(number(0), "How long /health shows a failure before the server exits.", unit="s")
    ] = 0.0


def default_model_name(uri: str) -> str:
    """The last path component of a URI or path, as a folder named "." has it too."""
    name = uri.rstrip("/").rpartition("/")[2]
    if name in {"", ".", ".."}:
        from pathlib import Path  # 7 ms that a URI need not pay

        name = Path(uri).resolve().name
    return name or uri
