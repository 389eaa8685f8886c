"""Plans: what the kernels keep for a policy and a world, checked at every use.

Most of a job is the same from decision to decision: where the parameters lie, sizes, offsets. Policies and worlds have plans
of their own, so that any number of controllers on one world share its part. At each use every module, parameter, buffer and
address is compared, so a replaced layer or a moved tensor makes a new plan; before each gradient the copies of policy weights
are updated and those of the world's weights are compared with their sources, so changes in place are seen, however made.
"""

from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from jacrec.engine.problem import Problem
from jacrec.kernels.cpu.base.host import entry
from jacrec.kernels.cpu.base.layout import DTYPES
from jacrec.kernels.cpu.gradient.addresses import Addresses, Served, describe_dynamics, dynamics_network
from jacrec.kernels.cpu.gradient.copies import CHANGED, copy_job, update_copies
from jacrec.kernels.cpu.gradient.moves import Moved, gradient_pieces, moved
from jacrec.kernels.cpu.gradient.sized import SizedJob, sized_job
from jacrec.kernels.cpu.gradient.unsupported import policy_reason, unsupported_reason
from jacrec.kernels.cpu.gradient.values import Scales
from jacrec.kernels.cpu.gradient.watch import Watch
from jacrec.kernels.refusals import policy_network, policy_settings, world_settings
from jacrec.kernels.store import LruStore
from jacrec.models.networks import MLP, RewardModel, TwinCritic
from jacrec.models.world import BatchedPolicy, World

PLANS_KEPT, WORLDS_KEPT, SIZES_KEPT = 1024, 16, 64
"""plans of policies, alone and in a world, that are kept while their policies live; plans of worlds; and jobs of a plan, by
N, M, H, γ and threads. A policy's plan is smaller than the policy, so that memory is bounded by what the caller holds"""


class PolicyPlan:
    """A policy's network in compiled code. Refers to the policy weakly."""

    def __init__(self, policy: nn.Module, state: Tensor):
        self.dtype, self.state_dim = state.dtype, state.shape[-1]
        self.policies = policy.n if isinstance(policy, BatchedPolicy) else None
        self.watch, self.settings = Watch([policy]), policy_settings(policy)
        self.addresses, mlp = Addresses(self.dtype), policy_network(policy)
        self.rows = self.addresses.network(mlp, mlp.layers[0].weight)
        self.action_dim, self.macs = self.rows.network.outputs, weights(mlp)
        self.copies = copy_job(self.addresses.copies, [], self.addresses)
        self.pieces = gradient_pieces(mlp, self.rows, self.dtype)
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
    """A world's networks in compiled code. Refers to dynamics, reward and critic weakly."""

    def __init__(self, world: World, state: Tensor):
        self.dtype, self.state_dim = state.dtype, state.shape[-1]
        f, reward, critic = parts(world)
        self.watch, self.settings = Watch([f, reward, critic]), world_settings(f, reward, critic)
        own = self.addresses = Addresses(self.dtype)
        self.reward = own.network(reward.mlp, reward.mlp.layers[0].weight)
        self.critics = own.network(critic.mlp, critic.mlp.layers[0].weight)
        self.chain, self.dynamics = describe_dynamics(own, f)
        self.shares_layers = not (self.chain.members or self.chain.from_actions)
        """whether the threads of a team may share a row's layers"""
        self.scales = Scales(*(own.tensor(getattr(reward, name)) for name in Scales._fields))
        self.reward_macs, self.dynamics_macs = weights(reward.mlp), weights(dynamics_network(f))
        sources = [x.detach() for x in own.sources.values()]
        sources = [x.unsqueeze(0) if x.dim() == 1 else x for x in sources]
        self.seen = [(x, x.clone(memory_format=torch.contiguous_format)) for x in sources]
        """what copies were made from, and its values then"""
        self.watched = [(x.view(1, -1), y.view(1, -1)) if x.is_contiguous() else (x, y) for x, y in self.seen]

    def unchanged(self, world: World, state: Tensor) -> bool:
        """Whether it is the plan of this world as it is now, for such a state."""
        own = parts(world)
        return (
            self.dtype == state.dtype
            and self.state_dim == state.shape[-1]
            and self.watch.unchanged(list(own))
            and world_settings(*own) == self.settings
        )

    def update(self) -> None:
        """Copy the weights again."""
        for source, copy in self.addresses.copies:
            copy.copy_(source)
        if self.addresses.table is not None:
            self.addresses.table.update()
        # last: until the copies are right, every thread has to find out that they are not
        for source, seen in self.seen:
            seen.copy_(source)


class Plan:
    """A policy in a world; `job` adds sizes."""

    def __init__(self, policy: PolicyPlan, world: WorldPlan):
        self.policy, self.world, self.dtype = policy, world, policy.dtype
        self.copies = copy_job(policy.addresses.copies, world.watched, policy.addresses)
        self.update_copies = entry(update_copies, DTYPES[self.dtype]).ctypes
        self.sized: dict[tuple, SizedJob] = {}

    def refresh(self) -> None:
        """Bring all copies up to date.

        The policy's are copied every time in compiled code; the world's only if a comparison in compiled code finds that
        their sources have changed: memory that is not written stays in the caches of all cores.
        """
        job = self.copies.copy()  # threads that share the plan each need their own answer
        self.update_copies(job.ctypes.data)
        if job[CHANGED]:
            self.world.update()

    def job(self, p: Problem, team: int = 1) -> tuple[np.ndarray, SizedJob]:
        """A new job without the addresses of a call; and what it was copied from, to be held until it is done."""
        key = (p.N, p.M, p.H, p.world.discount, torch.get_num_threads(), team)
        sized = self.sized.get(key)
        if sized is None:
            if len(self.sized) >= SIZES_KEPT:
                self.sized.clear()
            sized = self.sized[key] = sized_job(self, p, team)
        return sized.row.copy(), sized


_plans: LruStore[Plan] = LruStore(PLANS_KEPT)
_policies: LruStore[PolicyPlan] = LruStore(PLANS_KEPT)
_worlds: LruStore[WorldPlan] = LruStore(WORLDS_KEPT)


def kept_plan(policy: nn.Module, world: World, state: Tensor) -> Plan | None:
    """The plan kept for a policy and a world, if nothing has changed since it was made."""
    found = _plans.get((id(policy), *_ids(world)))
    fits = found is not None and found.policy.unchanged(policy, state) and found.world.unchanged(world, state)
    return found if fits else None


def plan_or_reason(policy: nn.Module, world: World, state: Tensor) -> Plan | str:
    """The plan for a policy and a world, kept or new; or why there is none."""
    found = kept_plan(policy, world, state)
    if found is not None:
        return found
    reason = unsupported_reason(policy, world, state)
    if reason is not None:
        return reason
    made = Plan(_policy_plan(policy, state), _world_plan(world, state))
    _plans.put((id(policy), *_ids(world)), made, (policy, *parts(world)))
    return made


def policy_plan(policy: nn.Module, state: Tensor) -> PolicyPlan | None:
    """The plan for a policy alone, kept or new; None if the kernels cannot serve it at states (N, d)."""
    found = _policies.get(id(policy))
    if found is not None and found.unchanged(policy, state):
        return found if found.policies in (None, len(state)) else None
    return _policy_plan(policy, state) if policy_reason(policy, state) is None else None


def forget() -> None:
    """Drop all plans."""
    for store in (_plans, _policies, _worlds):
        store.clear()


def _policy_plan(policy: nn.Module, state: Tensor) -> PolicyPlan:
    found = _policies.get(id(policy))
    if found is None or not found.unchanged(policy, state):
        found = PolicyPlan(policy, state)
        _policies.put(id(policy), found, (policy,))
    return found


def _world_plan(world: World, state: Tensor) -> WorldPlan:
    found = _worlds.get(_ids(world))
    if found is None or not found.unchanged(world, state):
        found = WorldPlan(world, state)
        _worlds.put(_ids(world), found, parts(world))
    return found


def _ids(world: World) -> tuple[int, int, int]:
    return id(world.dynamics), id(world.reward), id(world.critic)


def parts(world: World) -> tuple[Served, RewardModel, TwinCritic]:
    """Dynamics, reward and critic, which are jacrec's own."""
    return cast(Served, world.dynamics), cast(RewardModel, world.reward), cast(TwinCritic, world.critic)


def weights(net: MLP) -> int:
    """Multiply–adds of one row through a network."""
    return sum(layer.weight.shape[-1] * layer.weight.shape[-2] for layer in net.layers)
