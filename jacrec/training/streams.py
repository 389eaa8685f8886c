"""Randomness as a function of (seed, stage, update), so that an interrupted run resumes bit-identically.

Everything is drawn on the CPU: a run has the same batches on every device, trained alone or together with other seeds. For
a GPU, blocks are drawn one ahead in separate threads and transferred asynchronously.
"""

import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

BLOCK = 64
"""updates whose random tensors are drawn together"""

Draw = Callable[[torch.Generator, int], tuple[Tensor, ...]]


def derive_seed(seed: int, *key: str | int) -> int:
    """An independent 63-bit seed for each key of words and numbers, e.g. ("rebrac", "batches", 3)."""
    words = [zlib.crc32(k.encode()) if isinstance(k, str) else k for k in key]
    return int(np.random.SeedSequence([seed, *words]).generate_state(1, np.uint64)[0] >> 1)


def generator(seed: int, *key: str | int) -> torch.Generator:
    """A CPU generator seeded for `key`."""
    return torch.Generator().manual_seed(derive_seed(seed, *key))


class BlockPrefetcher:
    """`blocks(b)` -> the tensors of block b on the device; with `ahead`, a thread draws block b + 1 in the meantime.

    Args:
        draw: maps a block's number to its tensors on the CPU.
        ahead: default: if the device is a GPU.
    """

    def __init__(
        self, draw: Callable[[int], tuple[Tensor, ...]], device: str | torch.device = "cpu", ahead: bool | None = None
    ):
        self.draw, self.device = draw, torch.device(device)
        self.pinned = self.device.type == "cuda"
        self.pool = ThreadPoolExecutor(1, "draw") if (self.pinned if ahead is None else ahead) else None
        self.pending: tuple[int, Future[tuple[Tensor, ...]]] | None = None

    def __call__(self, block: int) -> tuple[Tensor, ...]:
        """The tensors of block `block`; blocks may be requested in any order."""
        if self.pool is None:
            return tuple(t.to(self.device) for t in self.draw(block))
        if self.pending is None or self.pending[0] != block:
            self.pending = block, self.pool.submit(self._draw, block)
        tensors = self.pending[1].result()
        self.pending = block + 1, self.pool.submit(self._draw, block + 1)
        return tuple(t.to(self.device, non_blocking=self.pinned) for t in tensors)

    def close(self) -> None:
        """End the thread."""
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)

    def _draw(self, block: int) -> tuple[Tensor, ...]:
        tensors = self.draw(block)
        # copies from pinned memory are asynchronous
        return tuple(t.pin_memory() for t in tensors) if self.pinned else tensors


class BatchStream:
    """The random tensors of every update, drawn in blocks on the CPU.

    `draw(generator, BLOCK)` returns tensors whose first axis is the update within the block. Every block has its own
    generator, so the tensors of update t depend on (seed, stage, t) only.
    """

    def __init__(self, seed: int, stage: str, draw: Draw, device: str | torch.device = "cpu", ahead: bool | None = None):
        self.seed, self.stage, self.draw = seed, stage, draw
        self.blocks = BlockPrefetcher(lambda block: _draw_block(seed, stage, draw, block), device, ahead)
        self.block, self.tensors = -1, ()

    def draw_block(self, block: int) -> tuple[Tensor, ...]:
        """The tensors of updates block · BLOCK, …, on the CPU."""
        return _draw_block(self.seed, self.stage, self.draw, block)

    def at(self, update: int) -> tuple[Tensor, ...]:
        """The tensors of update 0, 1, …"""
        block, row = divmod(update, BLOCK)
        if block != self.block:
            self.block, self.tensors = block, self.blocks(block)
        return tuple(t[row] for t in self.tensors)


def _draw_block(seed: int, stage: str, draw: Draw, block: int) -> tuple[Tensor, ...]:
    return draw(generator(seed, stage, "batches", block), BLOCK)


def stack_blocks(streams: Sequence[BatchStream], block: int, pool: ThreadPoolExecutor) -> tuple[Tensor, ...]:
    """A block of every stream, each tensor (BLOCK, S, ...), on the CPU."""
    blocks = pool.map(lambda stream: stream.draw_block(block), streams)
    return tuple(torch.stack(tensors, 1) for tensors in zip(*blocks, strict=True))
