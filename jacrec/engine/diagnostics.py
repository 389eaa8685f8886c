"""Diagnostics of an imagined gradient: its signal-to-noise ratio, and the growth of errors along the horizon.

Signal and noise. The M particles' gradients g_i are independent draws with mean μ = ∇_ψ E[L] and covariance Σ, and ḡ is their
mean: E‖ḡ‖² = ‖μ‖² + tr Σ / M. The particles' own scatter estimates tr Σ, so that both terms are known without bias,

    noise  = (mean_i ‖g_i‖² − ‖ḡ‖²) / (M − 1)     estimates tr Σ / M = E‖ḡ − μ‖²
    signal = ‖ḡ‖² − noise                           estimates ‖μ‖²; it is mean_{i≠k} ⟨g_i, g_k⟩, and so may be negative

No M × P numbers are needed: g_i = Σ_j w_ij Π_ψ(s̃_ij), and ‖g_i‖² is a sum over pairs of its own H+1 rows
(`jacrec.engine.jacobians.factored`).

Growth. ds̃_j/ds̃_0 is the product of the closed-loop Jacobians F_s + F_a Π_s: by how much an error in the first state has grown
j steps later, and the factor with which derivatives at step j enter the gradient. Computed from d tangents.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from jacrec.engine.dispatch import compiled
from jacrec.engine.gradient import adjoint_weights
from jacrec.engine.jacobians.dynamics import dynamics_pass
from jacrec.engine.jacobians.factored import factored_rows, squared_norm
from jacrec.engine.jacobians.policy import policy_pass
from jacrec.engine.parameters import trainable
from jacrec.engine.problem import Problem
from jacrec.engine.shapes import plain_torch, problem
from jacrec.engine.types import PolicyGradient
from jacrec.models.world import World
from jacrec.util.errors import expect_shape


@dataclass(frozen=True)
class Visits:
    """The imagined trajectories with the weight of each action in the gradient: ∇L_i = Σ_j w_ij Π_ψ(s̃_ij)."""

    value: Tensor  # (N,): Ĵ of each real state
    states: Tensor  # (N, M, H+1, d)
    w: Tensor  # (N, M, H+1, m)

    @property
    def particles(self) -> int:
        """M."""
        return self.states.shape[1]

    def rows(self, index: Tensor) -> "Visits":
        """The visits of some of the N real states."""
        return Visits(self.value[index], self.states[index], self.w[index])

    def joined(self, more: "Visits") -> "Visits":
        """The union of two sets of particles of the same real states."""
        a = self.particles / (self.particles + more.particles)
        value = a * self.value + (1 - a) * more.value
        return Visits(value, torch.cat([self.states, more.states], 1), torch.cat([self.w, more.w], 1))

    def signal(self, p: Problem) -> "GradientSignal":
        """The gradient with its signal and noise, from every particle's own gradient."""
        return signal_of(p, self)


@torch.no_grad()
def visit(p: Problem, *, fused: bool = True) -> Visits:
    """Imagine, and compute the weights by the adjoint form; `fused`: in compiled code, if it can serve."""
    kernels = compiled(p, "adjoint") if fused else None
    if kernels is not None:
        return Visits(*kernels.visits(p))
    visited, w = adjoint_weights(p)
    assert isinstance(visited.value, Tensor)
    states, weights = (torch.stack([x.expand(-1, p.M, -1) for x in parts], 2) for parts in (visited.states, w))
    return Visits(visited.value, states, weights)


@dataclass(frozen=True)
class GradientSignal:
    """∇_ψ Ĵ with the estimated error of the mean over particles; statistics are () for a single ψ, (N,) for a `BatchedPolicy`.

    They are over the parameters with requires_grad, which are those that a step moves.
    """

    estimate: PolicyGradient
    """Ĵ and its gradient, as `policy_gradient` gives them"""
    particles: int
    """M"""
    square: Tensor
    """‖ḡ‖²"""
    noise: Tensor
    """the expected squared error of ḡ, tr Σ / M; 0 where nothing is random"""

    @property
    def signal(self) -> Tensor:
        """Unbiased estimate of ‖μ‖²; negative where the particles disagree."""
        return self.square - self.noise

    @property
    def snr(self) -> Tensor:
        """signal / noise: at 1 the error is as long as the mean gradient. Infinite without noise, 0 for a gradient of 0."""
        return torch.where(self.square == 0, self.square, self.signal / self.noise)

    def particles_needed(self, snr: float) -> Tensor:
        """The M at which this signal-to-noise ratio is expected; infinite where the signal is not positive."""
        needed = (self.particles * snr * self.noise / self.signal).ceil().clamp(min=1)
        return torch.where(self.signal > 0, needed, torch.full_like(needed, math.inf))

    def rows(self, index: Tensor) -> "GradientSignal":
        """The rows `index` of a `BatchedPolicy`."""
        gradient = {name: g[index] for name, g in self.estimate.gradient.items()}
        estimate = PolicyGradient(self.estimate.value[index], gradient)
        return GradientSignal(estimate, self.particles, self.square[index], self.noise[index])


@plain_torch
def gradient_signal(policy: nn.Module, world: World, state: Tensor, noise: Tensor) -> GradientSignal:
    """The gradient of `policy_gradient` with its signal-to-noise ratio; arguments and errors as there.

    By the adjoint form: in one call of compiled code for a single state, or a `BatchedPolicy`, of layers without LayerNorm.
    Policies other than an `Actor` or known layers are differentiated row by row, at N·M·(H+1)·P numbers.

    Raises:
        ValueError: also for M = 1 with H > 0, where the variance cannot be estimated.
    """
    p = problem(policy, world, state, noise)
    return _compiled_signal(p) or signal_of(p, visit(p))


@torch.no_grad()
def _compiled_signal(p: Problem) -> GradientSignal | None:
    """`gradient_signal` where the kernels give every particle's squared gradient: of one state, or with a ψ for each."""
    fused = compiled(p, "adjoint") if p.M > 1 and (p.N == 1 or p.batched) else None
    found = None if fused is None else fused.particle_squares(p, trainable(p.policy))
    if found is None:
        return None
    estimate, each = found
    moving = {name: estimate.gradient[name] for name in trainable(p.policy)}
    squares = squared_norm(moving if p.batched else {name: g.unsqueeze(0) for name, g in moving.items()})
    noise = _noise_of_the_mean(each, squares)
    return GradientSignal(estimate, p.M, *(x if p.batched else x.squeeze(0) for x in (squares, noise)))


def _noise_of_the_mean(each: Tensor, squares: Tensor) -> Tensor:
    """tr Σ / M (N,) from the particles' squared gradients (N, M) and those of their means (N,)."""
    # where all particles agree, rounding alone would decide the sign
    return ((each.mean(1) - squares) / (each.shape[1] - 1)).clamp(min=0)


@torch.no_grad()
def estimate_of(p: Problem, visits: Visits) -> PolicyGradient:
    """Ĵ and its gradient from visits: one product with Π_ψ."""
    states, w = (x.flatten(1, 2) for x in (visits.states, visits.w))
    share = visits.particles if p.batched else visits.particles * p.N
    gradient = policy_pass(p.policy, states).pull_parameters(w / share)
    value = visits.value.squeeze(0) if p.single else visits.value
    return PolicyGradient(value, {k: gradient[k] for k, _ in p.policy.named_parameters()})


@torch.no_grad()
def signal_of(p: Problem, visits: Visits) -> GradientSignal:
    """The `GradientSignal` of visits."""
    N, M, J = visits.w.shape[:3]
    if M < 2 and J > 1:
        raise ValueError(f"gradient_signal: expected M >= 2 particles, got {M}; the noise is estimated from their variance")
    counted = trainable(p.policy)
    states, w = (x.flatten(1, 2) for x in (visits.states, visits.w))
    rows = factored_rows(policy_pass(p.policy, states), w.unsqueeze(2), counted)
    mean = {name: g / M for name, g in rows.total().items()}  # (N, *shape): ḡ of every real state
    squares = squared_norm({name: mean[name] for name in counted})
    if J == 1:  # at the real state itself nothing is random
        noise = torch.zeros_like(squares)
    else:
        each = rows.grouped(M).squared_norm().view(N, M)
        noise = _noise_of_the_mean(each, squares)
    value = visits.value.squeeze(0) if p.single else visits.value
    if not p.batched:
        mean = {name: g.mean(0) for name, g in mean.items()}
        squares = squared_norm({name: mean[name].unsqueeze(0) for name in counted}).squeeze(0)
        noise = noise.sum() / N**2  # the real states' noises are independent
    return GradientSignal(PolicyGradient(value, {k: mean[k] for k, _ in p.policy.named_parameters()}), M, squares, noise)


@plain_torch
@torch.no_grad()
def state_growth(policy: nn.Module, world: World, state: Tensor, noise: Tensor, *, unit: Tensor | None = None) -> Tensor:
    """‖ds̃_j/ds̃_0‖₂ for j = 0…H: (M, H+1), or (N, M, H+1); arguments and errors as in `policy_gradient`.

    As `Linearization.jacobian_growth`, from d tangents per particle instead of d+m and nothing else: (1 + d) rows per
    particle through the dynamics' network, where the adjoint form of the gradient takes 2.

    Args:
        unit: (d,), the scale of each component of the state; default: ones. Positions and velocities differ in scale, and
            in their own units the norm is mostly that difference.
    """
    p = problem(policy, world, state, noise)
    if unit is not None:
        expect_shape("unit", unit, (p.state.shape[-1],), "; one number for each component of the state")
    growth = growth_of(p, unit)
    return growth.squeeze(0) if p.single else growth


def growth_of(p: Problem, unit: Tensor | None = None) -> Tensor:
    """`state_growth` (N, M, H+1) of a checked problem."""
    unit = torch.ones_like(p.state[0]) if unit is None else unit.to(p.state)
    fused = compiled(p, "forward")
    if fused is not None:
        norms = spectral_norm(fused.growth(p, unit)[:, :, 1:] / unit)
        return torch.cat([norms.new_ones(p.N, p.M, 1), norms], -1)
    passes = dynamics_pass(p.world.dynamics)
    s = p.state.unsqueeze(1).expand(-1, p.M, -1).contiguous()
    C = torch.diag(unit).expand(p.N, p.M, -1, -1).contiguous()  # its columns as rows
    norms = [torch.ones_like(s[..., 0])]
    for j in range(p.H):
        pi = policy_pass(p.policy, s, parameters=False)
        E = C @ pi.Pi_s().mT
        following, columns = passes.push(*(x.flatten(0, 1) for x in (s, pi.action, p.noise[:, :, j], C, E)))
        s, C = (x.unflatten(0, (p.N, p.M)) for x in (following, columns))
        norms.append(spectral_norm(C / unit))
    return torch.stack(norms, -1)


def spectral_norm(x: Tensor) -> Tensor:
    """‖x‖₂ (...) of matrices (..., d, d), infinite where an entry is not finite."""
    finite = torch.isfinite(x).all(-1).all(-1)
    norm = torch.linalg.matrix_norm(torch.where(finite[..., None, None], x, torch.zeros_like(x)), 2)
    return torch.where(finite, norm, torch.full_like(norm, math.inf))
