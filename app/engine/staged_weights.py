"""Weights loaded by safetensors from shards on disk: the engine's part of `host-staging`.

Takes the shards' descriptors once all of them are there, and copies every tensor that the model asked for to its
address. The only file that knows safetensors.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence

import torch
from safetensors import SafetensorError, safe_open

from app.engine.skeleton import stored
from app.engine.weights import own_memory
from app.messages import StagedShard
from streaming.clock import boottime_s
from streaming.errors import CheckpointError, DeviceError
from streaming.messages import Extent

logger = logging.getLogger(__name__)


class StagedWeights:
    """Memory of the engine's own, filled from disk.

    Args:
        nbytes: Of all weights.
        extents: Where each tensor goes, by its stored name.
        device: "cpu" or "cuda".

    Raises:
        DeviceError: The device has not as much.
    """

    def __init__(self, nbytes: int, extents: Mapping[str, Extent], device: str):
        self.flat = own_memory(nbytes, device)
        self._extents = extents

    def coming_bytes(self) -> int:
        """All of them: memory is taken as it is written."""
        return 0 if self.flat.is_cuda else self.flat.nbytes

    def landed(self, shards: Sequence[StagedShard], fds: Sequence[int]) -> None:
        """Copy everything, shard by shard; closes `fds`.

        Raises:
            CheckpointError: A shard does not hold what its header said.
            DeviceError: A tensor on its way found no room.
        """
        start_s = boottime_s()
        for shard, fd in zip(shards, fds, strict=True):
            try:
                self._load(shard, fd)
            except SafetensorError as error:
                raise CheckpointError(f"{shard.name}: safetensors cannot read it: {error}") from error
            except torch.OutOfMemoryError as error:
                raise DeviceError(
                    f"{shard.name}: the device has no room for one of its tensors beside the KV cache: "
                    "lower --gpu-memory-utilization"
                ) from error
            finally:
                os.close(fd)
        if self.flat.is_cuda:
            torch.cuda.synchronize()
        tensors = sum(len(shard.tensors) for shard in shards)
        logger.info("loaded %d tensors from disk to %s in %.2f s", tensors, self.flat.device, boottime_s() - start_s)

    def _load(self, shard: StagedShard, fd: int) -> None:
        # Without a name in any folder, the file can still be opened through its descriptor.
        with safe_open(f"/proc/self/fd/{fd}", framework="pt", device=str(self.flat.device)) as file:
            for stored_name, source_name in shard.tensors.items():
                stored(stored_name, self.flat, self._extents).copy_(file.get_tensor(source_name))
