"""Reward and critic with their gradients: r, r_s, r_a and Q, Q_s, Q_a. (16), (19)"""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from jacrec.engine.jacobians import generic
from jacrec.engine.jacobians.mlp import mlp_pull, mlp_record
from jacrec.engine.jacobians.policy import policy_pass
from jacrec.models.networks import RewardModel, TwinCritic, affine, has_manual_derivatives
from jacrec.models.world import Anchor, World


def term_and_gradient(world: World, last: bool, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A step's term of (3), undiscounted, with its gradients: the reward, or the critic at the last step; less the anchor."""
    if last and world.anchor is not None and world.anchor.terminal:
        return terminal_gradient(world.critic, world.anchor.policy, state, action)
    name = "critic" if last else "reward"
    found = value_and_gradient(name, getattr(world, name), state, action)
    if world.anchor is None or not world.anchor.weight:
        return found
    term, by_state, by_action = (x + y for x, y in zip(found, anchor_gradient(world.anchor, state, action), strict=True))
    return term, by_state, by_action


def terminal_gradient(
    critic: Callable[[Tensor, Tensor], Tensor], policy: nn.Module, state: Tensor, action: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Q(s, π₀(s)) (B,) and its gradients Q_s + Π₀ᵀ Q_a (B, d), and 0 (B, m) by the action, which is not in it."""
    base = policy_pass(policy, state.unsqueeze(0), parameters=False)
    value, by_state, by_action = value_and_gradient("critic", critic, state, base.action.squeeze(0))
    return value, by_state + base.pull_state(by_action.unsqueeze(0)).squeeze(0), torch.zeros_like(action)


def anchor_gradient(anchor: Anchor, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """−β‖a − π₀(s)‖² (B,) and its gradients 2β Π₀ᵀ(a − π₀(s)) (B, d), −2β(a − π₀(s)) (B, m)."""
    base = policy_pass(anchor.policy, state.unsqueeze(0), parameters=False)
    gap = action - base.action.squeeze(0)
    pull = 2 * anchor.weight * gap
    return -anchor.weight * gap.square().sum(-1), base.pull_state(pull.unsqueeze(0)).squeeze(0), -pull


def value_and_gradient(
    name: str, function: Callable[[Tensor, Tensor], Tensor], state: Tensor, action: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """f(s, a) (B,), ∂f/∂s (B, d), ∂f/∂a (B, m) for state (B, d), action (B, m): by hand for jacrec's networks.

    name: "reward" or "critic", for errors.
    """
    if type(function) is RewardModel and has_manual_derivatives(function):
        return reward_gradient(cast(RewardModel, function), state, action)
    if type(function) is TwinCritic and has_manual_derivatives(function):
        return critic_gradient(cast(TwinCritic, function), state, action)
    return generic.value_and_gradient(name, function, state, action)


def reward_gradient(reward: RewardModel, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """r, r_s, r_a of (16); shapes as in `value_and_gradient`."""
    x = torch.cat([(state - reward.state_mean) / reward.state_std, action], -1)
    y, tape = mlp_record(reward.mlp, reward.mlp.layers[0](x))
    x_bar = mlp_pull(reward.mlp, tape, reward.reward_std.expand_as(y)) @ reward.mlp.layers[0].weight
    d = state.shape[-1]
    return reward.reward_mean + reward.reward_std * y.squeeze(-1), x_bar[:, :d] / reward.state_std, x_bar[:, d:]


def critic_gradient(critic: TwinCritic, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """min_i Q_i, Q_s, Q_a of (19); where critics tie, the mean of their gradients, as torch's amin has it."""
    x = torch.cat([state, action], -1)
    first = critic.mlp.layers[0]
    y, tape = mlp_record(critic.mlp, affine(x.expand(critic.critics, *x.shape), first.weight, first.bias))
    y = y.squeeze(-1)  # (critics, B)
    value = y.amin(0)
    share = (y == value).to(y.dtype)
    share = share / share.sum(0)
    x_bar = affine(mlp_pull(critic.mlp, tape, share.unsqueeze(-1)), first.weight.mT).sum(0)
    d = state.shape[-1]
    return value, x_bar[:, :d], x_bar[:, d:]
