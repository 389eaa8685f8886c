"""Plans: what the kernels keep for a policy and a world, checked at every use.

Most of a job is the same from decision to decision: where the parameters lie, sizes, offsets. Policies and worlds have plans
of their own, so that any number of controllers on one world share its part. At each use every module, parameter, buffer and
address is compared, so a replaced layer or a moved tensor makes a new plan; before each gradient the copies of policy weights
are updated and those of the world's weights are compared with their sources, so changes in place are seen, however made.
"""

import torch
from torch import Tensor, nn

from jacrec.engine.problem import Problem
from jacrec.kernels.cpu.base.host import entry
from jacrec.kernels.cpu.base.layout import DTYPES
from jacrec.kernels.cpu.gradient.addresses import Addresses
from jacrec.kernels.cpu.gradient.copies import CHANGED, copy_job, update_copies
from jacrec.kernels.cpu.gradient.plan_parts import Parts, PolicyPlan, WorldPlan, parts
from jacrec.kernels.cpu.gradient.sized import Job, SizedJob, sized_job
from jacrec.kernels.cpu.gradient.unsupported import policy_reason, unsupported_reason
from jacrec.kernels.store import LruStore
from jacrec.models.world import Anchor, World

PLANS_KEPT, WORLDS_KEPT, SIZES_KEPT = 1024, 16, 64
"""plans of policies, alone and in a world, that are kept while their policies live; plans of worlds; and jobs of a plan, by
N, M, H, γ and threads. A policy's plan is smaller than the policy, so that memory is bounded by what the caller holds"""


class Plan:
    """A policy in a world, anchored or not; `job` adds sizes."""

    def __init__(self, policy: PolicyPlan, world: WorldPlan, anchor: PolicyPlan | None):
        self.policy, self.world, self.anchor, self.dtype = policy, world, anchor, policy.dtype
        self.addresses = Addresses(self.dtype)
        copies = [*policy.addresses.copies, *(anchor.addresses.copies if anchor else [])]
        self.copies = copy_job(copies, world.watched, self.addresses)
        self.update_copies = entry(update_copies, DTYPES[self.dtype]).ctypes
        self.sized: dict[tuple, SizedJob] = {}

    def refresh(self, job: Job) -> None:
        """Bring all copies up to date.

        Those of the policy and the anchor are copied every time in compiled code; the world's only if a comparison in compiled code finds that
        their sources have changed: memory that is not written stays in the caches of all cores.
        """
        copies = job.sized.beside.copies
        self.update_copies(job.at(copies))
        if job.row[copies + CHANGED]:
            self.world.update()

    def tensors(self) -> list[Tensor]:
        """All parameters and buffers."""
        plans = [self.policy, self.world, *([self.anchor] if self.anchor else [])]
        return [x for plan in plans for x in plan.watch.tensors]

    def job(self, p: Problem, team: int = 1, kind: int | None = None) -> Job:
        """A new job without the addresses of a call, to be held until it is done.

        kind: as in `sized_job`.
        """
        world = p.world
        anchor = world.anchor and (world.anchor.weight, world.anchor.terminal)
        key = (*p.noise.shape[:3], world.discount, anchor, torch.get_num_threads(), team, kind)
        sized = self.sized.get(key)
        if sized is None:
            if len(self.sized) >= SIZES_KEPT:
                self.sized.clear()
            sized = self.sized[key] = sized_job(self.policy, self.world, self.anchor, self.copies, p, team, kind)
        return Job.of(sized.row.copy(), sized)


_plans: LruStore[Plan] = LruStore(PLANS_KEPT)
_policies: LruStore[PolicyPlan] = LruStore(PLANS_KEPT)
_worlds: LruStore[WorldPlan] = LruStore(WORLDS_KEPT)


def kept_plan(policy: nn.Module, world: World, state: Tensor) -> Plan | None:
    """The plan kept for a policy and a world, if nothing has changed since it was made.

    None for a world with a part that is not jacrec's, about which nothing is known: it has to be examined before every use.
    """
    own = parts(world)
    return None if None in own else _unchanged(policy, own, world.anchor, state)


def examined_plan(policy: nn.Module, world: World, state: Tensor) -> Plan | None:
    """The same where the caller has examined the parts that are not jacrec's."""
    return _unchanged(policy, parts(world), world.anchor, state)


def _unchanged(policy: nn.Module, own: Parts, anchor: Anchor | None, state: Tensor) -> Plan | None:
    found = _plans.get(_key(policy, own, anchor))
    if found is None or not found.policy.unchanged(policy, state) or not found.world.unchanged(own, state):
        return None
    fits = found.anchor is None or (anchor is not None and found.anchor.unchanged(anchor.policy, state))
    return found if fits else None


def plan_or_reason(policy: nn.Module, world: World, state: Tensor) -> Plan | str:
    """The plan for a policy and a world, kept or new; or why there is none."""
    found = examined_plan(policy, world, state)
    if found is not None:
        return found
    reason = unsupported_reason(policy, world, state)
    if reason is not None:
        return reason
    own, anchor = parts(world), None if world.anchor is None else world.anchor.policy
    made = Plan(_policy_plan(policy, state), _world_plan(own, state), anchor and _policy_plan(anchor, state))
    _plans.put(_key(policy, own, world.anchor), made, tuple(x for x in (policy, *own, anchor) if x is not None))
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


def _world_plan(own: Parts, state: Tensor) -> WorldPlan:
    key = tuple(map(id, own))
    found = _worlds.get(key)
    if found is None or not found.unchanged(own, state):
        found = WorldPlan(own, state)
        _worlds.put(key, found, [part for part in own if part is not None])
    return found


def _key(policy: nn.Module, own: Parts, anchor: Anchor | None) -> tuple[int, ...]:
    # of a reward or critic that is not jacrec's, None here, nothing is kept
    return id(policy), *map(id, own), id(None if anchor is None else anchor.policy)
