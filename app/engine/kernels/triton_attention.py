"""The attention programs. A block table says where a sequence's tokens lie; nothing beyond its length is read.

Scores are kept times log2(e), for exp2 is what a GPU has.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Arguments that change from step to step: one compiled program must do for all their values.
_VARIES = ("window_tokens", "splits", "table_row")


@triton.jit
def attend_piece(q, keys, values, wanted, seen, scale, softcap, best, total, acc):
    k = tl.load(keys, mask=wanted, other=0.0)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    if softcap > 0.0:
        # tanh by way of exp2: scores carry log2(e) already.
        natural = scores / (1.4426950408889634 * softcap)
        scores = 1.4426950408889634 * softcap * (1.0 - 2.0 / (tl.exp2(natural * 2.8853900817779268) + 1.0))
    scores = tl.where(seen, scores, -float("inf"))
    higher = tl.maximum(best, tl.max(scores, axis=1))
    # A row that has seen nothing yet must not subtract infinity from infinity.
    safe = tl.where(higher == -float("inf"), 0.0, higher)
    shrink = tl.exp2(best - safe)
    chances = tl.exp2(scores - safe[:, None])
    v = tl.load(values, mask=wanted, other=0.0)
    acc = acc * shrink[:, None] + tl.dot(chances.to(v.dtype), v, input_precision="ieee")
    total = total * shrink + tl.sum(chances, axis=1)
    return higher, total, acc


@triton.jit(do_not_specialize=_VARIES)
def attend_split(
    query, keys, values, block_tables, lengths, partial, weights,
    query_row, query_head, slot_stride, kv_head_stride, table_row,
    scale, softcap, window_tokens, splits,
    HEADS: tl.constexpr, GROUP: tl.constexpr, GROUP_PADDED: tl.constexpr,
    HEAD_DIM: tl.constexpr, DIM_PADDED: tl.constexpr, BLOCK: tl.constexpr, PIECE: tl.constexpr,
):  # fmt: skip
    row, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths + row)
    first = tl.where(window_tokens > 0, tl.maximum(length - window_tokens, 0), 0)
    # Every split takes the same number of whole pieces; the last ones may have none.
    begin = first // PIECE * PIECE
    share = tl.cdiv(tl.cdiv(length - begin, PIECE), splits) * PIECE
    start = begin + split * share
    end = tl.minimum(start + share, length)

    members = tl.arange(0, GROUP_PADDED)
    dims = tl.arange(0, DIM_PADDED)
    heads = kv_head * GROUP + members
    is_head = members < GROUP
    is_dim = dims < HEAD_DIM
    q = tl.load(
        query + row * query_row + heads[:, None] * query_head + dims[None, :],
        mask=is_head[:, None] & is_dim[None, :], other=0.0,
    )  # fmt: skip
    best = tl.full([GROUP_PADDED], -float("inf"), tl.float32)
    total = tl.zeros([GROUP_PADDED], tl.float32)
    acc = tl.zeros([GROUP_PADDED, DIM_PADDED], tl.float32)
    offsets = tl.arange(0, PIECE)
    for at in range(start, end, PIECE):
        tokens = at + offsets
        seen = (tokens < end) & (tokens >= first)
        blocks = tl.load(block_tables + row * table_row + tokens // BLOCK, mask=seen, other=0)
        slots = blocks.to(tl.int64) * BLOCK + tokens % BLOCK
        places = slots[:, None] * slot_stride + kv_head * kv_head_stride + dims[None, :]
        wanted = seen[:, None] & is_dim[None, :]
        best, total, acc = attend_piece(
            q, keys + places, values + places, wanted, seen[None, :], scale, softcap, best, total, acc
        )
    out = (row * HEADS + heads) * splits + split
    # A split without a token weighs nothing and must not divide by nothing.
    norm = tl.where(total > 0, total, 1.0)
    tl.store(
        partial + out[:, None] * HEAD_DIM + dims[None, :], acc / norm[:, None],
        mask=is_head[:, None] & is_dim[None, :],
    )  # fmt: skip
    tl.store(weights + out, tl.where(total > 0, best + tl.log2(norm), -float("inf")), mask=is_head)


@triton.jit(do_not_specialize=_VARIES)
def join_splits(
    partial, weights, output, splits,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, DIM_PADDED: tl.constexpr, MOST_SPLITS: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0), tl.program_id(1)
    base = (row * HEADS + head) * splits
    parts_at = tl.arange(0, MOST_SPLITS)
    dims = tl.arange(0, DIM_PADDED)
    is_split = parts_at < splits
    is_dim = dims < HEAD_DIM
    logs = tl.load(weights + base + parts_at, mask=is_split, other=-float("inf"))
    highest = tl.max(logs, axis=0)
    shares = tl.where(logs > -float("inf"), tl.exp2(logs - highest), 0.0)
    parts = tl.load(
        partial + (base + parts_at)[:, None] * HEAD_DIM + dims[None, :],
        mask=is_split[:, None] & is_dim[None, :], other=0.0,
    )  # fmt: skip
    summed = tl.sum(shares, axis=0)
    joined = tl.sum(parts * shares[:, None], axis=0) / tl.where(summed > 0, summed, 1.0)
    tl.store(output + (row * HEADS + head) * HEAD_DIM + dims, joined.to(output.dtype.element_ty), mask=is_dim)


@triton.jit(do_not_specialize=_VARIES)
def attend_tile(
    query, keys, values, block_tables, lengths, query_starts, tiles, output,
    query_row, query_head, slot_stride, kv_head_stride, table_row,
    scale, softcap, window_tokens,
    HEADS: tl.constexpr, GROUP: tl.constexpr, GROUP_PADDED: tl.constexpr,
    HEAD_DIM: tl.constexpr, DIM_PADDED: tl.constexpr, BLOCK: tl.constexpr, QUERIES: tl.constexpr, PIECE: tl.constexpr,
):  # fmt: skip
    tile, kv_head = tl.program_id(0), tl.program_id(1)
    sequence = tl.load(tiles + 2 * tile)
    first_query = tl.load(tiles + 2 * tile + 1)
    begin = tl.load(query_starts + sequence)
    queries = tl.load(query_starts + sequence + 1) - begin
    begin = begin.to(tl.int64)
    length = tl.load(lengths + sequence)
    # The query heads that share a key head lie side by side, so that each key is loaded once for all of them.
    members = tl.arange(0, QUERIES * GROUP_PADDED)
    rows = first_query + members // GROUP_PADDED
    heads = kv_head * GROUP + members % GROUP_PADDED
    positions = length - queries + rows
    dims = tl.arange(0, DIM_PADDED)
    is_row = (rows < queries) & (members % GROUP_PADDED < GROUP)
    is_query = is_row[:, None] & (dims < HEAD_DIM)[None, :]
    places_q = (begin + rows)[:, None] * query_row + heads[:, None] * query_head + dims[None, :]
    q = tl.load(query + places_q, mask=is_query, other=0.0)
    best = tl.full([QUERIES * GROUP_PADDED], -float("inf"), tl.float32)
    total = tl.zeros([QUERIES * GROUP_PADDED], tl.float32)
    acc = tl.zeros([QUERIES * GROUP_PADDED, DIM_PADDED], tl.float32)
    offsets = tl.arange(0, PIECE)
    first_position = length - queries + first_query
    start = tl.where(window_tokens > 0, tl.maximum(first_position + 1 - window_tokens, 0), 0) // PIECE * PIECE
    end = tl.minimum(first_position + QUERIES, length)
    for at in range(start, end, PIECE):
        tokens = at + offsets
        exists = tokens < end
        blocks = tl.load(block_tables + sequence * table_row + tokens // BLOCK, mask=exists, other=0)
        slots = blocks.to(tl.int64) * BLOCK + tokens % BLOCK
        places = slots[:, None] * slot_stride + kv_head * kv_head_stride + dims[None, :]
        wanted = exists[:, None] & (dims < HEAD_DIM)[None, :]
        seen = exists[None, :] & (tokens[None, :] <= positions[:, None])
        if window_tokens > 0:
            seen = seen & (tokens[None, :] > positions[:, None] - window_tokens)
        best, total, acc = attend_piece(
            q, keys + places, values + places, wanted, seen, scale, softcap, best, total, acc
        )
    attended = acc / tl.where(total > 0, total, 1.0)[:, None]
    out = output + (begin + rows)[:, None] * (HEADS * HEAD_DIM) + heads[:, None] * HEAD_DIM + dims[None, :]
    tl.store(out, attended.to(output.dtype.element_ty), mask=is_query)
