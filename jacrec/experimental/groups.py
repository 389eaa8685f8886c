"""Signal and noise of a gradient from equal groups of particles, through any method."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from jacrec.engine.diagnostics import GradientSignal
from jacrec.engine.jacobians.factored import squared_norm
from jacrec.engine.parameters import trainable
from jacrec.engine.problem import Problem
from jacrec.engine.types import PolicyGradient


@dataclass(frozen=True)
class Groups:
    """Gradients of G equal groups of particles: the group means have covariance Σ G / M, which estimates the noise.

    With G − 1 degrees of freedom instead of the particles' M − 1, but through any method, hence at the cost of the compiled
    gradients: G of M / G particles instead of one of M. Keeps G · P numbers for each real state.
    """

    estimates: list[PolicyGradient]
    particles: int
    """M of all groups together"""

    def rows(self, index: Tensor) -> "Groups":
        """The rows `index` of a `BatchedPolicy`."""
        return Groups([_rows(g, index) for g in self.estimates], self.particles)

    def joined(self, more: "Groups") -> "Groups":
        """With further groups of the same size and real states."""
        return Groups(self.estimates + more.estimates, self.particles + more.particles)

    def signal(self, p: Problem) -> GradientSignal:
        """The gradient of all particles, with its signal and noise."""
        G = len(self.estimates)
        counted = trainable(p.policy)
        mean = {k: torch.stack([g.gradient[k] for g in self.estimates]).mean(0) for k in self.estimates[0].gradient}
        value = torch.stack([g.value for g in self.estimates]).mean(0)

        def square(gradient: dict[str, Tensor]) -> Tensor:
            return squared_norm({k: gradient[k] if p.batched else gradient[k].unsqueeze(0) for k in counted})

        squares = square(mean)
        noise = torch.zeros_like(squares)
        if G > 1:
            # the square of differences, not a difference of squares: the groups may agree almost to rounding
            away = [square({k: g.gradient[k] - mean[k] for k in counted}) for g in self.estimates]
            noise = torch.stack(away).sum(0) / (G * (G - 1))
        if not p.batched:
            squares, noise = squares.squeeze(0), noise.squeeze(0)
        return GradientSignal(PolicyGradient(value, mean), self.particles, squares, noise)


def groups_of(particles: int) -> int:
    """The number of equal groups of M particles: about M / 4, from two to four, a divisor of M."""
    least = min(4, max(2, particles // 4))
    return next((G for G in range(least, particles) if particles % G == 0), particles)


def in_groups(p: Problem, gradient: Callable[[Problem], PolicyGradient]) -> Groups:
    """The gradient of each group of the problem's particles; one group for H = 0, where nothing is random."""
    parts = p.noise.chunk(groups_of(p.M) if p.H else 1, 1)
    return Groups([gradient(replace(p, noise=noise)) for noise in parts], p.M)


def _rows(estimate: PolicyGradient, index: Tensor) -> PolicyGradient:
    return PolicyGradient(estimate.value[index], {name: g[index] for name, g in estimate.gradient.items()})
