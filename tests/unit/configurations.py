"""Configurations for the tests of settings, and how to look at what comes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.errors import UsageError
from app.settings import Settings, parse

URI = "az://models/llama-8b"
SECRETS = {
    "AZURE_STORAGE_ACCOUNT_KEY": "s3cret-account-key",
    "AZURE_STORAGE_SAS_TOKEN": "sv=2024&sig=s3cret-sas",
    "AZURE_STORAGE_CONNECTION_STRING": "AccountName=a;AccountKey=s3cret-connection",
    "COLDSTREAM_API_KEY": "s3cret-one,s3cret-two",
}
CASE_STUDY = """\
model:
  format: safetensors
  shard_count: 16
  direct_gpu_load: true
startup:
  readiness_probe_initial_delay_seconds: 20
  warmup_prompt: "hello"
  fail_if_checksum_mismatch: true
storage:
  prefetch_concurrency: 8
  local_nvme_cache_enabled: true
observability:
  emit_phase_timings: true
  emit_gpu_memory_watermark: true
  emit_first_token_latency: true
"""


def value_at(settings: Settings, path: str) -> Any:
    """The value at "section.name"."""
    section, name = path.split(".")
    return getattr(getattr(settings, section), name)


def message(argv: list[str], environ: dict[str, str] | None = None) -> str:
    """The one line that `argv` is refused with."""
    with pytest.raises(UsageError) as caught:
        parse(argv, environ or {})
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    return str(caught.value)


def config_file(folder: Path, text: str) -> str:
    """Write a configuration; the path as a word of a command line."""
    path = folder / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)
