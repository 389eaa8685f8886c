"""The imagined rollout (2) and its return (3) in plain, differentiable torch."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from jacrec.engine.admission import admit
from jacrec.engine.dispatch import kept_plan
from jacrec.engine.jacobians.generic import checked_step, checked_value
from jacrec.engine.problem import Problem
from jacrec.engine.shapes import check_depends, check_state, plain_torch, problem
from jacrec.models.dynamics.multistep import MultiStepDynamics
from jacrec.models.world import Anchor, World, apply_policy
from jacrec.models.wrappers import unwrapped


@dataclass(frozen=True)
class Rollout:
    """M imagined trajectories from each of N states."""

    states: Tensor  # (N, M, H+1, d): s̃_0 … s̃_H
    actions: Tensor  # (N, M, H+1, m): ã_0 … ã_H
    returns: Tensor  # (N, M): L of (3), per noise sequence


def rollout(policy: Callable[[Tensor], Tensor], world: World, state: Tensor, noise: Tensor) -> Rollout:
    """Imagine with `policy` (N, M, d) -> (N, M, m) from state (N, d) under noise (N, M, H, *noise_shape). (2), (3)

    Raises:
        ValueError: a function of the world returns another shape, is detached from its inputs, or predicts fewer than H steps.
    """
    N, M, H = noise.shape[:3]
    s = state.unsqueeze(1).expand(N, M, -1)
    if isinstance(world.dynamics, MultiStepDynamics):
        return _all_at_once(policy, world, world.dynamics.imagine(policy, s, noise))
    states, actions = [s], [policy(s)]
    returns = state.new_zeros(N, M)
    for j in range(H):
        s, a = states[-1], actions[-1]
        flat = s.reshape(N * M, -1), a.reshape(N * M, -1)
        returns = returns + world.discount**j * term(world, False, *flat).reshape(N, M)
        s = checked_step(world.dynamics, *flat, noise[:, :, j].reshape(N * M, *noise.shape[3:])).reshape(N, M, -1)
        states.append(s)
        actions.append(policy(s))
    s, a = states[-1], actions[-1]
    terminal = term(world, True, s.reshape(N * M, -1), a.reshape(N * M, -1)).reshape(N, M)
    return Rollout(torch.stack(states, 2), torch.stack(actions, 2), returns + world.discount**H * terminal)


def term(world: World, last: bool, state: Tensor, action: Tensor) -> Tensor:
    """A step's term of (3), undiscounted, (B,): the reward, or the critic at the last step; less the anchor's penalty."""
    anchor, name = world.anchor, "critic" if last else "reward"
    if last and anchor is not None and anchor.terminal:
        return checked_value(name, world.critic, state, _base_action(anchor, state))
    value = checked_value(name, getattr(world, name), state, action)
    if anchor is None or not anchor.weight:
        return value
    return value - anchor.weight * (action - _base_action(anchor, state)).square().sum(-1)


def _base_action(anchor: Anchor, state: Tensor) -> Tensor:
    """π₀ at states (B, d) -> (B, m)."""
    return apply_policy(anchor.policy, None, state.unsqueeze(0)).squeeze(0)


def _all_at_once(policy: Callable[[Tensor], Tensor], world: World, states: Tensor) -> Rollout:
    """The rollout whose states (N, M, H+1, d) are known."""
    N, M, H = states.shape[0], states.shape[1], states.shape[2] - 1
    actions = policy(states.flatten(1, 2)).unflatten(1, (M, H + 1))
    returns = states.new_zeros(N, M)
    for j in range(H + 1):
        value = term(world, j == H, *(x[:, :, j].flatten(0, 1) for x in (states, actions)))
        returns = returns + world.discount**j * value.reshape(N, M)
    return Rollout(states, actions, returns)


@plain_torch
@torch.no_grad()
def imagined_return(policy: torch.nn.Module, world: World, state: Tensor, noise: Tensor) -> Tensor:
    """Ĵ of section 4.2 without its gradient: () for state (d,), (N,) for state (N, d); arguments as in `policy_gradient`."""
    p = problem(policy, world, state, noise)
    value = rollout(lambda s: apply_policy(policy, None, s), world, p.state, p.noise).returns.mean(-1)
    return value.squeeze(0) if p.single else value


def noise_like(world: World, state: Tensor, particles: int, horizon: int, generator: torch.Generator | None = None) -> Tensor:
    """Standard normal noise for `state` (d,) or (N, d): (M, H, *noise_shape) or (N, M, H, *noise_shape)."""
    lead = state.shape[:-1]
    shape = (*lead, particles, horizon, *world.dynamics.noise_shape)
    if generator is not None and (not isinstance(generator, torch.Generator) or generator.device.type != state.device.type):
        got = f"one on {generator.device}" if isinstance(generator, torch.Generator) else type(generator).__name__
        raise ValueError(f"generator: expected a torch.Generator on {state.device} like the state, got {got}")
    return state.new_empty(shape).normal_(generator=generator)  # the bits of `torch.randn`, with less preparation


def sampled_problem(
    policy: torch.nn.Module,
    world: World,
    state: Tensor,
    particles: int,
    horizon: int,
    generator: torch.Generator | None = None,
    *,
    in_place: bool = False,
) -> Problem:
    """`jacrec.engine.shapes.problem` under fresh standard normal noise; the state is checked before any is drawn."""
    policy = unwrapped(policy)
    state, single, plan = check_state(policy, world, state)
    check_depends(world, horizon)
    if plan is None:
        admit(policy, world, state, horizon, in_place=in_place)
        plan = kept_plan(policy, world, state, examined=True)
    return Problem(policy, world, state, noise_like(world, state, particles, horizon, generator), single, plan)
