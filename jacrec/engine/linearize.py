"""The linearised rollout: every Jacobian of Theorem 4.1 along M imagined trajectories, and quantities derived from them.

One pass gives what automatic differentiation computes column by column: feedback gains, per-particle gradients and their
variance, the growth of errors over the horizon.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from jacrec.engine.dispatch import compiled
from jacrec.engine.feedback import FeedbackGains, mean_planes
from jacrec.engine.jacobians.dynamics import dynamics_pass, jacobians
from jacrec.engine.jacobians.factored import factored_rows, squared_norm
from jacrec.engine.jacobians.policy import PolicyPass, policy_as_it_is, policy_pass
from jacrec.engine.jacobians.values import term_and_gradient
from jacrec.engine.problem import Problem
from jacrec.engine.shapes import plain_torch, problem
from jacrec.engine.types import RolloutJacobians
from jacrec.models.world import World
from jacrec.models.wrappers import wrapper_prefix


@dataclass(frozen=True)
class Linearization:
    """Leading axes (N, M), or (M,) if the state came without N. γ is not applied: these are the bare derivatives."""

    states: Tensor  # (N, M, H+1, d): s̃_0 … s̃_H
    actions: Tensor  # (N, M, H+1, m): ã_0 … ã_H
    returns: Tensor  # (N, M): L of (3)
    F_s: Tensor  # (N, M, H, d, d)
    F_a: Tensor  # (N, M, H, d, m)
    Pi_s: Tensor  # (N, M, H+1, m, d): the policy's feedback gains ∂ã_j/∂s̃_j
    r_s: Tensor  # (N, M, H, d)
    r_a: Tensor  # (N, M, H, m)
    Q_s: Tensor  # (N, M, d)
    Q_a: Tensor  # (N, M, m)
    w: Tensor  # (N, M, H+1, m): ∂L/∂ã_j with later actions free to react; ∇L = Σ_j w_j Π_ψ(j)
    _policy_pass: Callable[[Tensor], PolicyPass] = field(repr=False)  # at states (N, R, d), ψ as it was
    _single: bool = False
    _prefix: str = ""  # of the parameters' names

    @property
    def closed_loop(self) -> Tensor:
        """ds̃_{j+1}/ds̃_j under the policy, F_s + F_a Π_s: (N, M, H, d, d)."""
        return self.F_s + self.F_a @ self.Pi_s[..., :-1, :, :]

    def jacobian_growth(self) -> Tensor:
        """‖ds̃_j/ds̃_0‖₂ for j = 0…H: (N, M, H+1). Above 1 and increasing, model errors grow along the horizon."""
        steps = self.closed_loop
        d = steps.shape[-1]
        total = torch.eye(d, dtype=steps.dtype, device=steps.device).expand(*steps.shape[:-3], d, d)
        norms = [torch.linalg.matrix_norm(total, 2)]
        for j in range(steps.shape[-3]):
            total = steps[..., j, :, :] @ total
            norms.append(torch.linalg.matrix_norm(total, 2))
        return torch.stack(norms, -1)

    @torch.no_grad()
    def particle_gradients(self) -> dict[str, Tensor]:
        """∇_ψ L of every particle, by parameter name: (N, M, *shape). Needs memory for M·P numbers per state."""
        states, w = self._batched(self.states), self._batched(self.w)
        total: dict[str, Tensor] = {}
        for j in range(w.shape[2]):
            for name, rows in self._policy_pass(states[:, :, j]).parameter_rows(w[:, :, j]).items():
                total[name] = total[name].add_(rows) if j else rows.clone()
        return {f"{self._prefix}{k}": v.squeeze(0) if self._single else v for k, v in total.items()}

    @torch.no_grad()
    def signal_to_noise(self) -> Tensor:
        """Unbiased signal-to-noise ratio of the particles' mean gradient: ‖μ‖² over its squared error, (N,) or ().

        As `GradientSignal.snr`, for each real state separately and over all parameters. Needs M >= 2 particles. Infinite or
        very large where they agree (H = 0, deterministic dynamics), and 0 for a gradient of zero.
        """
        M = self.returns.shape[-1]
        if M < 2:
            raise ValueError(f"signal_to_noise: expected M >= 2 particles, got {M}")
        states, w = (self._batched(x).flatten(1, 2) for x in (self.states, self.w))
        rows = factored_rows(self._policy_pass(states), w.unsqueeze(2), None)
        each = rows.grouped(M).squared_norm().view(-1, M)
        squares = squared_norm(rows.total()) / M**2
        noise = ((each.mean(1) - squares) / (M - 1)).clamp(min=0)
        ratio = torch.where(squares == 0, squares, (squares - noise) / noise)
        return ratio.squeeze(0) if self._single else ratio

    def _batched(self, x: Tensor) -> Tensor:
        """x with the axis N."""
        return x.unsqueeze(0) if self._single else x

    def feedback(self) -> FeedbackGains:
        """Feedback gains of the policy along the imagined trajectories (`jacrec.engine.feedback`)."""
        return mean_planes(self.states, self.actions, self.Pi_s)


@plain_torch
@torch.no_grad()
def linearize(policy: nn.Module, world: World, state: Tensor, noise: Tensor) -> Linearization:
    """Linearise the imagined rollout; arguments and errors as in `policy_gradient`. (9), (12), (16), (19)"""
    p = problem(policy, world, state, noise)
    fused = compiled(p, "forward")
    found = rollout_jacobians(p) if fused is None else fused.rollout_jacobians(p)
    states, actions, returns, F_s, F_a, Pi_s, v_s, v_a, w = (x.squeeze(0) if p.single else x for x in found)
    r_s, r_a, Q_s, Q_a = v_s[..., :-1, :], v_a[..., :-1, :], v_s[..., -1, :], v_a[..., -1, :]
    # the result must not change with the policy's next update
    own, prefix = policy_as_it_is(p.policy), wrapper_prefix(policy)
    return Linearization(states, actions, returns, F_s, F_a, Pi_s, r_s, r_a, Q_s, Q_a, w, own, p.single, prefix)


def rollout_jacobians(p: Problem) -> RolloutJacobians:
    """All Jacobians of a problem's rollouts, in plain torch."""
    policy, world = p.policy, p.world
    passes = dynamics_pass(world.dynamics)
    s = p.state.unsqueeze(1).expand(-1, p.M, -1).contiguous()
    states, actions, Pi_s, F_s, F_a, v_s, v_a = [], [], [], [], [], [], []
    returns = s.new_zeros(p.N, p.M)
    for j in range(p.H + 1):
        pi = policy_pass(policy, s, parameters=False)
        states.append(s)
        actions.append(pi.action)
        Pi_s.append(pi.Pi_s())
        flat = s.flatten(0, 1), pi.action.flatten(0, 1)
        value, g_s, g_a = term_and_gradient(world, j == p.H, *flat)
        returns += world.discount**j * value.reshape(p.N, p.M)
        v_s.append(g_s.reshape(s.shape))
        v_a.append(g_a.reshape(pi.action.shape))
        if j < p.H:
            s, J = jacobians(passes, *flat, p.noise[:, :, j].flatten(0, 1))
            s = s.unflatten(0, (p.N, p.M))
            F_s.append(J.F_s.unflatten(0, (p.N, p.M)))
            F_a.append(J.F_a.unflatten(0, (p.N, p.M)))
    w = _action_weights(world.discount, v_s, v_a, Pi_s, F_s, F_a)
    d, m = states[0].shape[-1], actions[0].shape[-1]

    def stack(parts: list[Tensor], *tail: int) -> Tensor:
        return torch.stack(parts, 2) if parts else s.new_zeros(p.N, p.M, 0, *tail)

    jacobians_s, jacobians_a = stack(F_s, d, d), stack(F_a, d, m)
    return RolloutJacobians(
        stack(states), stack(actions), returns, jacobians_s, jacobians_a, stack(Pi_s), stack(v_s), stack(v_a), stack(w)
    )


def _action_weights(
    discount: float, v_s: list[Tensor], v_a: list[Tensor], Pi_s: list[Tensor], F_s: list[Tensor], F_a: list[Tensor]
) -> list[Tensor]:
    """w_j = ∂L/∂ã_j of every particle, by the adjoint recursion on the stored Jacobians: H+1 tensors (N, M, m)."""
    H = len(F_s)
    w: list[Tensor] = []
    pulled_s = pulled_a = torch.zeros(())
    for j in range(H, -1, -1):
        w_j = discount**j * v_a[j] + pulled_a
        w.append(w_j)
        if j:
            lam = discount**j * v_s[j] + pulled_s + _pull(Pi_s[j], w_j)
            pulled_s, pulled_a = _pull(F_s[j - 1], lam), _pull(F_a[j - 1], lam)
    return w[::-1]


def _pull(J: Tensor, v: Tensor) -> Tensor:
    """Jᵀ v: (..., a, b), (..., a) -> (..., b)."""
    return (J.mT @ v.unsqueeze(-1)).squeeze(-1)
