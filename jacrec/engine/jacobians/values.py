"""Reward and critic with their gradients: r, r_s, r_a and Q, Q_s, Q_a. (16), (19)"""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from jacrec.engine.jacobians import generic
from jacrec.engine.jacobians.mlp import mlp_pull, mlp_record
from jacrec.models.networks import RewardModel, TwinCritic, affine, has_manual_derivatives


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
