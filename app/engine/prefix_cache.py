"""Blocks that a new sequence need not compute, because another one has had the same tokens before them.

A full block is named by a digest of its tokens and of the block before it, so of everything up to its end: equal digests
mean equal keys and values. Takes sequences and the allocator, gives blocks. Knows no queue and no tensor.
"""

from __future__ import annotations

import hashlib
from array import array

from app.engine.blocks import BlockAllocator
from app.engine.sequence import UNKNOWN_TOKEN, Sequence

_DIGEST_BYTES = 16  # a chance of 2^-64 among 2^32 blocks that two are taken for one


class PrefixCache:
    """What full blocks hold, by sequence.

    Args:
        blocks: Remembers named blocks until it needs them.
        block_size_tokens: Tokens in a block.
    """

    def __init__(self, blocks: BlockAllocator, block_size_tokens: int):
        self._blocks = blocks
        self._block_size_tokens = block_size_tokens
        self._digests: dict[Sequence, list[bytes]] = {}

    def match(self, sequence: Sequence) -> list[int]:
        """The blocks that hold the sequence's first tokens, without its last: one must be computed to go on from.

        None where the logits of the whole prompt are wanted.
        """
        found: list[int] = []
        if sequence.needs_prompt_logits:
            return found
        full_blocks = (len(sequence.token_ids) - 1) // self._block_size_tokens
        for digest in self._up_to(sequence, full_blocks):
            block = self._blocks.find(digest)
            if block is None:
                break
            found.append(block)
        return found

    def publish(self, sequence: Sequence, start: int, end: int) -> None:
        """Tokens `[start, end)` have been computed, all of them known: name the blocks that this has filled."""
        size = self._block_size_tokens
        first, last = start // size, end // size
        if first < last:
            digests = self._up_to(sequence, last)
            for index in range(first, last):
                self._blocks.name(sequence.block_ids[index], digests[index])

    def forget_content(self, sequence: Sequence) -> None:
        """Let nobody share what the sequence has: its keys and values cannot be trusted."""
        for block in sequence.block_ids:
            self._blocks.forget(block)

    def drop(self, sequence: Sequence) -> None:
        """The sequence has ended."""
        self._digests.pop(sequence, None)

    def _up_to(self, sequence: Sequence, blocks: int) -> list[bytes]:
        """Digests of the first `blocks` blocks; each is computed once."""
        digests = self._digests.setdefault(sequence, [])
        size = self._block_size_tokens
        for index in range(len(digests), blocks):
            tokens = array("q", sequence.token_ids[index * size : (index + 1) * size])
            if UNKNOWN_TOKEN in tokens:  # others would take their own unknown tokens for these
                raise RuntimeError(f"{sequence.request_id}: block {index} has a token that is not known yet")
            before = digests[-1] if digests else b""
            digests.append(hashlib.blake2b(before + tokens.tobytes(), digest_size=_DIGEST_BYTES).digest())
        return digests[:blocks]
