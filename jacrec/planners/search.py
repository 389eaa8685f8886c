"""One decision of each planner. Randomness is an argument: the same draws give the same plan, row by row."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from jacrec.engine.parameters import over_rows
from jacrec.engine.rollout import noise_like
from jacrec.models.world import World
from jacrec.planners.config import PlannerConfig
from jacrec.planners.gradient import action_gradient
from jacrec.planners.imagine import Imagined, imagine


@dataclass(frozen=True)
class Draws:
    """All the randomness of a decision, standard normal."""

    noise: Tensor
    """of the imagination, (N, M, H, *noise_shape)"""
    candidates: Tensor
    """of the candidates' actions, (N, rounds, samples, L, m): L = H, or the perturbed first actions; L = 0 for
    action-gradient"""

    @staticmethod
    def of(config: PlannerConfig, world: World, state: Tensor, action_dim: int, generator: torch.Generator) -> "Draws":
        """Fresh ones for state (N, d)."""
        length = 0 if config.planner == "action-gradient" else config.planned_steps
        noise = noise_like(world, state, config.particles, config.horizon, generator)
        shape = state.shape[0], config.rounds, config.samples, length, action_dim
        return Draws(noise, torch.randn(shape, generator=generator, dtype=state.dtype, device=state.device))


@dataclass(frozen=True)
class Decision:
    """The inputs of a decision for N rows."""

    policy: nn.Module
    world: World
    config: PlannerConfig
    state: Tensor
    """(N, d)"""
    draws: Draws
    carried: Tensor
    """the last plan, shifted, (N, H, m)"""
    warm: Tensor
    """rows that have one, (N,)"""

    def imagine(self, plans: Tensor) -> Imagined:
        """Plans (N, S, L, m) on the decision's own noise."""
        return imagine(self.policy, self.world, self.state, plans, self.draws.noise)

    def policy_rollout(self) -> Imagined:
        """The policy's own, S = 1."""
        return self.imagine(self.draws.candidates.new_zeros(len(self.state), 1, 0, self.draws.candidates.shape[-1]))


@dataclass(frozen=True)
class Planned:
    """The outcome of a decision, after E iterations."""

    actions: Tensor
    """a_0 … a_H, (N, H+1, m); the last one is the policy's own at s̃_H"""
    objective: Tensor
    """of the best candidate of each iteration, or of the plan before each gradient step, (E, N)"""
    accepted: Tensor
    """False where nothing was finite and the row was left unchanged, (E, N)"""


def sampled(p: Decision, update: Callable[[Imagined, PlannerConfig], tuple[Tensor, Tensor | None]]) -> Planned:
    """Sample plans around a mean that `update` moves; the policy's own rollout is always a candidate.

    The mean starts from the carried plan, or from the actions of the policy's rollout.
    """
    c = p.config
    own = p.policy_rollout()
    actions = own.actions[:, 0]
    mean = torch.where(over_rows(p.warm, p.carried), p.carried, actions[:, : c.horizon])
    std: Tensor | float = c.noise_std
    objective, accepted = [], []
    for i in range(c.iterations):
        # the policy's rollout is one of the first iteration's samples
        noise = p.draws.candidates[:, i, 1 if i == 0 else 0 :]
        tried = p.imagine((mean.unsqueeze(1) + std * noise).clamp(-1, 1))
        found = Imagined(torch.cat([own.returns, tried.returns], 1), torch.cat([own.actions, tried.actions], 1))
        moved, spread = update(found, c)
        best = found.returns.amax(1)
        fine = torch.isfinite(best) & torch.isfinite(moved).flatten(1).all(1)
        actions = torch.where(over_rows(fine, actions), moved, actions)
        mean = torch.where(over_rows(fine, mean), moved[:, : c.horizon], mean)
        std = c.noise_std if spread is None else spread[:, None, : c.horizon]
        objective.append(best)
        accepted.append(fine)
    return Planned(actions, torch.stack(objective), torch.stack(accepted))


def softly(found: Imagined, config: PlannerConfig) -> tuple[Tensor, None]:
    """mppi: mean of all candidates, weighted by exp(J / (temperature · std of J))."""
    J, finite = found.returns, torch.isfinite(found.returns)
    mean = torch.where(finite, J, 0.0).sum(1, keepdim=True) / finite.sum(1, keepdim=True)
    variance = torch.where(finite, J - mean, 0.0).square().sum(1, keepdim=True) / finite.sum(1, keepdim=True)
    scale = (config.temperature * variance.sqrt()).clamp(min=torch.finfo(J.dtype).tiny)
    weights = torch.softmax(((J - J.amax(1, keepdim=True)) / scale).nan_to_num(nan=-torch.inf), 1)
    return weighted_mean(weights, found.actions), None


def by_elites(found: Imagined, config: PlannerConfig) -> tuple[Tensor, Tensor]:
    """cem: mean and standard deviation of the best `elites` candidates."""
    best, index = found.returns.topk(config.elites, 1)
    elites = found.actions.gather(1, index[:, :, None, None].expand(-1, -1, *found.actions.shape[2:]))
    weights = torch.isfinite(best).to(best.dtype)
    weights = weights / weights.sum(1, keepdim=True)
    mean = weighted_mean(weights, elites)
    variance = weighted_mean(weights, (elites - mean.unsqueeze(1)).square())
    return mean, variance.sqrt().clamp(min=config.least_std)


def weighted_mean(weights: Tensor, actions: Tensor) -> Tensor:
    """Σ_i w_i x_i over candidates: (N, S), (N, S, H+1, m) -> (N, H+1, m); entries of weight 0 may be non-finite."""
    w = weights[:, :, None, None]
    return torch.where(w == 0, 0.0, w * actions).sum(1)


def best_of(p: Decision) -> Planned:
    """The best of the policy's rollout and of rollouts whose first actions are perturbed; at H = 0 by Q(s_t, a) alone."""
    own = p.policy_rollout()
    noise = p.draws.candidates[:, 0, 1:]
    tried = p.imagine((own.actions[:, :, : noise.shape[2]] + p.config.noise_std * noise).clamp(-1, 1))
    returns, actions = torch.cat([own.returns, tried.returns], 1), torch.cat([own.actions, tried.actions], 1)
    best, index = returns.max(1)
    chosen = actions[torch.arange(len(index), device=index.device), index]
    return Planned(chosen, best.unsqueeze(0), torch.isfinite(best).unsqueeze(0))


def climbed(p: Decision) -> Planned:
    """Gradient ascent on the open-loop plan, from the carried one or the actions of the policy's rollout."""
    c = p.config
    plan = p.carried.clone()
    cold = ~p.warm
    if bool(cold.any()):
        nothing = plan.new_zeros(int(cold.sum()), 1, 0, plan.shape[-1])
        plan[cold] = imagine(p.policy, p.world, p.state[cold], nothing, p.draws.noise[cold]).actions[:, 0, : c.horizon]
    objective, accepted = [], []
    last = plan.new_zeros(len(plan), plan.shape[-1])
    for _ in range(c.iterations):
        J, gradient, at_end = action_gradient(p.policy, p.world, p.state, plan, p.draws.noise)
        norm = gradient.flatten(1).norm(dim=1)
        fine = torch.isfinite(J) & torch.isfinite(norm) & torch.isfinite(at_end).all(1)
        length = torch.full_like(norm, c.lr)
        if c.normalise:
            length = torch.where(norm > 0, c.lr / norm, 0.0)
        moved = (plan + over_rows(length, plan) * gradient).clamp(-1, 1)
        plan = torch.where(over_rows(fine, plan), moved, plan)
        last = torch.where(over_rows(fine, last), at_end, last)
        objective.append(J)
        accepted.append(fine)
    return Planned(torch.cat([plan, last.unsqueeze(1)], 1), torch.stack(objective), torch.stack(accepted))


def search(p: Decision) -> Planned:
    """The decision of the planner that the config names."""
    if p.config.planner == "mppi":
        return sampled(p, softly)
    if p.config.planner == "cem":
        return sampled(p, by_elites)
    if p.config.planner == "action-gradient":
        return climbed(p)
    return best_of(p)
