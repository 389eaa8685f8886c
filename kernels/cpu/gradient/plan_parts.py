"""What the kernels keep for a policy alone and for a world alone; checked at every use."""

import torch
from torch import Tensor, nn

from jacrec.kernels.cpu.gradient.addresses import Addresses, Served, describe_dynamics, dynamics_network
from jacrec.kernels.cpu.gradient.copies import copy_job
from jacrec.kernels.cpu.gradient.moves import Moved, gradient_pieces, moved
from jacrec.kernels.cpu.gradient.values import Scales
from jacrec.kernels.refusals import policy_network, policy_settings, world_settings
from jacrec.kernels.watch import Watch
from jacrec.models.dynamics import ChainDynamics
from jacrec.models.mlp import ParallelMLP
from jacrec.models.networks import MLP, RewardModel, TwinCritic
from jacrec.models.world import BatchedPolicy, World

Parts = tuple[Served, RewardModel | None, TwinCritic | None]
"""a world's dynamics, reward and critic; None for a reward or critic that is not jacrec's"""


class PolicyPlan:
    """A policy's network in compiled code. Refers to the policy weakly."""

    def __init__(self, policy: nn.Module, state: Tensor):
        self.dtype, self.state_dim = state.dtype, state.shape[-1]
        self.policies = policy.n if isinstance(policy, BatchedPolicy) else None
        self.watch, self.settings = Watch([policy]), policy_settings(policy)
        self.addresses, network = Addresses(self.dtype), policy_network(policy)
        mlp = network.mlp
        self.rows = self.addresses.network(mlp)
        self.action_dim, self.macs = self.rows.network.outputs, weights(mlp)
        self.copies = copy_job(self.addresses.copies, [], self.addresses)
        self.pieces = gradient_pieces(network, self.rows, self.dtype)
        self.parameters: list[Tensor] = list(policy.parameters())
        self.moves: dict[tuple[bool, ...], Moved] = {}

    def unchanged(self, policy: nn.Module, state: Tensor) -> bool:
        """Whether it is the plan of this policy as it is now, for such a state."""
        return (
            self.dtype == state.dtype
            and self.state_dim == state.shape[-1]
            and self.watch.unchanged([policy])
            and policy_settings(policy) == self.settings
        )

    def moved(self) -> Moved:
        """What an update moves: the parameters with requires_grad."""
        which = tuple([x.requires_grad for x in self.parameters])
        found = self.moves.get(which)
        if found is None:
            chosen = [i for i, moves in enumerate(which) if moves]
            found = moved([self.parameters[i] for i in chosen], [self.pieces[i] for i in chosen])
            self.moves[which] = found
        return found


class WorldPlan:
    """A world's networks in compiled code. Refers to dynamics, reward and critic weakly.

    A reward or critic that is not jacrec's has none: torch evaluates it, between two calls.
    """

    def __init__(self, parts: Parts, state: Tensor):
        self.dtype, self.state_dim = state.dtype, state.shape[-1]
        f, reward, critic = parts
        self.watch, self.settings = Watch([part for part in parts if part is not None]), world_settings(f, reward, critic)
        own = self.addresses = Addresses(self.dtype)
        self.reward = own.network(reward.mlp) if reward else None
        self.critics = own.network(critic.mlp) if critic else None
        self.chain, self.dynamics = describe_dynamics(own, f, signs=isinstance(f, ChainDynamics))
        self.shares_layers = not (self.chain.members or self.chain.from_actions)
        """whether the threads of a team may share a row's layers"""
        self.scales = Scales(*(own.tensor(getattr(reward, name)) if reward else 0 for name in Scales._fields))
        self.reward_macs, self.dynamics_macs = weights(reward.mlp) if reward else 0, weights(dynamics_network(f))
        sources = [x.detach() for x in own.sources.values()]
        sources = [x.unsqueeze(0) if x.dim() == 1 else x for x in sources]
        self.seen = [(x, x.clone(memory_format=torch.contiguous_format)) for x in sources]
        """what copies were made from, and its values then"""
        self.watched = [(x.view(1, -1), y.view(1, -1)) if x.is_contiguous() else (x, y) for x, y in self.seen]

    def unchanged(self, parts: Parts, state: Tensor) -> bool:
        """Whether it is the plan of a world with these parts as they are now, for such a state."""
        return (
            self.dtype == state.dtype
            and self.state_dim == state.shape[-1]
            and self.watch.unchanged([part for part in parts if part is not None])
            and world_settings(*parts) == self.settings
        )

    @torch.no_grad()
    def update(self) -> None:
        """Copy the weights again."""
        for source, copy in self.addresses.copies:
            copy.copy_(source)
        if self.addresses.table is not None:
            self.addresses.table.update()
        # last: until the copies are right, every thread has to find out that they are not
        for source, seen in self.seen:
            seen.copy_(source)


def parts(world: World) -> Parts:
    """Dynamics, reward and critic; None for a reward or critic that is not jacrec's."""
    reward, critic = world.reward, world.critic
    own_reward, own_critic = reward if type(reward) is RewardModel else None, critic if type(critic) is TwinCritic else None
    return world.dynamics, own_reward, own_critic  # pyright: ignore[reportReturnType]


def weights(net: MLP) -> int:
    """Multiply–adds of one row through a network."""
    one = net.networks[0] if isinstance(net, ParallelMLP) else net
    return sum(layer.weight.shape[-1] * layer.weight.shape[-2] for layer in one.layers)
