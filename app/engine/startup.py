"""From an arena to a serving engine: bind, warm up, wait for the weights, check them, serve.

Takes the connection to the server; every step that the server must know of is a message. The only file
that knows the order.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import NoReturn

import torch

from app.engine.blocks import BlockAllocator
from app.engine.device_memory import DeviceMemory
from app.engine.early_start import EarlyStart
from app.engine.inbox import Inbox
from app.engine.kernel_start import KernelStart
from app.engine.kv_cache import KVCache, bytes_per_token, cache_blocks, free_for_cache_bytes
from app.engine.loop import Loop
from app.engine.model_runner import ModelRunner
from app.engine.models.language_model import LanguageModel
from app.engine.reporting import Reporting
from app.engine.scheduler import Scheduler
from app.engine.skeleton import bind, build_skeleton
from app.engine.step_shapes import Limits
from app.engine.torch_import import TorchImport
from app.engine.warmup import check_weights, warm_up, warm_up_sampler
from app.engine.weights import Weights, from_host, in_place_on_gpu
from app.messages import (
    BindArena,
    EngineFailed,
    EngineOptions,
    EngineReady,
    StartupMemory,
    ToEngine,
    WeightsLanded,
)
from streaming.clock import boottime_s
from streaming.errors import CheckpointError, DeviceError, StreamingError, report
from streaming.messages import FellBack, PhaseTimed
from streaming.wire import Connection, ConnectionClosed

logger = logging.getLogger(__name__)

_FIRST_ANSWER_S = 0.3
_POLL_S = 0.02


def run_engine(connection: Connection[ToEngine], early: EarlyStart, torch_import: TorchImport) -> int:
    """Be the engine until the server is gone (0) or the model cannot be served (the error's exit code)."""
    try:
        return _serve_or_report(connection, early, torch_import)
    except ConnectionClosed:
        return 0


def _serve_or_report(connection: Connection[ToEngine], early: EarlyStart, torch_import: TorchImport) -> int:
    try:
        _serve(connection, early, torch_import)
    except StreamingError as error:
        connection.send(EngineFailed(report(error)))
        return error.exit_code


def _serve(connection: Connection[ToEngine], early: EarlyStart, torch_import: TorchImport) -> NoReturn:
    inbox = Inbox(connection, early.first_message(), torch_import.wait)
    request, fds = inbox.wait_for(BindArena)
    options = request.options
    with _timed(connection, "engine.bind"):
        weights = _hold_weights(request, fds, early, connection)
        model = _bound_model(request, weights.flat, torch_import)
    max_model_len_tokens = options.max_model_len_tokens or model.config.max_position_embeddings
    with _timed(connection, "engine.cache"):
        blocks = BlockAllocator(_num_blocks(model, options, max_model_len_tokens, weights.coming_bytes()))
        cache = KVCache(model.config, model.dtype, model.device, blocks.num_blocks, options.block_size_tokens)
    # A sequence longer than the cache could never run, so the server should refuse it as too long.
    max_model_len_tokens = min(max_model_len_tokens, blocks.num_blocks * options.block_size_tokens)
    runner = ModelRunner(model, cache)
    limits = Limits(options.max_num_batched_tokens, options.max_num_seqs, max_model_len_tokens)
    is_gpu = model.device.type == "cuda"
    kernels = KernelStart(runner, limits, torch_import, options.kernels_dir) if is_gpu else None
    sampler = warm_up_sampler(model)
    if not inbox.has_come(WeightsLanded):  # else the pass over the real weights is the first one, and enough
        with _timed(connection, "engine.warmup"):
            warm_up(runner, blocks, options.block_size_tokens)
            sampler.join()  # nothing else may run beside a capture
        _use_the_wait(inbox, runner, torch_import, kernels, connection)
    landed, shard_fds = inbox.wait_for(WeightsLanded)
    with _timed(connection, "weights.load"):
        weights.landed(landed.shards, shard_fds)
    device = _device_memory(model.device)
    landed_bytes = _used_bytes(device)
    with _timed(connection, "engine.first_pass"):
        token_id = check_weights(runner, blocks, options.block_size_tokens, landed.warmup_token_ids)
        sampler.join()
    # A first request that is waiting already is answered before the rest of torch competes with it.
    threading.Timer(_FIRST_ANSWER_S, torch_import.go_on if kernels is None else kernels.begin).start()
    memory = StartupMemory(landed_bytes=landed_bytes, ready_bytes=_used_bytes(device)) if device else None
    connection.send(
        EngineReady(
            max_model_len_tokens=max_model_len_tokens,
            kv_cache_blocks=blocks.num_blocks,
            first_token_id=token_id,
            memory=memory,
        )
    )
    scheduler = _scheduler(blocks, options)
    _loop(connection, inbox, model, runner, kernels, scheduler, device, max_model_len_tokens).run()


def _loop(
    connection: Connection[ToEngine],
    inbox: Inbox,
    model: LanguageModel,
    runner: ModelRunner,
    kernels: KernelStart | None,
    scheduler: Scheduler,
    device: DeviceMemory | None,
    max_model_len_tokens: int,
) -> Loop:
    """What serves from now on."""
    return Loop(
        receive=inbox.receive,
        send=connection.send,
        scheduler=scheduler,
        runner=runner,
        max_model_len_tokens=max_model_len_tokens,
        vocab_size=model.config.vocab_size,
        lookahead=lambda: runner.launches_quickly,
        idle=lambda: kernels is not None and _idle(connection, runner, kernels),
        reporting=Reporting(scheduler.stats, connection.send, device=device),
    )


def _device_memory(device: torch.device) -> DeviceMemory | None:
    if device.type != "cuda":
        return None
    return DeviceMemory(
        partial(torch.cuda.mem_get_info, device), partial(torch.cuda.memory_stats_as_nested_dict, device)
    )


def _used_bytes(device: DeviceMemory | None) -> int:
    return device.use().used_bytes if device else 0


def _bound_model(request: BindArena, arena: torch.Tensor, torch_import: TorchImport) -> LanguageModel:
    """Our own decoder, or what transformers has for this config; every parameter is a view of `arena` (bytes,)."""
    if request.transformers_dtype is not None:
        torch_import.wait()
        from app.engine.transformers_skeleton import bound_transformers_model

        return bound_transformers_model(request.config, request.transformers_dtype, arena, request.extents)
    model = build_skeleton(request.config, request.extents, arena.device, request.options.max_model_len_tokens)
    bind(model, arena, request.extents)
    return model


def _use_the_wait(
    inbox: Inbox,
    runner: ModelRunner,
    torch_import: TorchImport,
    kernels: KernelStart | None,
    connection: Connection[ToEngine],
) -> None:
    """Until the bytes are there: import the rest of torch, on a GPU compile the kernels and capture graphs.

    Weights that land meanwhile wait for one graph at most: all of it can end after the first answer, beside what it does.
    """
    torch_import.go_on()
    while not torch_import.is_whole:
        if inbox.has_come(WeightsLanded, timeout_s=_POLL_S):
            return
    torch_import.wait()  # for its error
    if kernels is None:
        return
    kernels.begin()
    while not kernels.is_over:
        if inbox.has_come(WeightsLanded, timeout_s=_POLL_S):
            return
    with _timed(connection, "engine.capture"):
        while not inbox.has_come(WeightsLanded) and runner.capture_next_graph():
            pass


def _idle(connection: Connection[ToEngine], runner: ModelRunner, kernels: KernelStart) -> bool:
    """Capture a graph, as soon as the kernels are there; whether there is more to do."""
    if not kernels.is_over:
        connection.poll(_POLL_S)  # a request ends the wait
        return True
    return runner.capture_next_graph()


def _hold_weights(request: BindArena, fds: list[int], early: EarlyStart, connection: Connection[ToEngine]) -> Weights:
    """The weights' memory, mapped; a fallback is told to the server, or is an error."""
    if request.memory.kind == "staged":
        from app.engine.staged_weights import StagedWeights

        return StagedWeights(request.memory.nbytes, request.extents, request.options.device)
    if len(fds) != 1:
        raise CheckpointError(f"the arena came with {len(fds)} file descriptors instead of one")

    def on_fallback(fallback: FellBack) -> None:
        if not request.options.host_fallback:
            raise DeviceError(f"{fallback.reason}: allow the fallback (--pinned-host-fallback)")
        connection.send(fallback)

    if request.memory.kind == "device":
        return in_place_on_gpu(early.arena_address(fds[0], request.memory.nbytes), request.memory.nbytes)
    return from_host(fds[0], request.memory.nbytes, early.cuda, on_fallback)


def _num_blocks(model: LanguageModel, options: EngineOptions, max_model_len_tokens: int, coming_bytes: int) -> int:
    token_bytes = bytes_per_token(model.config, model.dtype)
    free_bytes = free_for_cache_bytes(model.config, options, model.device, coming_bytes)
    on_gpu = model.device.type == "cuda"
    blocks = cache_blocks(options, max_model_len_tokens, token_bytes, free_bytes, whole=on_gpu)
    capacity_tokens = blocks * options.block_size_tokens
    logger.info("KV cache: %d blocks, %d tokens, %d bytes", blocks, capacity_tokens, capacity_tokens * token_bytes)
    if capacity_tokens < max_model_len_tokens:
        logger.warning(
            "sequences are limited to the KV cache's %d tokens: raise --kv-cache-memory-bytes", capacity_tokens
        )
    return blocks


def _scheduler(blocks: BlockAllocator, options: EngineOptions) -> Scheduler:
    return Scheduler(
        blocks,
        block_size_tokens=options.block_size_tokens,
        max_num_seqs=options.max_num_seqs,
        max_num_batched_tokens=options.max_num_batched_tokens,
        prefix_caching=options.prefix_caching,
    )


@contextmanager
def _timed(connection: Connection[ToEngine], name: str) -> Iterator[None]:
    start_s = boottime_s()
    yield
    connection.send(PhaseTimed(name=name, start_s=start_s, end_s=boottime_s()))
