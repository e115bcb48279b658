"""The commands beside `serve`: push, inspect, verify, bench and preflight.

Takes a parsed command, prints its result, gives the exit code. What a command does lives in `streaming`,
`app.model_support`, `app.bench` and `app.preflight`; here it is only worded.
"""

from __future__ import annotations

import json
import logging
import sys
from collections import Counter
from collections.abc import Mapping

from app.model_support import support
from app.settings import Command
from app.telemetry import logs
from streaming.counters import FetchCounters
from streaming.describe import Description, describe
from streaming.errors import CheckpointError, ModelUnsupported
from streaming.retrying import Retries, RetryingSource
from streaming.source import open_source

logger = logging.getLogger(__name__)

_GIB = 1 << 30


def run(command: Command, environ: Mapping[str, str]) -> int:
    """Run `push`, `inspect`, `verify`, `bench` or `preflight`.

    Raises:
        StreamingError: It could not be done.
        ServerFailed: A server that was to be measured.
    """
    logs.configure(command.settings.observability.log_level, logs.TEXT)
    for notice in command.settings.notices:
        logger.info(notice)
    if command.name == "push":
        return _push(command)
    if command.name == "verify":
        return _verify(command)
    if command.name == "bench":
        from app.bench.rounds import bench

        return bench(command, environ)
    if command.name == "preflight":
        from app.preflight.run import preflight

        return preflight(command, environ)
    return _inspect(command)


def _push(command: Command) -> int:
    from streaming.upload import push
    from streaming.upload_origin import parse_origin

    words, uri = command.arguments
    origin, options = parse_origin(words, command.options["--revision"]), command.settings.storage
    report = push(origin, uri, options.source_options(), options.pipeline_options())
    sys.stdout.write(
        f"pushed {report.uploaded} files ({report.uploaded_bytes} bytes) to {uri}, {report.skipped} were there already\n"
    )
    return 0


def _verify(command: Command) -> int:
    """Print what of a checkpoint differs; 0 if nothing does."""
    from pathlib import Path

    from streaming.verify import folder_manifest, stored_manifest, verify

    (uri,) = command.arguments
    storage, folder = command.settings.storage, command.options["--against"]
    source = open_source(uri, storage.source_options())
    manifest = folder_manifest(Path(folder)) if folder else stored_manifest(source)
    verdicts = verify(source, manifest, storage.lanes)
    for verdict in verdicts:
        lines = [f"differs  {flaw}" for flaw in verdict.flaws] or [f"ok       {verdict.size_bytes} bytes"]
        sys.stdout.writelines(f"{verdict.name}  {line}\n" for line in lines)
    differing = sum(1 for verdict in verdicts if verdict.flaws)
    sys.stdout.write(f"{len(verdicts)} files, {differing} differ\n")
    return CheckpointError.exit_code if differing else 0


def _inspect(command: Command) -> int:
    """Print what a checkpoint is and whether it can be served; 0 if it can."""
    (uri,) = command.arguments
    settings = command.settings
    options = settings.storage.source_options()
    found = describe(RetryingSource(open_source(uri, options), Retries(options, FetchCounters())))
    sys.stdout.write("\n".join(_description_lines(uri, found)) + "\n")
    try:
        model = support(found.files, found.entries)
    except ModelUnsupported as error:
        sys.stdout.write(f"served        no: {error}\n")
        return error.exit_code
    sys.stdout.write(
        f"served        yes, context {model.max_model_len_tokens} tokens\n"
        f"memory        {model.weights_bytes / _GIB:.2f} GiB of weights, plus the KV cache\n"
    )
    return 0


def _description_lines(uri: str, found: Description) -> list[str]:
    dtypes = Counter[str]()
    for entry in found.entries:
        dtypes[entry.dtype] += entry.end - entry.start
    lines = [
        f"checkpoint    {uri}",
        f"architecture  {_architecture(found.files)}",
        f"tensors       {len(found.entries)} in {len(found.versions)} shards, {sum(dtypes.values())} bytes",
    ]
    lines += [f"dtype         {dtype}: {nbytes} bytes" for dtype, nbytes in dtypes.most_common()]
    lines.append(f"manifest      {'yes' if found.has_manifest else 'no: reads are not verified (push writes one)'}")
    lines += [f"shard         {version.name}: {version.size_bytes} bytes" for version in found.versions]
    return lines


def _architecture(files: dict[str, bytes]) -> str:
    try:
        return ", ".join(json.loads(files["config.json"])["architectures"])
    except (KeyError, TypeError, ValueError):
        return "unknown (no config.json that names one)"
