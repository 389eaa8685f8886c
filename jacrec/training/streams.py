"""Randomness as a function of (seed, stage, update): what an interrupted run needs in order to go on with the same bits."""

import zlib
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

BLOCK = 64  # updates whose randomness is drawn together


def seed_of(seed: int, *key: str | int) -> int:
    """An independent 63-bit seed for each key: words and numbers, e.g. ("rebrac", "batches", 3)."""
    words = [zlib.crc32(k.encode()) if isinstance(k, str) else k for k in key]
    return int(np.random.SeedSequence([seed, *words]).generate_state(1, np.uint64)[0] >> 1)


def generator(seed: int, *key: str | int) -> torch.Generator:
    """A CPU generator on the stream of `key`."""
    return torch.Generator().manual_seed(seed_of(seed, *key))


class BatchStream:
    """The random tensors of every update, drawn in blocks on the CPU.

    `draw(generator, BLOCK)` answers with tensors whose first axis is the update within the block. Block b has its own
    generator, so update t needs no history: only (seed, stage, t).
    """

    def __init__(self, seed: int, stage: str, draw: Callable[[torch.Generator, int], tuple[Tensor, ...]], device="cpu"):
        self.seed, self.stage, self.draw, self.device = seed, stage, draw, device
        self.block, self.tensors = -1, ()

    def at(self, update: int) -> tuple[Tensor, ...]:
        """The tensors of update 0, 1, …"""
        block, row = divmod(update, BLOCK)
        if block != self.block:
            drawn = self.draw(generator(self.seed, self.stage, "batches", block), BLOCK)
            self.block, self.tensors = block, tuple(t.to(self.device) for t in drawn)
        return tuple(t[row] for t in self.tensors)
