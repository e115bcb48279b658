"""What users are told when a setting cannot be meant, and that no secret is ever told."""

from __future__ import annotations

import pytest

from app.settings import load
from app.settings.tree import ROWS
from tests.unit.configurations import SECRETS, URI, config_file, message


@pytest.mark.parametrize(
    ("argv", "environ", "parts"),
    [
        ([URI, "--prot", "1"], {}, ["unknown flag '--prot'", "did you mean --port?"]),
        ([URI, "--max-num-seq", "1"], {}, ["unknown flag '--max-num-seq'", "did you mean --max-num-seqs?"]),
        ([URI, "-p", "1"], {}, ["unknown flag '-p'"]),
        ([URI], {"COLDSTREAM_PROT": "1"}, ["unknown variable 'COLDSTREAM_PROT'", "did you mean COLDSTREAM_PORT?"]),
        ([URI, "--port"], {}, ["--port", "expected 1 argument"]),
        ([URI, "--port", "x"], {}, ["server.port (from flag --port)", "an integer from 0 to 65535", "'x'"]),
        ([URI, "--port", "65536"], {}, ["server.port", "an integer from 0 to 65535"]),
        ([URI], {"COLDSTREAM_PORT": "8e3"}, ["server.port (from variable COLDSTREAM_PORT)", "an integer from 0"]),
        ([URI], {"RUNAI_STREAMER_CONCURRENCY": "0"}, ["storage.lanes (from variable RUNAI_STREAMER_CONCURRENCY)"]),
        ([URI, "--drain-timeout", "nan"], {}, ["server.drain_timeout_s", "a number of at least 0"]),
        ([URI, "--drain-timeout", "inf"], {}, ["server.drain_timeout_s", "a number of at least 0"]),
        ([URI, "--chunk-mib", "257"], {}, ["storage.chunk_bytes", "from 1 to 256 (MiB)"]),
        ([URI, "--memory-limit", "2TB"], {}, ["storage.memory_limit_bytes", "-1 (no limit)"]),
        ([URI, "--memory-limit", "4194303"], {}, ["storage.memory_limit_bytes", "one lane"]),
        ([URI, "--emit-phase-timings=maybe"], {}, ["observability.emit_phase_timings", "true or false", "'maybe'"]),
        (
            [URI, "--emit-phase-timings", "maybe"],
            {},
            ["too many arguments", "--emit-phase-timings takes true or false"],
        ),
        ([URI, "--enable-prefix-caching", "--no-enable-prefix-caching"], {}, ["engine.prefix_caching is given twice"]),
        ([URI, "--load-format", "gguf"], {}, ["model.format", "auto, safetensors, runai_streamer"]),
        ([URI, "--dtype", "int8"], {}, ["model.dtype", "auto, bfloat16, float16, float32"]),
        ([URI, "--azure-credential", "magic"], {}, ["storage.azure_credential", "managed-identity"]),
        ([URI, "--device", "gpu"], {}, ["engine.device", "auto, cpu, cuda or cuda:N"]),
        ([URI, "--device", "cuda:2"], {"CUDA_VISIBLE_DEVICES": "0,1"}, ["engine.device=cuda:2", "shows 2 GPUs"]),
        ([URI, "--tensor-parallel-size", "2"], {}, ["engine.tensor_parallel_size", "not yet"]),
        (
            [URI, "--max-bandwidth", "1MiB", "--chunk-mib", "256"],
            {},
            ["storage.max_bandwidth_bytes_per_s", "256 MiB takes 256 s", "--stall-timeout (120 s)", "--chunk-bytes"],
        ),
        ([], {}, ["no model", "coldstream serve URI", "COLDSTREAM_MODEL"]),
        ([URI, "--model", "az://other/model"], {}, ["model.uri is given twice", "argument URI", "--model"]),
        ([URI, "other"], {}, ["too many arguments"]),
        ([URI, "--api-key", ""], {}, ["server.api_keys (from flag --api-key)"]),
        ([URI], {"COLDSTREAM_API_KEY": "a,,b"}, ["server.api_keys (from variable COLDSTREAM_API_KEY)"]),
        ([URI, "--config", "/nowhere/x.yaml"], {}, ["/nowhere/x.yaml", "cannot be read"]),
        (
            [URI, "--model-loader-extra-config", '{"concurency":1}'],
            {},
            ["unknown key 'concurency'", "did you mean concurrency?", "--model-loader-extra-config", "memory_limit"],
        ),
        ([URI, "--model-loader-extra-config", '{"concurrency":"8"}'], {}, ["storage.lanes", "an integer", "'8'"]),
        ([URI, "--model-loader-extra-config", "{"], {}, ["--model-loader-extra-config", "not JSON"]),
        ([URI, "--model-loader-extra-config", "[]"], {}, ["--model-loader-extra-config", "keys with values"]),
        (
            [URI, "--concurrency", "2", "--model-loader-extra-config", '{"concurrency":3}'],
            {},
            ["storage.lanes is given twice"],
        ),
    ],
)
def test_refused(argv, environ, parts):
    """A mistake in flags or variables is one line with the key, its origin and what is accepted."""
    text = message(["serve", *argv], environ)
    assert [part for part in parts if part not in text] == []


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("modle:\n  dtype: auto\n", ["unknown section 'modle'", "did you mean model?"]),
        ("server:\n  prot: 1\n", ["unknown key 'server.prot'", "did you mean server.port?", "config.yaml"]),
        ("server:\n  1: 1\n", ["unknown key 'server.1'"]),
        ("server:\n  port: '8000'\n", ["server.port (from file ", "config.yaml)", "an integer", "'8000'"]),
        ("server:\n  port: true\n", ["server.port", "an integer"]),
        ("server:\n  port: 8000.0\n", ["server.port", "an integer"]),
        ("server:\n  port: [1, 2]\n", ["server.port", "an integer"]),
        ("storage:\n  prefetch_concurrency: many\n", ["storage.lanes", "config.yaml, storage.prefetch_concurrency"]),
        ("storage:\n  lanes: 1\n  prefetch_concurrency: 2\n", ["storage.lanes is given twice"]),
        ("observability:\n  emit_phase_timings: 1\n", ["observability.emit_phase_timings", "true or false"]),
        ("model:\n  format: gguf\n", ["model.format", "safetensors"]),
        ("model:\n  format: runai_streamer\n", ["model.format", "safetensors"]),
        ("model:\n  served_model_names: [a, 1]\n", ["model.served_model_names", "one name or several"]),
        ("model:\n  served_model_names: []\n", ["model.served_model_names", "one name or several"]),
        ("server:\n  port: 1\n  port: 2\n", ["config.yaml, line 3", "'port' stands twice"]),
        ("{server: {port: 1}, server: {host: h}}\n", ["config.yaml, line 1", "'server' stands twice"]),
        ("? [a]\n: 1\n", ["config.yaml, line 1", "not YAML"]),
        ("model: auto\n", ["config.yaml, model", "keys with values"]),
        ("- a\n", ["config.yaml", "keys with values"]),
        ("a: b: c\n", ["config.yaml, line 1", "not YAML"]),
        ("a: \x07\n", ["config.yaml", "not YAML"]),
    ],
)
def test_refused_in_the_file(tmp_path, text, parts):
    """A mistake in the file is one line with the file, the key path and what is accepted."""
    said = message(["serve", URI, "--config", config_file(tmp_path, text)])
    assert [part for part in parts if part not in said] == []


def test_file_that_is_not_text_is_refused(tmp_path):
    """A file that is not UTF-8 is a usage error too."""
    path = tmp_path / "x.yaml"
    path.write_bytes(b"\xff\xfe\xff")
    assert "not YAML" in message(["serve", URI, "--config", str(path)])


def test_several_names_in_the_file(tmp_path):
    """The file may name one served model, or a list of them."""
    one = load([URI, "--config", config_file(tmp_path, "model:\n  served_model_names: a\n")], {})
    two = load([URI, "--config", config_file(tmp_path, "model:\n  served_model_names: [a, b]\n")], {})
    assert (one.model.served_model_names, two.model.served_model_names) == (("a",), ("a", "b"))


def test_long_values_are_cut_short():
    """However long a wrong value is, the line that refuses it stays readable."""
    assert len(message(["serve", URI, "--port", "9" * 10_000])) < 200


def test_same_value_under_two_names_is_no_mistake():
    """--model that repeats the argument contradicts nothing."""
    assert load([URI, "--model", URI], {}).model.uri == URI


def test_service_links_of_kubernetes_are_not_settings():
    """What Kubernetes sets for a Service named coldstream neither fails nor becomes the port."""
    environ = {
        "COLDSTREAM_SERVICE_HOST": "10.0.0.1",
        "COLDSTREAM_SERVICE_PORT": "8000",
        "COLDSTREAM_SERVICE_PORT_HTTP": "8000",
        "COLDSTREAM_PORT": "tcp://10.0.0.1:8000",
        "COLDSTREAM_PORT_8000_TCP": "tcp://10.0.0.1:8000",
        "COLDSTREAM_PORT_8000_TCP_PROTO": "tcp",
        "COLDSTREAM_PORT_8000_TCP_PORT": "8000",
        "COLDSTREAM_PORT_8000_TCP_ADDR": "10.0.0.1",
        "COLDSTREAM_METRICS_SERVICE_HOST": "10.0.0.2",
        "COLDSTREAM_METRICS_PORT": "tcp://10.0.0.2:1",
    }
    assert load([URI], environ) == load([URI], {})
    assert load([URI], {**environ, "COLDSTREAM_PORT": "81"}).server.port == 81
    assert "COLDSTREAM_PORTS" in message(["serve", URI], {**environ, "COLDSTREAM_PORTS": "1"})


def test_secrets_are_kept_and_not_shown():
    """Secrets reach their settings, but no repr, str or notice of the tree."""
    settings = load([URI], SECRETS)
    assert settings.storage.source_options().azure.sas_token == SECRETS["AZURE_STORAGE_SAS_TOKEN"]
    assert settings.server.api_keys == ("s3cret-one", "s3cret-two")
    shown = f"{settings!r} {settings} {settings.storage.source_options()!r} {settings.server.__rich_repr__()}"
    assert "s3cret" not in shown
    assert shown.count("***") >= 5


@pytest.mark.parametrize(
    "argv",
    [
        ["serve", "https://a.blob.core.windows.net/c/p?sig=s3cret"],
        ["serve", "https://user:s3cret@host/p"],
        ["inspect", "az://c/p?sig=s3cret"],
        ["serve", URI, "--azure-endpoint", "https://a.blob.core.windows.net/?sig=s3cret"],
        ["serve", URI, "--account-key=s3cret"],
        ["serve", URI, "--azure-account-key", "s3cret"],
        ["serve", URI, "s3cret"],
        ["serve", URI, "--api-key", "k", "-s3cret"],
        ["serve", "--api-key", "s3cret"],
        ["serve", URI, "--api-key", "s3cret", ""],
        ["serve", URI, "--model", "az://s3cret/x"],
        ["serve", URI, "--model-loader-extra-config", "{s3cret"],
    ],
)
def test_errors_do_not_repeat_what_may_be_secret(argv):
    """An error names a flag or argument without the value that may be a secret."""
    assert "s3cret" not in message(argv, SECRETS)


@pytest.mark.parametrize("key", ["azure_account_key", "azure_sas_token", "azure_connection_string"])
def test_secret_in_the_file_is_refused(tmp_path, key):
    """A storage secret in the file is refused with the variable that it belongs into, unquoted."""
    text = message(["serve", URI, "--config", config_file(tmp_path, f"storage:\n  {key}: s3cret\n")])
    assert "is a secret: set AZURE_STORAGE_" in text
    assert "s3cret" not in text


def test_malformed_file_is_not_quoted(tmp_path):
    """A file that is not YAML is refused by line number, not by its text."""
    assert "s3cret" not in message(["serve", URI, "--config", config_file(tmp_path, "a: [s3cret\nb: }")])


def test_storage_secrets_have_no_flag():
    """No flag takes a storage secret, because `ps` shows flags."""
    secret = {row.path: list(row.flags()) for row in ROWS if row.setting.secret}
    assert secret.pop("server.api_keys") == ["--api-key"]
    assert len(secret) == 3
    assert not any(secret.values())
