"""What one update of a supervised stage learns from: rows of a table, made into inputs, and how its outputs are judged."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Push = Callable[[Tensor], Tensor]
"""tangents of the inputs of the batch's first J rows (..., J, in) -> of their outputs (..., J, out)"""


@dataclass(frozen=True)
class Batch:
    """Inputs (..., B, in) and goals (..., B, out) of least squares; leading axes are networks side by side."""

    x: Tensor
    goal: Tensor

    def loss_and_gradient(self, prediction: Tensor, push: Push) -> tuple[Tensor, Tensor]:
        """The loss (...) and its derivative by the network's prediction (..., B, out), whose memory may be used for it."""
        error = prediction.sub_(self.goal)
        return error.square().mean((-2, -1)), error.mul_(2 / (error.shape[-2] * error.shape[-1]))


@dataclass(frozen=True)
class Examples:
    """Rows [x, goal] (n, ·) on the device; called with indices (B,), or (S, B), it answers with a batch.

    What an update draws besides is handed in behind the indices.
    """

    rows: Tensor
    split: int
    """columns of x"""

    def taken(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """x (..., B, split) and goal (..., B, ·) of these rows."""
        rows = take(self.rows, index)
        return rows[..., : self.split], rows[..., self.split :]

    def __call__(self, index: Tensor, *random: Tensor) -> Batch:
        """The batch of these rows."""
        return Batch(*self.taken(index))


def take(rows: Tensor, index: Tensor) -> Tensor:
    """rows[index] for rows (n, c) and any shape of index: (*index.shape, c)."""
    return rows.index_select(0, index.flatten()).unflatten(0, index.shape)


@dataclass(frozen=True)
class NoisedExamples(Examples):
    """Examples of section 3.1.3's objective: x = [√ᾱ_k target + √(1−ᾱ_k) noise, s, a, embedding of k], goal target or noise."""

    signal: Tensor
    """√ᾱ, (K, 1)"""
    corruption: Tensor
    """√(1−ᾱ), (K, 1)"""
    embedding: Tensor
    """of the levels, (K, e)"""
    of_noise: bool
    """whether the goal is the noise"""

    def __call__(self, index: Tensor, *random: Tensor) -> Batch:
        """Levels k − 1 (..., B) and noise (..., B, d) are handed in."""
        k, noise = random
        s_a, target = self.taken(index)
        corrupted = take(self.signal, k) * target + take(self.corruption, k) * noise
        return Batch(torch.cat([corrupted, s_a, take(self.embedding, k)], -1), noise if self.of_noise else target)
