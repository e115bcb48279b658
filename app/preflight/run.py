"""The order of the checks: device, torch and host begin at once, the source and the model stage by stage.

Takes the parsed command and the environment, prints, gives the exit code.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping

from app.preflight.deadline import Deadline, Late, Pending
from app.preflight.device import look_at_gpu, look_at_torch
from app.preflight.finding import DEVICE, MODEL, Finding, failed, refused, skipped, unexpected
from app.preflight.host import look_at_host
from app.preflight.judgement.device import Gpu, Need, judge_gpu, judge_room, judge_torch, no_gpu
from app.preflight.judgement.host import Demand, Host, judge_host, judge_memory
from app.preflight.judgement.model import judge_model
from app.preflight.report import as_json, exit_code, table
from app.preflight.source import SourceChecks
from app.settings import Command, Settings
from streaming.describe import Description
from streaming.errors import DeviceError
from streaming.options import HOST_STAGING

_HOST_CHECKS = (
    "host-memory",
    "disk",
    "shared-memory",
    "pinned-memory",
    "open-files",
    "cpus",
    "nvme",
    "container",
)


def preflight(command: Command, environ: Mapping[str, str]) -> int:
    """Check everything and print it; 0 unless something failed."""
    deadline, start_s = Deadline(command.options["--timeout"]), time.monotonic()
    settings = command.settings
    findings = look(settings, environ, deadline)
    code = exit_code(findings)
    if command.options["--json"]:
        text = as_json(settings.model.uri, settings.device.kind, findings, time.monotonic() - start_s)
    else:
        text = table(settings.model.uri, findings, coloured=sys.stdout.isatty())
    sys.stdout.write(text)
    sys.stdout.flush()
    if deadline.is_missed:
        os._exit(code)  # a thread that hangs would be waited for
    return code


def look(settings: Settings, environ: Mapping[str, str], deadline: Deadline) -> list[Finding]:
    """Every check, in the order in which it is shown."""
    on_gpu = settings.device.kind == "cuda"
    gpu_at_work = deadline.start(lambda: look_at_gpu(settings.device.visible)) if on_gpu else None
    host_at_work = deadline.start(lambda: look_at_host(environ))
    source = SourceChecks(settings, deadline)
    source_findings = source.findings()
    model_findings, need = _model(source.description, settings, deadline)
    gpu, gpu_findings = _gpu(gpu_at_work, settings)
    demand = _demand(settings, source.description, is_folder=source.is_folder)
    return [
        *gpu_findings,
        judge_torch(look_at_torch(), gpu, on_gpu=on_gpu),
        *source_findings,
        *model_findings,
        _room(gpu, need, on_gpu=on_gpu),
        *_host(host_at_work, demand, need, gpu),
    ]


def _gpu(at_work: Pending[Gpu] | None, settings: Settings) -> tuple[Gpu | None, list[Finding]]:
    if at_work is None:
        return None, no_gpu(settings.engine.device, look_at_torch())
    try:
        gpu = at_work.result()
    except DeviceError as error:
        return None, [refused("gpu", error), skipped("gpu-sharing", "gpu failed")]
    except Late as late:
        remedy = "look at the kernel log for an Xid, and at nvidia-smi: the driver hangs"
        return None, [failed("gpu", DEVICE, str(late), remedy), skipped("gpu-sharing", "gpu failed")]
    except Exception as error:  # noqa: BLE001 - a check that breaks is a finding, too
        return None, [unexpected("gpu", DEVICE, error), skipped("gpu-sharing", "gpu failed")]
    is_shared = settings.model.load_strategy != HOST_STAGING
    return gpu, judge_gpu(gpu, host_fallback=settings.model.pinned_host_fallback, is_shared=is_shared)


def _model(found: Description | None, settings: Settings, deadline: Deadline) -> tuple[list[Finding], Need | None]:
    if found is None:
        return [skipped(name, "the checkpoint was not read") for name in ("model", "settings", "tokenizer")], None
    behind = [skipped(name, "model failed") for name in ("settings", "tokenizer")]
    try:
        return deadline.run(lambda: judge_model(found, settings))
    except Late as late:
        return [failed("model", MODEL, str(late), "allow more with --timeout"), *behind], None
    except Exception as error:  # noqa: BLE001 - a check that breaks is a finding, too
        return [unexpected("model", MODEL, error), *behind], None


def _room(gpu: Gpu | None, need: Need | None, *, on_gpu: bool) -> Finding:
    if not on_gpu:
        return skipped("gpu-memory", "the model runs on the CPU")
    if gpu is None or gpu.memory is None:
        return skipped("gpu-memory", "gpu failed")
    if need is None:
        return skipped("gpu-memory", "it is not known how much the model takes")
    return judge_room(gpu.memory, need)


def _host(at_work: Pending[Host], demand: Demand, need: Need | None, gpu: Gpu | None) -> list[Finding]:
    try:
        host = at_work.result()
    except (Late, OSError, ValueError) as error:
        return [skipped(name, f"the machine cannot be looked at: {error}") for name in _HOST_CHECKS]
    except Exception as error:  # noqa: BLE001 - a check that breaks is a finding, too
        return [skipped(name, f"unexpected: {type(error).__name__}") for name in _HOST_CHECKS]
    # With host-staging the engine copies from the disk; only a CPU's own memory holds the weights then.
    in_host = not demand.on_gpu or bool(demand.slots_bytes and gpu and gpu.obstacle)
    return [judge_memory(host.memory, demand, need, weights_in_host=in_host), *judge_host(host, demand)]


def _demand(settings: Settings, found: Description | None, *, is_folder: bool) -> Demand:
    pipeline = settings.storage.pipeline_options()
    staged = settings.model.load_strategy == HOST_STAGING
    downloads = staged and not is_folder
    shards_bytes = sum(version.size_bytes for version in found.versions) if found else None
    return Demand(
        on_gpu=settings.device.kind == "cuda",
        is_staged=downloads,
        staged_bytes=shards_bytes if downloads else None,
        chunks_bytes=pipeline.chunks_held * pipeline.chunk_bytes,
        slots_bytes=0 if staged else 2 * pipeline.writers * pipeline.chunk_bytes,
        connections=settings.server.max_waiting_requests + pipeline.lanes,
        cache_dir=cache.folder if (cache := settings.storage.cache_options()) and not staged else None,
    )
