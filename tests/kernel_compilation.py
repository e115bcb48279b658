"""Compiles the GPU's programs on a machine without one: `python -m tests.kernel_compilation CAPABILITY`.

A process of its own, because Triton's interpreter, which runs them in other tests, compiles nothing. Prints each program's
name and the bytes of shared memory it needs.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from triton import compiler
from triton.backends.compiler import GPUTarget

from app.engine.kernels import triton_attention, triton_rows

ATTENTION = {
    **dict.fromkeys(("block_tables", "lengths", "query_starts", "tiles"), "*i32"),
    **dict.fromkeys(("partial", "weights"), "*fp32"),
    **dict.fromkeys(("query_row", "query_head", "slot_stride", "kv_head_stride", "table_row"), "i32"),
    **dict.fromkeys(("window_tokens", "splits"), "i32"),
    **dict.fromkeys(("scale", "softcap"), "fp32"),
}
ROWS = {
    "slots": "*i64",
    "eps": "fp32",
    **dict.fromkeys(("row_stride", "slot_stride", "kv_head_stride"), "i32"),
}


def programs() -> Iterator[tuple[Any, dict[str, str], dict[str, int], int]]:
    """Every program with types, constants and pipeline stages, at the sizes of real models."""
    for dim, piece, rows, stages in ((64, 64, 128, 3), (128, 64, 128, 3), (256, 64, 64, 2)):
        heads = {"HEADS": 32, "HEAD_DIM": dim, "DIM_PADDED": dim}
        group = heads | {"GROUP": 4, "BLOCK": 16, "PIECE": piece}
        yield triton_attention.attend_split, ATTENTION, group | {"GROUP_PADDED": 16}, 2
        yield triton_attention.attend_tile, ATTENTION, group | {"GROUP_PADDED": 4, "QUERIES": rows // 4}, stages
        yield triton_attention.join_splits, ATTENTION, heads | {"MOST_SPLITS": 32}, 2
        for has_norms in (False, True):
            rotation = heads | {"KV_HEADS": 8, "ROTATED": dim, "HAS_NORMS": has_norms}
            yield triton_rows.rotate_and_store, ROWS, rotation, 2
    for adds in (False, True):
        yield triton_rows.add_rms_norm, ROWS, {"SIZE": 4096, "PADDED": 4096, "ADDS": adds}, 2
    yield triton_rows.silu_and_mul, ROWS, {"INNER": 14336, "PIECE": 1024}, 2


def main() -> None:
    """Compile all of them for a compute capability: 80 is an A100, 89 an L4, 90 an H100."""
    target = GPUTarget("cuda", int(sys.argv[1]), 32)
    for program, types, constants, stages in programs():
        names = program.arg_names
        signature = {name: "constexpr" if name in constants else types.get(name, "*bf16") for name in names}
        by_place = {(names.index(name),): value for name, value in constants.items()}
        source = compiler.ASTSource(program, signature=signature, constexprs=by_place)
        compiled = compiler.compile(source, target=target, options={"num_warps": 8, "num_stages": stages})
        print(program.__name__, compiled.metadata.shared)


if __name__ == "__main__":
    main()
