"""∇_ψ Ĵ by Theorem 4.1: (22) summed forward with dense or factored sensitivities, or backward with cotangents.

All three visit the states of the rollout (2). At j = 0 the M particles of a real state still agree, so the factored and the
adjoint form evaluate policy and reward there once per real state (R = 1 row instead of M).
"""

import math
from dataclasses import dataclass, field
from types import ModuleType
from typing import cast

import torch
from torch import Tensor, nn

from jacrec.engine.jacobians import chain
from jacrec.engine.jacobians.dynamics import DynamicsPass, dynamics_pass, jacobians
from jacrec.engine.jacobians.policy import PolicyPass, policy_pass
from jacrec.engine.jacobians.values import term_and_gradient
from jacrec.engine.problem import Problem
from jacrec.engine.sensitivities import action_step, dense_action_step, dense_state_step, state_step
from jacrec.engine.types import DynamicsJacobians, PolicyGradient


@torch.no_grad()
def forward_gradient(p: Problem, *, chain: ModuleType = chain) -> PolicyGradient:
    """(22) with factored sensitivities, forward in time; nothing of the dynamics is stored.

    ∇L = Σ_i w_i Π_ψ(i) with w_i = Σ_{j≥i} γ^j (r_s(j) C_{j,i} + r_a(j) E_{j,i}), the terminal term alike. `chain`: as in
    `dynamics_pass`.
    """
    passes = cast(DynamicsPass, dynamics_pass(p.world.dynamics, chain=chain) if p.H else None)
    visited = Visited(p)
    s = p.state.unsqueeze(1)
    C = s.new_zeros(p.N, 1, 0, s.shape[-1])  # (7)
    w = s.new_zeros(p.N, 1, 0)
    for j in range(p.H + 1):
        pi = policy_pass(p.policy, s, parameters=False)
        visited.states.append(s)
        v_s, v_a = visited.value_gradient(j, pi.action)
        E = action_step(C, pi.Pi_s() if j else None, pi.action.shape[-1])  # (10)
        w = _grow(w, (C @ v_s.unsqueeze(-1)).squeeze(-1), (E @ v_a.unsqueeze(-1)).squeeze(-1))
        if j < p.H:
            s, a, C, E = (x.expand(-1, p.M, *x.shape[2:]) for x in (s, pi.action, C, E))
            s, C = state_step(passes, s, a, p.noise[:, :, j], C, E)  # (13)
    m = w.shape[-1] // (p.H + 1)
    return visited.contract(list(w.unflatten(-1, (p.H + 1, m)).unbind(-2)))


@torch.no_grad()
def adjoint_gradient(p: Problem, *, recompute: bool = False, chain: ModuleType = chain) -> PolicyGradient:
    """(22) re-associated from the end; `recompute` and `chain`: as in `dynamics_pass`."""
    visited, w = adjoint_weights(p, recompute=recompute, chain=chain)
    return visited.contract(w)


@torch.no_grad()
def adjoint_weights(p: Problem, *, recompute: bool = False, chain: ModuleType = chain) -> "tuple[Visited, list[Tensor]]":
    """The visited states and w_j (N, M, m), j = 0…H, (N, 1, m) for H = 0, of every particle, with ∇L = Σ_j w_j Π_ψ(j).

    λ_j = ∂L/∂s̃_j and w_j = ∂L/∂ã_j are pulled back through the stored rollout:
    w_H = γ^H Q_a, λ_H = γ^H Q_s + Π_sᵀ w_H;  w_j = γ^j r_a + F_aᵀ λ_{j+1}, λ_j = γ^j r_s + F_sᵀ λ_{j+1} + Π_sᵀ w_j.
    """
    passes = cast(DynamicsPass, dynamics_pass(p.world.dynamics, recompute=recompute, chain=chain) if p.H else None)
    visited = Visited(p)
    policies: list[PolicyPass] = []
    values, pulls = [], []
    s = p.state.unsqueeze(1)
    for j in range(p.H + 1):
        pi = policy_pass(p.policy, s, parameters=False)
        policies.append(pi)
        visited.states.append(s)
        values.append(visited.value_gradient(j, pi.action))
        if j < p.H:
            a = pi.action.expand(-1, p.M, -1).flatten(0, 1)
            s = s.expand(-1, p.M, -1).flatten(0, 1)
            s, pull = passes.record(s, a, p.noise[:, :, j].flatten(0, 1))
            s = s.unflatten(0, (p.N, p.M))
            pulls.append(pull)
    w: list[Tensor] = []
    v_s = v_a = None
    for j in range(p.H, -1, -1):
        direct_s, direct_a = values[j]
        w_j = direct_a if v_a is None else direct_a + v_a
        w.append(w_j)
        if j:
            lam = direct_s + policies[j].pull_state(w_j)
            if v_s is not None:
                lam = lam + v_s
            v_s, v_a = (v.unflatten(0, (p.N, p.M)) for v in pulls[j - 1](lam.flatten(0, 1)))
    return visited, w[::-1]


@torch.no_grad()
def dense_gradient(p: Problem) -> PolicyGradient:
    """(22) exactly as printed: G_j (N, M, d, P) and D_j (N, M, m, P) in memory. The reference, for small problems."""
    passes = dynamics_pass(p.world.dynamics)
    visited = Visited(p)
    s = p.state.unsqueeze(1).expand(-1, p.M, -1)
    shapes = _row_shapes(p)
    G = s.new_zeros(p.N, p.M, s.shape[-1], sum(math.prod(shape) for shape in shapes.values()))  # (7)
    gradient = torch.zeros_like(G[:, :, 0])  # (N, M, P)
    for j in range(p.H + 1):
        pi = policy_pass(p.policy, s)
        visited.states.append(s)
        v_s, v_a = visited.value_gradient(j, pi.action)
        D = dense_action_step(G, pi.Pi_s(), Pi_psi(pi))  # (10)
        gradient += (v_s.unsqueeze(-2) @ G + v_a.unsqueeze(-2) @ D).squeeze(-2)  # (22)
        if j < p.H:
            flat = s.flatten(0, 1), pi.action.flatten(0, 1), p.noise[:, :, j].flatten(0, 1)
            s, J = jacobians(passes, *flat)
            s, F_s, F_a = (x.unflatten(0, (p.N, p.M)) for x in (s, J.F_s, J.F_a))
            G = dense_state_step(G, D, DynamicsJacobians(F_s, F_a))  # (13)
    mean = gradient.mean(1) if p.batched else gradient.mean((0, 1))
    pieces = mean.split([math.prod(shape) for shape in shapes.values()], -1)
    lead = mean.shape[:-1]
    return visited.result({k: g.reshape((*lead, *shape)) for (k, shape), g in zip(shapes.items(), pieces, strict=True)})


def Pi_psi(pi: PolicyPass) -> Tensor:
    """Π_ψ dense, (N, R, m, P), columns in the order of `named_parameters`. (9)"""
    m = pi.action.shape[-1]
    unit = torch.eye(m, dtype=pi.action.dtype, device=pi.action.device).expand(*pi.action.shape[:-1], m, m)
    return torch.cat([rows.reshape(*rows.shape[:3], -1) for rows in pi.parameter_rows(unit).values()], -1)


@dataclass
class Visited:
    """The states that a rollout visits, with the return and the value gradients along the way."""

    problem: Problem
    states: list[Tensor] = field(default_factory=list)  # s̃_j, (N, R, d), R = 1 or M
    value: Tensor | float = 0.0

    def value_gradient(self, j: int, action: Tensor) -> tuple[Tensor, Tensor]:
        """γ^j (r_s, r_a) at the latest state for j < H, γ^H (Q_s, Q_a) for j = H; adds to the return. (16), (19)"""
        p, s = self.problem, self.states[-1]
        value, v_s, v_a = term_and_gradient(p.world, j == p.H, s.flatten(0, 1), action.flatten(0, 1))
        weight = p.world.discount**j
        self.value = self.value + weight * value.reshape(s.shape[:2]).mean(1)
        return weight * v_s.reshape(s.shape), weight * v_a.reshape(action.shape)

    def contract(self, w: list[Tensor]) -> PolicyGradient:
        """Σ_i w_i Π_ψ(i) for w_i (N, R or M, m): one product with the policy's parameter Jacobian at all visited states."""
        p = self.problem
        weights = [w_i.mean(1, keepdim=True) if s.shape[1] == 1 else w_i / p.M for s, w_i in zip(self.states, w, strict=True)]
        at = torch.cat(self.states, 1)
        # in one expression, so that the pass is freed once it has been contracted
        gradient = policy_pass(p.policy, at).pull_parameters(torch.cat(weights, 1))
        return self.result(gradient if p.batched or p.N == 1 else {k: g / p.N for k, g in gradient.items()})

    def result(self, gradient: dict[str, Tensor]) -> PolicyGradient:
        """Ĵ with its gradient, without the axis N if the caller gave none."""
        assert isinstance(self.value, Tensor)
        value = self.value.squeeze(0) if self.problem.single else self.value
        return PolicyGradient(value, _named(self.problem.policy, gradient))


def _named(policy: nn.Module, gradient: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: gradient[name] for name, _ in policy.named_parameters()}


def _row_shapes(p: Problem) -> dict[str, torch.Size]:
    """The shape of each parameter of one policy."""
    return {k: v.shape[1:] if p.batched else v.shape for k, v in p.policy.named_parameters()}


def _grow(w: Tensor, through_states: Tensor, through_actions: Tensor) -> Tensor:
    """w with m new columns, plus this step's terms: (N, 1 or M, T), (N, R, T), (N, R, T+m) -> (N, R, T+m)."""
    T = w.shape[-1]
    total = through_actions.clone()
    total[..., :T] += w + through_states
    return total
