"""From an arena to a serving engine: bind, warm up, wait for the weights, check them, serve.

Takes the connection to the server; every step that the server must know of is a message. The only file
that knows the order.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from app.engine.arena_mapping import map_arena
from app.engine.blocks import BlockAllocator
from app.engine.inbox import Inbox
from app.engine.kv_cache import KVCache, bytes_per_token, cache_blocks
from app.engine.loop import Loop
from app.engine.model_runner import ModelRunner
from app.engine.models.decoder import Decoder
from app.engine.scheduler import Scheduler
from app.engine.skeleton import bind, build_skeleton
from app.engine.warmup import check_weights, warm_up
from app.messages import BindArena, EngineFailed, EngineOptions, EngineReady, ToEngine, WeightsLanded
from streaming.clock import boottime_s
from streaming.errors import CheckpointError, StreamingError, report
from streaming.host_memory import available_bytes
from streaming.messages import PhaseTimed
from streaming.wire import Connection, ConnectionClosed

logger = logging.getLogger(__name__)


def run_engine(connection: Connection[ToEngine]) -> int:
    """Be the engine until the server is gone (0) or the model cannot be served (the error's exit code)."""
    try:
        return _serve_or_report(connection)
    except ConnectionClosed:
        return 0


def _serve_or_report(connection: Connection[ToEngine]) -> int:
    try:
        _serve(connection)
    except StreamingError as error:
        connection.send(EngineFailed(report(error)))
        return error.exit_code


def _serve(connection: Connection[ToEngine]) -> NoReturn:
    inbox = Inbox(connection)
    request, fds = inbox.wait_for(BindArena)
    options = request.options
    with _timed(connection, "engine.bind"):
        model = _bound_model(request, fds)
    max_model_len_tokens = options.max_model_len_tokens or model.config.max_position_embeddings
    with _timed(connection, "engine.warmup"):
        blocks = BlockAllocator(_num_blocks(model, request, max_model_len_tokens))
        cache = KVCache(model.config, model.dtype, blocks.num_blocks * options.block_size_tokens)
        runner = ModelRunner(model, cache, options.block_size_tokens)
        warm_up(runner, blocks, options.block_size_tokens)
    landed, _ = inbox.wait_for(WeightsLanded)
    with _timed(connection, "engine.first_pass"):
        check_weights(runner, blocks, options.block_size_tokens, landed.warmup_token_ids)
    # A sequence longer than the cache could never run, so the server should refuse it as too long.
    max_model_len_tokens = min(max_model_len_tokens, blocks.num_blocks * options.block_size_tokens)
    connection.send(EngineReady(max_model_len_tokens=max_model_len_tokens, kv_cache_blocks=blocks.num_blocks))
    Loop(
        receive=inbox.receive,
        send=connection.send,
        scheduler=_scheduler(blocks, options),
        runner=runner,
        max_model_len_tokens=max_model_len_tokens,
        vocab_size=model.config.vocab_size,
    ).run()


def _bound_model(request: BindArena, fds: list[int]) -> Decoder:
    if len(fds) != 1:
        raise CheckpointError(f"the arena came with {len(fds)} file descriptors instead of one")
    model = build_skeleton(request.config, request.extents)
    bind(model, map_arena(fds[0], request.arena_bytes), request.extents)
    return model


def _num_blocks(model: Decoder, request: BindArena, max_model_len_tokens: int) -> int:
    """The cache is sized before the weights have taken their memory, so that is set aside."""
    options = request.options
    token_bytes = bytes_per_token(model.config, model.dtype)
    left_bytes = max(0, available_bytes() - request.arena_bytes)
    blocks = cache_blocks(options, max_model_len_tokens, token_bytes, left_bytes)
    capacity_tokens = blocks * options.block_size_tokens
    logger.info("KV cache: %d blocks, %d tokens, %d bytes", blocks, capacity_tokens, capacity_tokens * token_bytes)
    if capacity_tokens < max_model_len_tokens:
        logger.warning("sequences are limited to the KV cache's %d tokens: raise kv_cache_bytes", capacity_tokens)
    return blocks


def _scheduler(blocks: BlockAllocator, options: EngineOptions) -> Scheduler:
    return Scheduler(
        blocks,
        block_size_tokens=options.block_size_tokens,
        max_num_seqs=options.max_num_seqs,
        max_num_batched_tokens=options.max_num_batched_tokens,
    )


@contextmanager
def _timed(connection: Connection[ToEngine], name: str) -> Iterator[None]:
    start_s = boottime_s()
    yield
    connection.send(PhaseTimed(name=name, start_s=start_s, end_s=boottime_s()))
