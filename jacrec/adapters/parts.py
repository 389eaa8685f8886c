"""What an adapter returns, and the plain modules for networks that jacrec's own classes cannot express."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from jacrec.adapters.layers import Layers, Scaling, as_actor, as_critic
from jacrec.envs.actions import ActionBox
from jacrec.util.errors import real

FROM_FILE = "; read a file with jacrec.adapters.from_file(path)"


@dataclass(frozen=True)
class Parts:
    """A policy and a critic that were trained elsewhere, of raw observations and of actions in [-1, 1].

    Both are copies on the CPU in evaluation mode. An `Actor` and a `TwinCritic` run on the fused kernels, other modules on torch's
    derivatives.
    """

    policy: nn.Module
    """π_ψ: state (B, d) -> action (B, m) in [-1, 1]"""
    critic: nn.Module
    """Q_φ: state (B, d), action (B, m) -> (B,), the smallest of the library's critics, in units of the environment's rewards"""
    discount: float
    """γ that the critic was trained with"""
    action_box: ActionBox
    """what an action of -1 and of 1 stands for in the environment's units"""
    state_dim: int
    """d"""
    action_dim: int
    """m"""

    def __post_init__(self):
        if not 0.0 <= real("discount", self.discount) <= 1.0:
            raise ValueError(f"discount: expected 0 <= γ <= 1, got {self.discount!r}")


class Scaled(nn.Module):
    """clip((x − mean) / std, ±clip) of observations (B, d)."""

    def __init__(self, scaling: Scaling):
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", scaling.mean.float())
        self.register_buffer("std", scaling.std.float())
        self.clip = scaling.clip

    def forward(self, state: Tensor) -> Tensor:
        """(B, d) -> (B, d)."""
        return ((state - self.mean) / self.std).clamp(-self.clip, self.clip)


class PlainPolicy(nn.Module):
    """A library's own modules as a policy: scaled observation -> body, which ends in tanh."""

    def __init__(self, scaling: Scaling, body: nn.Module):
        super().__init__()
        self.state_dim = len(scaling.mean)
        self.scaled, self.body = Scaled(scaling), copy.deepcopy(body).to("cpu").eval().requires_grad_()

    def forward(self, state: Tensor) -> Tensor:
        """(B, d) -> (B, m) in [-1, 1]."""
        return self.body(self.scaled(state))


class PlainCritic(nn.Module):
    """A library's own modules as a critic: the smallest of the heads' mean outputs, over the reward's scale."""

    def __init__(self, scaling: Scaling, features: nn.Module, heads: Sequence[nn.Module], reward_scale: float):
        super().__init__()
        self.scaled, self.features = Scaled(scaling), copy.deepcopy(features).to("cpu").eval()
        self.heads = nn.ModuleList(copy.deepcopy(head).to("cpu").eval() for head in heads)
        self.reward_scale = reward_scale

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        """(..., d), (..., m) -> (...)."""
        x, a = state.reshape(-1, state.shape[-1]), action.reshape(-1, action.shape[-1])
        inputs = torch.cat([self.features(self.scaled(x)), a], 1)
        values = torch.stack([head(inputs).mean(-1) for head in self.heads])
        return (values.amin(0) / self.reward_scale).reshape(state.shape[:-1])


@dataclass(frozen=True)
class Found:
    """A library's policy and critics, before the conversion."""

    scaling: Scaling
    action_box: ActionBox
    discount: float
    policy: Layers | None
    """the policy's layers, None if it has others than jacrec's networks"""
    heads: Sequence[Layers | None]
    """those of the critics, of scaled observations and actions in [-1, 1]"""
    body: nn.Module
    """the policy as plain modules: scaled observation -> action in [-1, 1]"""
    features: nn.Module
    """what precedes the critics as plain modules"""
    critics: Sequence[nn.Module]
    """the critics as plain modules, of features and actions"""
    action_dim: int
    reward_scale: float = 1.0
    """factor on the rewards that the critics learned from"""

    def parts(self) -> Parts:
        """The conversion: jacrec's own classes where they can express the layers, else plain modules."""
        policy = as_actor(self.policy, self.scaling) or PlainPolicy(self.scaling, self.body)
        critic = as_critic(self.heads, self.scaling, self.action_dim, reward_scale=self.reward_scale)
        critic = critic or PlainCritic(self.scaling, self.features, self.critics, self.reward_scale)
        return Parts(policy, critic, self.discount, self.action_box, len(self.scaling.mean), self.action_dim)
