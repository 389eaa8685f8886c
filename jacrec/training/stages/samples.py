"""Compare one-step samples of a world model with recorded successors: errors, moments and distances."""

from dataclasses import dataclass

import torch
from torch import Tensor

from jacrec.models.world import Dynamics
from jacrec.training.stages.supervised import rmse


@dataclass(frozen=True)
class SampleCheck:
    """Samples compared with the recorded successors; all values per dimension, averaged over dimensions."""

    rmse: float
    """√ mean (ŝ' − s')² over transitions and samples, in the data's units"""
    rmse_se: float
    """standard error of `rmse` over the transitions"""
    rmse_mean: float
    """the same for the mean of the samples"""
    bias: float
    """√ mean over dimensions of the squared mean residual of s' about the samples' mean, in standard deviations of s' − s"""
    spread: float
    """standard deviation of the samples over that of s' about their mean; 1 for a calibrated model"""
    wasserstein: float
    """1-Wasserstein distance between the residuals of s' and of one sample, both about the mean of the other samples, in standard
    deviations of s' − s"""


@torch.no_grad()
def sample_check(dynamics: Dynamics, state: Tensor, action: Tensor, next_state: Tensor, noise: Tensor) -> SampleCheck:
    """Compare S ≥ 3 samples per transition with the recorded next state.

    Args:
        state, next_state: (n, d).
        action: (n, m).
        noise: (n, S, *noise_shape).

    Raises:
        ValueError: fewer than three samples.
    """
    samples = noise.shape[1]
    if samples < 3:
        raise ValueError(f"noise: expected at least 3 samples per transition, got {samples}; draw more")
    s, a = (x.unsqueeze(1).expand(-1, samples, -1) for x in (state, action))
    predicted = dynamics(s, a, noise).double()  # (n, S, d)
    real, mean = next_state.double(), predicted.mean(1)
    scale = (real - state.double()).std(0)
    value, error = rmse((predicted - real.unsqueeze(1)).square().mean((1, 2)))
    residual = real - mean
    # for a calibrated model, E (s' − mean)² = σ² (1 + 1/S)
    own = predicted.var(1).mean(0) * (1 + 1 / samples)
    spread = (own.sum() / residual.square().mean(0).sum()).sqrt()
    others = predicted[:, 1:].mean(1)
    distance = wasserstein((real - others) / scale, (predicted[:, 0] - others) / scale)
    return SampleCheck(
        value,
        error,
        rmse(residual.square().mean(-1))[0],
        (residual.mean(0) / scale).square().mean().sqrt().item(),
        spread.item(),
        distance.mean().item(),
    )


def wasserstein(a: Tensor, b: Tensor) -> Tensor:
    """1-Wasserstein distance of two samples (n, d) of equal size, per dimension: (d,)."""
    return (a.sort(0).values - b.sort(0).values).abs().mean(0)
