"""Algorithm 1 as a function, and what a decision did. `jacrec.control.controller.MPC` takes the same steps under a deadline."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from jacrec.control.config import check_settings
from jacrec.control.update import compute_update
from jacrec.engine.methods import Auto, Method, check_method
from jacrec.engine.parameters import check_trainable
from jacrec.engine.problem import Problem
from jacrec.engine.rollout import sampled_problem
from jacrec.engine.shapes import plain_torch, problem
from jacrec.engine.types import GateRecord, UpdateResult
from jacrec.models.world import World, policy_action
from jacrec.util.errors import plain_number


@dataclass(frozen=True)
class MPCStep:
    """What one decision did, with E updates."""

    action: Tensor
    """π_ψ(s_t) after the updates, (m,) or (N, m); that of `MPC` is clipped to [-1, 1]"""
    objective: Tensor
    """Ĵ(ψ) at the start of each update, (E,) or (E, N)"""
    gradient_norm: Tensor
    """‖∇_ψ Ĵ‖ before clipping, (E,); one per row of a `BatchedPolicy`, (E, N)"""
    accepted: Tensor
    """whether the step was taken, shaped as `gradient_norm`; False where a value or gradient was not finite, or where a gate
    held the step back"""
    trust: GateRecord | None = None
    """what the signal gate did, each shaped as `gradient_norm`; None without a gate"""

    @property
    def rejected(self) -> Tensor:
        """Which updates were refused as not finite, shaped as `accepted`."""
        return ~self.accepted if self.trust is None else ~self.accepted & ~self.trust.gated


@plain_torch
def mpc_update(
    policy: nn.Module,
    world: World,
    state: Tensor,
    *,
    horizon: int = 5,
    particles: int = 16,
    updates: int = 1,
    lr: float = 5e-5,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    method: Method = Auto(),
    max_grad_norm: float | None = None,
) -> MPCStep:
    """Algorithm 1, lines 3–18: `updates` steps of gradient ascent on Ĵ from `state`, in place on ψ, then the action.

    Args:
        policy: state -> action in [-1, 1], changed in place; a `BatchedPolicy` has one ψ per row of `state`. Parameters
            without requires_grad are left unchanged.
        world: f_θ, r_ξ, Q_φ and γ.
        state: the observed s_t, (d,), or (N, d).
        horizon: H imagined steps; 0 ascends the critic at s_t alone.
        particles: M imagined trajectories per state.
        updates: E gradient steps, all under the same noise.
        lr: step size α of (4).
        noise: (M, H, *noise_shape) or (N, M, H, *noise_shape) instead of fresh standard normal noise; decides M and H.
        generator: of the fresh noise; default: torch's global one.
        method: how the gradient is computed (`jacrec.engine.methods`); the result is the same.
        max_grad_norm: scale longer gradients down to this norm, row by row.

    Returns:
        `MPCStep`. Rows whose value or gradient is not finite are left unchanged and reported in `accepted`; they still
        act. With one ψ for N states, a single such row rejects the update.

    Raises:
        ValueError: wrong shape, dtype, device or setting, a state or noise that is not finite, or a world that shares
            parameters with the policy, which the update would change.
    """
    horizon, particles, updates = map(plain_number, (horizon, particles, updates))
    lr, max_grad_norm = plain_number(lr), plain_number(max_grad_norm)
    check_settings(horizon, particles, updates, lr, max_grad_norm)
    check_method(method)
    if noise is None:
        p = sampled_problem(policy, world, state, particles, horizon, generator, in_place=True)
    else:
        p = problem(policy, world, state, noise, in_place=True)
    check_trainable(policy)
    results, evaluate = [], policy_action
    for _ in range(updates):  # line 3
        update = compute_update(p, method, lr, max_grad_norm)  # lines 4–15
        results.append(update.apply())  # line 16
        evaluate = update.action
    return decision(p, evaluate(p.policy, p.state), results)  # line 18


def decision(p: Problem, action: Tensor, results: list[UpdateResult]) -> MPCStep:
    """The `MPCStep` with an action (N, m), after these updates."""
    action = action.squeeze(0) if p.single else action
    gates = [result.gate for result in results if result.gate is not None]
    gate = GateRecord(*map(torch.stack, zip(*gates, strict=True))) if gates else None
    if len(results) == 1:
        done = results[0]
        return MPCStep(action, done.objective.unsqueeze(0), done.gradient_norm.unsqueeze(0), done.accepted.unsqueeze(0), gate)
    if results:
        objectives, norms, accepted, _ = zip(*results, strict=True)
        return MPCStep(action, torch.stack(objectives), torch.stack(norms), torch.stack(accepted), gate)
    row = (p.N,) if not p.single else ()
    norm_row = row if p.batched else ()
    return MPCStep(
        action, p.state.new_empty(0, *row), p.state.new_empty(0, *norm_row), p.state.new_empty(0, *norm_row, dtype=torch.bool)
    )
