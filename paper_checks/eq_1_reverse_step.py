"""The effect of the three misprints in section 3.1 on a sampler: exactly for a Gaussian, then with a trained model.

| place                         | printed                  | right                            |
| reverse step, 3.1.2 and (1)   | (1−α_k) ε̂               | (1−α_k)/√(1−ᾱ_k) ε̂             |
| training input, 3.1.3         | √α_k s + √(1−α_k) ε      | √ᾱ_k s + √(1−ᾱ_k) ε, as in 3.1.1 |
| range of k, 3.1.2 and (1)     | K−1 … 1                  | K … 1, as in Theorem 4.1 and (24) |

Theorem 4.1 holds for any differentiable h_k; the misprints only affect the samples. `python paper_checks/eq_1_reverse_step.py`
(about ten seconds) exits with 1 if the right sampler does not match the true distribution or a printed one does.
"""

import sys
from dataclasses import dataclass

import torch
from torch import Tensor

from jacrec import DiffusionDynamics
from jacrec.models.dynamics.schedule import alphas, reverse_steps


@dataclass(frozen=True)
class Variant:
    """The printed or the right version at each of the three places."""

    name: str
    step: str = "ddpm"  # or "printed"
    input: str = "right"  # or "printed"
    skip: int = 0  # 1: the printed range, which omits k = K


RIGHT = Variant("right")
STEP = Variant("printed step (1)", step="printed")
INPUT = Variant("printed training input", input="printed")
RANGE = Variant("printed range K−1 … 1", skip=1)
ALL = Variant("all three as printed", "printed", "printed", 1)
VARIANTS = (RIGHT, STEP, INPUT, RANGE, ALL)
WIDTH = 0.25


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation of samples, with their 1-Wasserstein distance from the truth."""

    mean: float
    std: float
    distance: float


def gaussian_chain(variant: Variant, K: int, mean: float, std: float) -> Moments:
    """The exact distribution of s^(0) for data N(mean, std²) and the optimal denoiser.

    That denoiser is affine, ε̂ = √(1−c) (u − √c mean) / (c std² + 1 − c) with c = ᾱ_k, or c = α_k for a network trained
    on the printed input, so every s^(k) is Gaussian and its moments follow from the coefficients of h_k.
    """
    alpha = alphas("vp", K)
    steps = reverse_steps(alpha, sampler=variant.step)
    c = alpha if variant.input == "printed" else torch.cumprod(alpha, 0)
    slope = (1 - c).sqrt() / (c * std**2 + 1 - c)
    m, v = 0.0, 1.0
    for i in range(K - 1 - variant.skip, -1, -1):
        gain = float(steps.c_u[i] + steps.c_net[i] * slope[i])
        m = gain * m - float(steps.c_net[i] * slope[i] * c[i].sqrt()) * mean
        v = gain**2 * v + float(steps.sigma[i]) ** 2
    return Moments(m, v**0.5, gaussian_distance(m - mean, v**0.5 - std))


def gaussian_distance(mean: float, std: float) -> float:
    """1-Wasserstein distance E |mean + std Z| of two Gaussians, given the differences of their means and deviations."""
    z = torch.distributions.Normal(0.0, 1.0).icdf((torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000)
    return float((mean + std * z).abs().mean())


def truth(state: Tensor, action: Tensor, generator: torch.Generator) -> Tensor:
    """The next state (B, 1) of a bimodal system: a + s with probability 0.7, a − s with 0.3, ± WIDTH."""
    sign = torch.where(torch.rand(state.shape, generator=generator) < 0.7, 1.0, -1.0)
    return action + sign * state + WIDTH * torch.randn(state.shape, generator=generator)


def train(variant: Variant, K: int, updates: int, generator: torch.Generator) -> DiffusionDynamics:
    """A denoiser for `truth`, trained on the right or the printed input of section 3.1.3."""
    dynamics = DiffusionDynamics(1, 1, (64, 64), steps=K, target="state", activation="silu", embedding_dim=16)
    alpha = alphas("vp", K).float()
    optimiser = torch.optim.Adam(dynamics.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, updates)
    for _ in range(updates):
        state, action = torch.rand(2, 512, 1, generator=generator) * 2 - 1
        x, noise = truth(state, action, generator), torch.randn(512, 1, generator=generator)
        k = torch.randint(1, K + 1, (512,), generator=generator)
        if variant.input == "printed":
            a = alpha[k - 1].unsqueeze(-1)
            predicted = dynamics.denoiser(a.sqrt() * x + (1 - a).sqrt() * noise, k, state, action)
            loss = (predicted - noise).square().mean()
        else:
            loss = dynamics.loss(state, action, x, k, noise).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return dynamics


@torch.no_grad()
def sample(trained: DiffusionDynamics, variant: Variant, state: Tensor, action: Tensor, generator: torch.Generator) -> Tensor:
    """Next states (B, 1), sampled by the variant's reverse chain with the trained denoiser."""
    dynamics = DiffusionDynamics(**{**trained.config, "sampler": variant.step})
    dynamics.load_state_dict(trained.state_dict())
    u = dynamics.g(torch.randn(state.shape, generator=generator))
    for k in range(dynamics.diffusion_steps - variant.skip, 0, -1):
        u = dynamics.h(k, u, state, action, torch.randn(state.shape, generator=generator))
    return dynamics.decode(state, u)


def moments(samples: Tensor, reference: Tensor) -> Moments:
    """Moments of samples (B, 1), and their distance from equally many true samples (sorting is the optimal coupling in 1D)."""
    distance = (samples.flatten().sort().values - reference.flatten().sort().values).abs().mean()
    return Moments(float(samples.mean()), float(samples.std()), float(distance))


def trained_chain(K: int, updates: int, seed: int = 0, samples: int = 10_000) -> dict[str, Moments]:
    """All variants at s = 0.8, a = −0.3, and a second sample of the truth as a lower limit of the distance."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    state, action = torch.full((samples, 1), 0.8), torch.full((samples, 1), -0.3)
    reference = truth(state, action, generator)
    networks = {variant.input: train(variant, K, updates, generator) for variant in (RIGHT, INPUT)}
    result = {"truth, drawn again": moments(truth(state, action, generator), reference)}
    for variant in VARIANTS:
        result[variant.name] = moments(sample(networks[variant.input], variant, state, action, generator), reference)
    return result


def line(name: str, m: Moments) -> str:
    """One line of a table."""
    return f"  {name:24s} mean {m.mean:8.4f}   std {m.std:7.4f}   W1 to the truth {m.distance:7.4f}"


def main(updates: int = 2000, K: int = 50) -> dict[str, Moments]:
    """Print both tables; return the trained model's."""
    print("Exact denoiser of N(0.5, 0.6²): the distribution of s^(0) after K steps, without samples or training")
    for steps in (10, 100, 1000):
        print(f" K = {steps}")
        for variant in VARIANTS:
            print(line(variant.name, gaussian_chain(variant, steps, 0.5, 0.6)))
    print(f"Denoiser trained for {updates} updates on a bimodal system (modes at 0.5 and −1.1), K = {K}")
    result = trained_chain(K, updates)
    for name, m in result.items():
        print(line(name, m))
    print(conclusion(result))
    return result


def holds(result: dict[str, Moments]) -> bool:
    """Whether the right sampler is close to the truth, and printed step and printed input are at least three times as far."""
    near = result[RIGHT.name].distance
    return near < 0.1 and all(result[v.name].distance > 3 * near for v in (STEP, INPUT, ALL))


def conclusion(result: dict[str, Moments]) -> str:
    """One line: what the comparison shows."""
    if not holds(result):
        return "The comparison fails: train longer, or the sampler is wrong."
    near = result[RIGHT.name].distance
    far = ", ".join(f"{v.name} {result[v.name].distance / near:.1f}×" for v in (STEP, INPUT, RANGE, ALL))
    return (
        f"The right sampler meets the truth (W1 {near:.3f}). Distances relative to its own: {far}.\n"
        "The printed range alone does little harm to samples, since s^(K) and s^(K−1) are both close to pure noise."
    )


if __name__ == "__main__":
    sys.exit(0 if holds(main()) else 1)
