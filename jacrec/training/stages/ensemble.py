"""Training examples of a probabilistic ensemble: Gaussian likelihood, with separate batches for every network."""

from dataclasses import dataclass

import torch
from torch import Tensor

from jacrec.models.dynamics.ensemble import bounded
from jacrec.training.stages.examples import Batch, Examples, Push

BETA = 0.5
"""β of the β-NLL (Seitzer et al. 2022): each likelihood term is multiplied by its variance to this power, without gradient, so
that badly predicted rows keep contributing"""


@dataclass(frozen=True)
class GaussianBatch(Batch):
    """Inputs (n, B, in) and goals (n, B, d) of n networks that predict the mean and the logarithm of the variance."""

    def loss_and_gradient(self, prediction: Tensor, push: Push) -> tuple[Tensor, Tensor]:
        """The mean negative log-likelihood (), without its constant, and the gradient of the β-NLL."""
        mean, raw = prediction.chunk(2, -1)
        log_variance, slope = bounded(raw)
        error = mean - self.goal
        share = error * torch.exp(-log_variance)
        square = error * share
        size = error.shape[-2] * error.shape[-1]
        scale = torch.exp(BETA * log_variance) / size
        return 0.5 * (square + log_variance).mean(), torch.cat([share * scale, 0.5 * (1 - square) * slope * scale], -1)


@dataclass(frozen=True)
class GaussianExamples(Examples):
    """Like `Examples`, called with indices (n, B), one row of them per network."""

    least_squares = False

    def __call__(self, index: Tensor, *random: Tensor) -> GaussianBatch:
        """The batch of these rows."""
        return GaussianBatch(*self.columns(index))
