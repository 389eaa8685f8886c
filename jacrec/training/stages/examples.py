"""Training examples of the supervised stages: batches gathered from a table of rows, with their loss and its gradient."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

Push = Callable[[Tensor], Tensor]
"""tangents of the inputs of the batch's first J rows (..., J, in) -> tangents of their outputs (..., J, out)"""


@dataclass(frozen=True)
class Batch:
    """Inputs (..., B, in) and goals (..., B, out) of least squares. Leading axes are independent networks."""

    x: Tensor
    goal: Tensor

    def loss_and_gradient(self, prediction: Tensor, push: Push) -> tuple[Tensor, Tensor]:
        """The loss (...) and its gradient with respect to the prediction (..., B, out), which may be overwritten."""
        error = prediction.sub_(self.goal)
        return error.square().mean((-2, -1)), error.mul_(2 / (error.shape[-2] * error.shape[-1]))


@dataclass(frozen=True)
class Examples:
    """Rows [x, goal] (n, ·) on the device. Called with indices (B,), or (S, B), it returns a batch.

    Further random tensors of an update are passed after the indices.
    """

    rows: Tensor
    split: int
    """number of columns of x"""
    least_squares: ClassVar[bool] = True
    """whether the loss is that of `Batch`"""

    def columns(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """x (..., B, split) and goal (..., B, ·) of these rows."""
        rows = gather_rows(self.rows, index)
        return rows[..., : self.split], rows[..., self.split :]

    def __call__(self, index: Tensor, *random: Tensor) -> Batch:
        """The batch of these rows."""
        return Batch(*self.columns(index))


def gather_rows(rows: Tensor, index: Tensor) -> Tensor:
    """rows[index] for rows (n, c) and an index of any shape: (*index.shape, c)."""
    return rows.index_select(0, index.flatten()).unflatten(0, index.shape)


@dataclass(frozen=True)
class NoisedExamples(Examples):
    """The objective of section 3.1.3: x = [√ᾱ_k target + √(1−ᾱ_k) noise, s, a, embedding of k], goal target or noise."""

    signal: Tensor
    """√ᾱ, (K, 1)"""
    corruption: Tensor
    """√(1−ᾱ), (K, 1)"""
    embedding: Tensor
    """embeddings of the levels, (K, e)"""
    of_noise: bool
    """whether the goal is the noise (otherwise the target)"""

    def __call__(self, index: Tensor, *random: Tensor) -> Batch:
        """The batch of these rows. `random` is levels k − 1 (..., B) and noise (..., B, d)."""
        k, noise = random
        s_a, target = self.columns(index)
        corrupted = gather_rows(self.signal, k) * target + gather_rows(self.corruption, k) * noise
        return Batch(torch.cat([corrupted, s_a, gather_rows(self.embedding, k)], -1), noise if self.of_noise else target)
