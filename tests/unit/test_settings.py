"""What users may write in flags, variables and files, in the dialects that they know, and what wins."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.messages import EngineOptions
from app.settings import Settings, load
from app.settings.kinds import BOOL, MIB
from app.settings.tree import ROWS
from streaming.options import AzureOptions, HedgingOptions, PipelineOptions, SourceOptions, ThrottlingOptions
from streaming.retry_policy import LONGEST_WAIT_S
from tests.unit.configurations import CASE_STUDY, URI, config_file, value_at


def test_case_study_file_loads_literally(tmp_path):
    """The case study's YAML means, key by key, what it says."""
    settings = load([URI, "--config", config_file(tmp_path, CASE_STUDY)], {})
    expected = {
        "model.format": "safetensors",
        "model.shard_count": 16,
        "model.load_strategy": "direct-gpu",
        "startup.readiness_probe_initial_delay_seconds": 20,
        "startup.warmup_prompt": "hello",
        "startup.fail_if_checksum_mismatch": True,
        "storage.lanes": 8,
        "storage.local_nvme_cache_enabled": True,
        "observability.emit_phase_timings": True,
        "observability.emit_gpu_memory_watermark": True,
        "observability.emit_first_token_latency": True,
    }
    assert {path: value_at(settings, path) for path in expected} == expected


def test_case_study_file_is_told_what_changes_nothing(tmp_path):
    """Each setting of the case study that is not active gives one notice with its value and origin."""
    path = config_file(tmp_path, CASE_STUDY)
    notices = load([URI, "--config", path], {}).notices
    assert (
        f"startup.readiness_probe_initial_delay_seconds=20 (from file {path}) is unnecessary: /health is 503 until ready"
        in notices
    )
    assert {notice.partition("=")[0] for notice in notices} == {
        "startup.readiness_probe_initial_delay_seconds",
    }


@pytest.mark.parametrize(("value", "strategy"), [("true", "direct-gpu"), ("false", "host-staging")])
def test_direct_gpu_load_chooses_the_strategy(tmp_path, value, strategy):
    """The file's boolean direct_gpu_load is the two-valued load strategy."""
    path = config_file(tmp_path, f"model:\n  direct_gpu_load: {value}\n")
    assert load([URI, "--config", path], {}).model.load_strategy == strategy


def test_case_study_variables():
    """The case study's variables are read, and all of them mean something."""
    environ = {
        "MODEL_SOURCE_URI": URI,
        "MODEL_LOAD_STRATEGY": "host-staging",
        "USE_PINNED_HOST_FALLBACK": "false",
    }
    settings = load([], environ)
    assert settings.model.uri == URI
    assert settings.model.load_strategy == "host-staging"
    assert settings.model.pinned_host_fallback is False
    assert settings.notices == ()
    assert settings.destination_options().host_fallback is settings.engine_options().host_fallback is False


def test_vllm_command_line():
    """Flags of vLLM mean what they mean there, its extra loader config included."""
    extra = '{"concurrency":32,"memory_limit":-1,"distributed":true}'
    settings = load(
        f"--model {URI} --load-format runai_streamer --served-model-name llama base --host 127.0.0.1 --port 9000"
        " --api-key k1 k2 --max-model-len 8k --gpu-memory-utilization 0.9 --max-num-seqs 4"
        " --max-num-batched-tokens 4K --dtype bfloat16 --tensor-parallel-size 1 --kv-cache-memory-bytes 1G"
        f" --block-size 32 --model-loader-extra-config {extra}".split(),
        {},
    )
    expected = {
        "model.uri": URI,
        "model.format": "safetensors",
        "model.served_model_names": ("llama", "base"),
        "model.dtype": "bfloat16",
        "model.max_model_len": 8000,
        "server.host": "127.0.0.1",
        "server.port": 9000,
        "server.api_keys": ("k1", "k2"),
        "engine.gpu_memory_utilization": 0.9,
        "engine.max_num_seqs": 4,
        "engine.max_num_batched_tokens": 4096,
        "engine.tensor_parallel_size": 1,
        "engine.kv_cache_bytes": 1 << 30,
        "engine.block_size": 32,
        "storage.lanes": 32,
        "storage.memory_limit_bytes": -1,
        "storage.distributed": True,
    }
    assert {path: value_at(settings, path) for path in expected} == expected
    assert {notice.partition("=")[0] for notice in settings.notices} == {
        "storage.distributed",
    }


def test_engine_options_carry_the_engine_settings():
    """The engine process is handed exactly what was configured for it."""
    argv = "--max-model-len 512 --max-num-seqs 3 --max-num-batched-tokens 64 --block-size 8 --kv-cache-memory-bytes 7"
    argv += " --no-enable-prefix-caching"
    options = load([URI, *argv.split()], {}).engine_options()
    assert (options.device, options.max_model_len_tokens, options.max_num_seqs) == ("cpu", 512, 3)
    assert (options.max_num_batched_tokens, options.block_size_tokens, options.kv_cache_bytes) == (64, 8, 7)
    assert not options.prefix_caching


def test_runai_variables():
    """The Run:ai streamer's variables set lanes, chunk size and memory limit."""
    environ = {
        "RUNAI_STREAMER_CONCURRENCY": "4",
        "RUNAI_STREAMER_CHUNK_BYTESIZE": "2097152",
        "RUNAI_STREAMER_MEMORY_LIMIT": "67108864",
    }
    storage = load([URI], environ).storage
    assert (storage.lanes, storage.chunk_bytes, storage.memory_limit_bytes) == (4, 2 * MIB, 64 * MIB)
    assert storage.pipeline_options() == PipelineOptions(lanes=4, chunk_bytes=2 * MIB)


def test_azure_variables_become_azure_options():
    """Every Azure variable reaches the option of `streaming` that it is about."""
    environ = {
        "AZURE_STORAGE_ACCOUNT_NAME": "name",
        "AZURE_STORAGE_ACCOUNT_KEY": "key",
        "AZURE_STORAGE_SAS_TOKEN": "sas",
        "AZURE_STORAGE_CONNECTION_STRING": "string",
        "AZURE_STORAGE_ENDPOINT_SUFFIX": "blob.example",
        "AZURE_STORAGE_BLOB_ENDPOINT": "http://127.0.0.1:10000/name",
        "AZURE_CLIENT_ID": "client",
        "AZURE_TENANT_ID": "tenant",
        "AZURE_AUTHORITY_HOST": "https://login.example",
        "AZURE_FEDERATED_TOKEN_FILE": "/token",
        "AZURE_TOKEN_CREDENTIALS": "WorkloadIdentityCredential",
    }
    assert load([URI], environ).storage.source_options() == SourceOptions(
        azure=AzureOptions(
            account_name="name",
            account_key="key",
            sas_token="sas",
            connection_string="string",
            endpoint_suffix="blob.example",
            endpoint="http://127.0.0.1:10000/name",
            client_id="client",
            tenant_id="tenant",
            authority_host="https://login.example",
            federated_token_file="/token",
            credential="workload-identity",
        )
    )


def test_azure_variables_second_names():
    """The az command's shorter names are read where the first ones are not set."""
    azure = load([URI], {"AZURE_STORAGE_ACCOUNT": "a", "AZURE_STORAGE_KEY": "k"}).storage.source_options().azure
    assert (azure.account_name, azure.account_key) == ("a", "k")


def test_timeouts_reach_the_source():
    """Timeouts and retries of the command line reach the source's options."""
    argv = ["--connect-timeout", "1", "--request-timeout", "2", "--max-retries", "3", "--retry-timeout", "4.5"]
    options = load([URI, *argv], {}).storage.source_options()
    assert (options.connect_timeout_s, options.request_timeout_s) == (1, 2)
    assert (options.max_retries, options.retry_timeout_s) == (3, 4.5)


def test_a_source_that_does_nothing_meets_the_limit_of_stalls_first():
    """No read is given up for good before it by default; a dead connection is, so that another one is tried."""
    settings = load([URI], {})
    options, stall_s = settings.storage.source_options(), settings.startup.stall_timeout_s
    assert options.read_timeout_s * 3 < stall_s <= options.request_timeout_s
    # The wait that would exceed it is not begun.
    assert stall_s < options.retry_timeout_s - LONGEST_WAIT_S
    assert options.read_timeout_s * (1 + options.max_retries) > stall_s


def test_the_pace_of_a_load_reaches_the_pipeline():
    """What may be read twice, at once, per second and how late, beside lanes and chunks."""
    argv = "--hedge-budget-ratio 0 --min-concurrency 2 --max-bandwidth 500m --start-jitter 1.5 --concurrency 4"
    assert load([URI, *argv.split()], {}).storage.pipeline_options() == PipelineOptions(
        lanes=4,
        hedging=HedgingOptions(budget_ratio=0),
        throttling=ThrottlingOptions(min_lanes=2, max_bandwidth_bytes_per_s=500_000_000, start_jitter_s=1.5),
    )


def test_defaults_are_those_of_the_processes():
    """With nothing given, loader and engine run with their own defaults and nothing is noticed."""
    settings = load([URI], {})
    assert settings.storage.source_options() == SourceOptions()
    assert settings.storage.pipeline_options() == PipelineOptions()
    assert settings.engine_options() == EngineOptions()
    assert settings.notices == ()
    assert (settings.server.port, settings.server.max_body_bytes, settings.startup.warmup_prompt) == (
        8000,
        4 * MIB,
        "Hello",
    )


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        (URI, "llama-8b"),
        ("az://models/llama-8b/", "llama-8b"),
        ("https://account.blob.core.windows.net/models/v1/m", "m"),
        ("az://models", "models"),
        ("/models/local", "local"),
        ("local", "local"),
        (".", Path.cwd().name),
    ],
)
def test_served_name_is_the_last_path_component(uri, name):
    """Without a name, clients call the model by the last component of its URI."""
    assert load([uri], {}).model.served_model_names == (name,)


SWITCHES = [(flag, row) for row in ROWS for flag, kind in row.flags().items() if kind is BOOL]


@pytest.mark.parametrize(("flag", "row"), SWITCHES, ids=[flag for flag, _ in SWITCHES])
@pytest.mark.parametrize("after", [[], ["--port", "1"], [URI]], ids=["last", "before a flag", "before the model"])
def test_a_boolean_flag_is_said_in_every_way(flag, row, after):
    """Alone, as --no-..., or with a value of its own, whatever stands behind it; the model is never its value."""
    opposite = f"--no-{flag.removeprefix('--')}"
    ways = {
        True: [[flag], [flag, "true"], [flag, "YES"], [f"{flag}=1"], [opposite, "false"]],
        False: [[opposite], [flag, "false"], [flag, "0"], [f"{flag}=no"], [f"{opposite}=true"]],
    }
    before = [] if URI in after else [URI]
    for expected, forms in ways.items():
        for words in forms:
            settings = load([*before, *words, *after], {})
            assert (value_at(settings, row.path), settings.model.uri) == (expected, URI), words


def test_every_boolean_that_has_a_flag_is_such_a_flag():
    """And no other word of a command line is taken for one: behind two dashes there are only arguments."""
    assert {row.path for _, row in SWITCHES} == {row.path for row in ROWS if row.flags() and row.setting.kind is BOOL}
    assert len(SWITCHES) == 6
    assert load(["--", "--enable-prefix-caching"], {}).model.uri == "--enable-prefix-caching"


CASES = {
    "server.port": ("--port", "COLDSTREAM_PORT", "server", "port", st.integers(0, 65535)),
    "storage.lanes": (
        "--concurrency",
        "RUNAI_STREAMER_CONCURRENCY",
        "storage",
        "prefetch_concurrency",
        st.integers(1, 256),
    ),
    "observability.emit_phase_timings": (
        "--emit-phase-timings",
        "COLDSTREAM_EMIT_PHASE_TIMINGS",
        "observability",
        "emit_phase_timings",
        st.booleans(),
    ),
    "startup.warmup_prompt": (
        "--warmup-prompt",
        "COLDSTREAM_WARMUP_PROMPT",
        "startup",
        "warmup_prompt",
        st.sampled_from(["one", "two", "three"]),
    ),
}


@given(data=st.data())
def test_precedence(tmp_path_factory, data):
    """A flag wins over a variable, a variable over the file, the file over the default."""
    argv, environ, sections, expected = [URI], {}, {}, {}
    for path, (flag, variable, section, key, values) in CASES.items():
        expected[path] = value_at(Settings(), path)
        if (in_file := data.draw(st.none() | values)) is not None:
            sections.setdefault(section, []).append(f"  {key}: {in_file}")
            expected[path] = in_file
        if (in_environ := data.draw(st.none() | values)) is not None:
            environ[variable] = str(in_environ)
            expected[path] = in_environ
        if (in_flag := data.draw(st.none() | values)) is not None:
            argv += [flag, str(in_flag)]
            expected[path] = in_flag
    config = tmp_path_factory.mktemp("config") / "c.yaml"
    config.write_text("\n".join(f"{name}:\n" + "\n".join(lines) for name, lines in sections.items()))
    settings = load([*argv, "--config", str(config)], environ)
    assert {path: value_at(settings, path) for path in CASES} == expected


def test_own_variable_wins_over_one_from_elsewhere():
    """COLDSTREAM_... wins over a name that users know from another tool."""
    environ = {"COLDSTREAM_CONCURRENCY": "3", "RUNAI_STREAMER_CONCURRENCY": "5"}
    assert load([URI], environ).storage.lanes == 3


def test_argument_wins_over_variables():
    """The positional URI wins over both variables that name a model."""
    assert load([URI], {"COLDSTREAM_MODEL": "az://x/y", "MODEL_SOURCE_URI": "az://x/z"}).model.uri == URI


def test_config_path_from_the_environment(tmp_path):
    """COLDSTREAM_CONFIG names the file where no flag does."""
    assert load([URI], {"COLDSTREAM_CONFIG": config_file(tmp_path, "server:\n  port: 81\n")}).server.port == 81


def test_empty_variable_is_unset():
    """A variable that is empty is not there, be it known or unknown."""
    assert load([URI], {"COLDSTREAM_PORT": "", "COLDSTREAM_NONSENSE": ""}) == load([URI], {})


def test_last_flag_wins_and_many_valued_flags_add_up():
    """A flag given again replaces its value; --api-key given again adds one."""
    settings = load([URI, "--port", "1", "--port=2", "--api-key", "a", "--api-key", "b"], {})
    assert (settings.server.port, settings.server.api_keys) == (2, ("a", "b"))


def test_null_in_the_file_is_unset(tmp_path):
    """An empty key or section of the file leaves the defaults alone."""
    path = config_file(tmp_path, "model:\n  max_model_len:\nserver:\n")
    assert load([URI, "--config", path], {}) == load([URI], {})
