"""Randomness as a function of (seed, stage, update): what an interrupted run needs in order to go on with the same bits.

All of it is drawn on the CPU, so that a run has the same batches whatever device it trains on, alone or beside other seeds.
For a GPU the blocks are drawn one ahead, by threads of their own, and brought over without waiting.
"""

import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

BLOCK = 64  # updates whose randomness is drawn together

Draw = Callable[[torch.Generator, int], tuple[Tensor, ...]]


def derive_seed(seed: int, *key: str | int) -> int:
    """An independent 63-bit seed for each key: words and numbers, e.g. ("rebrac", "batches", 3)."""
    words = [zlib.crc32(k.encode()) if isinstance(k, str) else k for k in key]
    return int(np.random.SeedSequence([seed, *words]).generate_state(1, np.uint64)[0] >> 1)


def generator(seed: int, *key: str | int) -> torch.Generator:
    """A CPU generator on the stream of `key`."""
    return torch.Generator().manual_seed(derive_seed(seed, *key))


class BlockPrefetcher:
    """`blocks(b)` -> the tensors of block b on the device; where `ahead`, a thread draws block b + 1 meanwhile.

    Args:
        draw: block's number -> its tensors on the CPU.
        ahead: None: where the device is a GPU.
    """

    def __init__(
        self, draw: Callable[[int], tuple[Tensor, ...]], device: str | torch.device = "cpu", ahead: bool | None = None
    ):
        self.draw, self.device = draw, torch.device(device)
        self.pinned = self.device.type == "cuda"
        self.pool = ThreadPoolExecutor(1, "draw") if (self.pinned if ahead is None else ahead) else None
        self.coming: tuple[int, Future[tuple[Tensor, ...]]] | None = None

    def __call__(self, block: int) -> tuple[Tensor, ...]:
        """Block `block`, in whatever order they are asked for."""
        if self.pool is None:
            return tuple(t.to(self.device) for t in self.draw(block))
        if self.coming is None or self.coming[0] != block:
            self.coming = block, self.pool.submit(self._draw_block, block)
        tensors = self.coming[1].result()
        self.coming = block + 1, self.pool.submit(self._draw_block, block + 1)
        return tuple(t.to(self.device, non_blocking=self.pinned) for t in tensors)

    def close(self) -> None:
        """End the thread."""
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)

    def _draw_block(self, block: int) -> tuple[Tensor, ...]:
        tensors = self.draw(block)
        # from pinned memory a copy to the device needs no waiting
        return tuple(t.pin_memory() for t in tensors) if self.pinned else tensors


class BatchStream:
    """The random tensors of every update, drawn in blocks on the CPU.

    `draw(generator, BLOCK)` answers with tensors whose first axis is the update within the block. Block b has its own
    generator, so update t needs no history: only (seed, stage, t).
    """

    def __init__(self, seed: int, stage: str, draw: Draw, device: str | torch.device = "cpu", ahead: bool | None = None):
        self.seed, self.stage, self.draw = seed, stage, draw
        self.blocks = BlockPrefetcher(lambda block: _draw_block(seed, stage, draw, block), device, ahead)
        self.block, self.tensors = -1, ()

    def drawn(self, block: int) -> tuple[Tensor, ...]:
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
    """The block of every stream, each tensor (BLOCK, S, ...), on the CPU."""
    blocks = pool.map(lambda stream: stream.drawn(block), streams)
    return tuple(torch.stack(tensors, 1) for tensors in zip(*blocks, strict=True))
