"""Variance schedules and the coefficients of the reverse step (section 3.1), computed in float64.

Every reverse step that jacrec uses is affine in the latent, the network and the noise,

    h_k(u, s, a, z) = c_u[k] u + c_net[k] net(u, k, (s, a)) + sigma[k] z,                                    (1)

so a sampler is three tables. That holds for DDPM and DDIM, for networks that predict the noise ε or the clean sample
x0, on any subset of the training steps.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jacrec.util.errors import expect_one_of

SCHEDULES = ("linear", "cosine", "vp")
PREDICTIONS = ("epsilon", "x0")
SAMPLERS = ("ddpm", "ddim", "printed")


def alphas(schedule: str, steps: int) -> Tensor:
    """α_1 … α_K as float64 (K,), index k−1.

    linear: Ho et al. (2020), β from 1e-4 to 0.02 for 1000 steps, scaled by 1000/K and capped at 0.999. cosine: Nichol &
    Dhariwal (2021). vp: the discretised variance-preserving process of Xiao et al. (2022), β from 0.1 to 10 over unit
    time; it ends near pure noise for any K, so it is the default for few steps.
    """
    expect_one_of("schedule", schedule, SCHEDULES)
    if steps < 1:
        raise ValueError(f"steps: expected K >= 1 diffusion steps, got {steps}")
    k = torch.arange(1, steps + 1, dtype=torch.float64)
    if schedule == "linear":
        scale = 1000.0 / steps
        beta = torch.linspace(1e-4 * scale, 0.02 * scale, steps, dtype=torch.float64)
        return 1 - beta.clamp(max=0.999)
    if schedule == "cosine":
        bar = torch.cos((torch.arange(steps + 1, dtype=torch.float64) / steps + 0.008) / 1.008 * math.pi / 2) ** 2
        return 1 - (1 - bar[1:] / bar[:-1]).clamp(max=0.999)
    lowest, highest = 0.1, 10.0
    return torch.exp(-lowest / steps - 0.5 * (highest - lowest) * (2 * k - 1) / steps**2)


@dataclass(frozen=True)
class ReverseSteps:
    """The tables of h_k for the K steps of a chain; entry k−1 belongs to h_k, which maps s^(k) to s^(k−1)."""

    level: Tensor  # (K,) int64: the training step whose embedding the network sees
    c_u: Tensor  # (K,) float64
    c_net: Tensor  # (K,) float64
    sigma: Tensor  # (K,) float64


def reverse_steps(
    alpha: Tensor,
    *,
    sampler: str = "ddpm",
    prediction: str = "epsilon",
    eta: float = 0.0,
    levels: Sequence[int] | None = None,
) -> ReverseSteps:
    """The reverse chain for training alphas (K_train,) visiting `levels` (ascending, 1-based; default all of them).

    * ddpm: the posterior q(s^(k−1) | s^(k), x0) of Ho et al. (2020), with its variance β̃ (so σ_1 = 0).
    * ddim: Song et al. (2021), σ scaled by `eta` (0 is deterministic, 1 is ddpm).
    * printed: (1) exactly as the paper prints it, (1−α_k) ε̂ without the division by √(1−ᾱ_k). It does not sample the
      data (see paper_checks/eq_1_reverse_step.py) and exists for that comparison alone.

    On a subset of levels, α_k is replaced by ᾱ_k / ᾱ_(previous level).
    """
    expect_one_of("sampler", sampler, SAMPLERS)
    expect_one_of("prediction", prediction, PREDICTIONS)
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta: expected 0 <= eta <= 1 (0 is deterministic, 1 is ddpm), got {eta}")
    if eta and sampler != "ddim":
        raise ValueError(f"eta: expected 0 with sampler {sampler!r}, got {eta}; it scales the noise of sampler 'ddim'")
    if sampler == "printed" and prediction != "epsilon":
        raise ValueError("sampler 'printed' is equation (1), which predicts the noise: use prediction='epsilon'")
    steps = len(alpha)
    level = torch.arange(1, steps + 1) if levels is None else torch.tensor(list(levels))
    if not len(level) or level[0] < 1 or level[-1] > steps or bool((level[1:] <= level[:-1]).any()):
        raise ValueError(f"levels: expected ascending steps within 1..{steps}, got {None if levels is None else list(levels)}")
    bar = torch.cumprod(alpha.to(torch.float64), 0)[level - 1]
    previous = torch.cat([torch.ones(1, dtype=torch.float64), bar[:-1]])
    a = bar / previous
    variance = (1 - a) * (1 - previous) / (1 - bar)
    if sampler == "printed":
        return ReverseSteps(level, a.rsqrt(), -(1 - a) * a.rsqrt(), variance.sqrt())
    # every sampler is s^(k-1) = p x0 + q ε + σ z with x0 = (u − √(1−ᾱ) ε) / √ᾱ
    sigma = variance.sqrt() * (1.0 if sampler == "ddpm" else eta)
    p, q = previous.sqrt(), (1 - previous - sigma**2).clamp(min=0).sqrt()
    if prediction == "epsilon":
        return ReverseSteps(level, p / bar.sqrt(), q - p * ((1 - bar) / bar).sqrt(), sigma)
    return ReverseSteps(level, q / (1 - bar).sqrt(), p - q * (bar / (1 - bar)).sqrt(), sigma)
