"""Algorithm 1: improve the policy's own parameters in imagination, then act."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from jacrec.control.update import Act, Proposal, Rule, Taken, propose
from jacrec.engine.dispatch import kept_plan
from jacrec.engine.methods import Auto, Method, check_method
from jacrec.engine.parameters import trainable
from jacrec.engine.problem import Problem
from jacrec.engine.rollout import noise_like
from jacrec.engine.shapes import check_noise, check_state, plain_torch
from jacrec.models.world import World, policy_action
from jacrec.util.errors import expect_count, expect_positive


@dataclass(frozen=True)
class MPCStep:
    """What one decision did; E updates were made."""

    action: Tensor
    """π_ψ(s_t) after the updates, (m,) or (N, m)"""
    objective: Tensor
    """Ĵ(ψ) at the start of each update, (E,) or (E, N)"""
    gradient_norm: Tensor
    """‖∇_ψ Ĵ‖ before clipping, (E,); one per row of a `BatchedPolicy`, (E, N)"""
    accepted: Tensor
    """whether the step was taken, shaped as `gradient_norm`; False where a value or gradient was not finite, or where
    `trust` holds it back"""
    trust: "Trust | None" = None
    """what the controller's options of trust did; None where none is set"""

    @property
    def made(self) -> Tensor:
        """Which of the updates were worked out at all, shaped as `accepted`."""
        return torch.ones_like(self.accepted) if self.trust is None else self.trust.particles > 0

    @property
    def rejected(self) -> Tensor:
        """Which of them were refused as not finite, shaped as `accepted`."""
        refused = self.made & ~self.accepted
        return refused if self.trust is None else refused & ~self.trust.held


@dataclass(frozen=True)
class Trust:
    """What the options of trust did in one decision, for each row of the controller: () for one environment, (N,) for N.

    An update that a row did not make has no particles, NaN for its numbers, and is not accepted.
    """

    thought: Tensor
    """whether this call thought at all (`think_every`)"""
    horizon: Tensor
    """imagined steps, at most H (`max_growth`)"""
    particles: Tensor
    """of each update, (E,) or (E, N) (`min_signal`)"""
    snr: Tensor
    """the gradient's signal-to-noise ratio, shaped as `particles`; NaN without `min_signal`"""
    held: Tensor
    """steps that were not taken since their signal was below `min_signal`, shaped as `particles`"""


@plain_torch()
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
            without requires_grad stay as they are.
        world: f_θ, r_ξ, Q_φ and γ.
        state: the observed s_t, (d,), or (N, d).
        horizon: H imagined steps; 0 ascends the critic at s_t alone.
        particles: M imagined trajectories per state.
        updates: E gradient steps; the noise stays the same over them.
        lr: step size α of (4).
        noise: (M, H, *noise_shape) or (N, M, H, *noise_shape) instead of fresh standard normal noise; decides M and H.
        generator: where fresh noise comes from; torch's global one by default.
        method: how the gradient is computed (`jacrec.engine.methods`); the result is the same.
        max_grad_norm: scale longer gradients down to this norm, row by row.

    Returns:
        `MPCStep`. A row whose value or gradient is not finite keeps its ψ exactly, is marked in `accepted`, and acts all
        the same. With one ψ for N states the rows stand and fall together.

    Raises:
        ValueError: wrong shape, dtype, device or setting, or a state or noise that is not finite.
    """
    check_settings(horizon, particles, updates, lr, max_grad_norm)
    check_method(method)
    plan = kept_plan(policy, world, state)
    state, single = check_state(policy, world, state, plan)
    trainable(policy)
    if noise is None:
        noise = noise_like(world, state, particles, horizon, generator)
    else:
        noise = check_noise(world, state, noise, single)
    p, rule = Problem(policy, world, state, noise, single, plan), Rule(lr, max_grad_norm)
    trace = Trace(p)
    for _ in range(updates):  # line 3
        trace.take(propose(p, method, rule))  # lines 4–15, line 16
    return trace.step()  # line 18


class Trace:
    """What the updates of one decision did so far."""

    def __init__(self, p: Problem):
        self.problem = p
        self.objective: list[Tensor] = []
        self.taken: list[Taken] = []
        self.act: Act = policy_action

    def take(self, proposal: Proposal) -> Taken:
        """The next update; what came of it."""
        self.objective.append(proposal.value)
        self.taken.append(proposal.take())
        self.act = proposal.act
        return self.taken[-1]

    def step(self) -> MPCStep:
        """The `MPCStep`, with the action that the policy now takes."""
        p = self.problem
        row = (p.N,) if not p.single else ()
        norm_row = (p.N,) if p.batched and not p.single else ()

        def stacked(rows: list[Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
            if len(rows) == 1:
                return rows[0].unsqueeze(0)
            return torch.stack(rows) if rows else torch.empty(0, *shape, dtype=dtype, device=p.state.device)

        action = self.act(p.policy, p.state)
        return MPCStep(
            action.squeeze(0) if p.single else action,
            stacked(self.objective, row, p.state.dtype),
            stacked([taken.gradient_norm for taken in self.taken], norm_row, p.state.dtype),
            stacked([taken.accepted for taken in self.taken], norm_row, torch.bool),
        )


def check_settings(horizon: int, particles: int, updates: int, lr: float, max_grad_norm: float | None) -> None:
    """ValueError for a setting of Algorithm 1 out of its range."""
    expect_count("horizon", horizon, 0)
    expect_count("particles", particles, 1)
    expect_count("updates", updates, 0)
    if not isinstance(lr, int | float) or not 0 <= lr < math.inf:
        raise ValueError(f"lr: expected a finite step size >= 0 (gradient ascent), got {lr!r}")
    if max_grad_norm is not None:
        expect_positive("max_grad_norm", max_grad_norm)
