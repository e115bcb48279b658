"""One blob on its way to Azure, block by block.

Takes bytes in order and digests at the end, gives an ETag. Knows no file and no checkpoint.
"""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future

from azure.storage.blob import BlobBlock, BlobClient, ContentSettings

from streaming.manifest import bare_etag

# The service's own limit for one blob.
_MOST_BLOCKS = 50_000


class BlockUpload:
    """A blob of which nothing is to be seen before `commit`; one that is not committed is forgotten by the service.

    The service checks the MD5 of every block that it receives. In memory are at most `at_once` blocks, the one that is
    being filled, and for a moment its copy.

    Args:
        blob: The blob.
        size_bytes: How long it will be.
        block_bytes: How long a block is; longer where the service's number of blocks would not do.
        pool: Where blocks are sent from.
        at_once: How many blocks may be under way.
        on_sent: Told the bytes of every block that the service has, in any thread.
    """

    def __init__(
        self,
        blob: BlobClient,
        size_bytes: int,
        block_bytes: int,
        pool: Executor,
        at_once: int,
        on_sent: Callable[[int], None],
    ):
        self._blob = blob
        self._block_bytes = max(block_bytes, -(-size_bytes // _MOST_BLOCKS))
        self._pool = pool
        self._at_once = at_once
        self._on_sent = on_sent
        # Another push of the same blob, or one that was cut off, has blocks there, too: none of them may be taken for ours.
        self._prefix = uuid.uuid4().hex
        self._ids: list[str] = []
        self._under_way: deque[Future[None]] = deque()
        self._pieces: list[bytes] = []
        self._held_bytes = 0

    def add(self, piece: bytes) -> None:
        """The next bytes; returns when there is room for more."""
        while self._held_bytes + len(piece) >= self._block_bytes:
            missing_bytes = self._block_bytes - self._held_bytes
            self._hold(piece[:missing_bytes])
            self._send()
            piece = piece[missing_bytes:]
        if piece:
            self._hold(piece)

    def commit(self, md5: bytes) -> str:
        """Make the blob of the bytes so far, with their MD5; gives its ETag."""
        if self._held_bytes:
            self._send()
        while self._under_way:
            self._under_way.popleft().result()
        settings = ContentSettings(content_md5=bytearray(md5))
        answer = self._blob.commit_block_list(
            [BlobBlock(block_id) for block_id in self._ids], content_settings=settings
        )
        return bare_etag(str(answer.get("etag") or ""))

    def _hold(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self._held_bytes += len(piece)

    def _send(self) -> None:
        if len(self._under_way) == self._at_once:
            self._under_way.popleft().result()
        block, self._pieces, self._held_bytes = b"".join(self._pieces), [], 0
        # As long as those of Azure's own client: the service takes no two lengths for one blob.
        self._ids.append(f"{self._prefix}{len(self._ids):016d}")
        self._under_way.append(self._pool.submit(self._stage, self._ids[-1], block))

    def _stage(self, block_id: str, block: bytes) -> None:
        self._blob.stage_block(block_id, block, validate_content=True)
        self._on_sent(len(block))
