"""A policy's action in compiled code: π_ψ(s) of a few states, where torch's dispatch would take longer than the arithmetic."""

import numpy as np
from torch import Tensor, nn

from jacrec.engine.jacobians.policy import has_written_jacobian
from jacrec.kernels.cpu.base import layout
from jacrec.kernels.cpu.base.host import entry
from jacrec.kernels.cpu.base.lru import LruStore
from jacrec.kernels.cpu.base.threads import workspace
from jacrec.kernels.cpu.gradient import copies, decision, rollout
from jacrec.kernels.cpu.gradient.plan import DTYPES, Plan
from jacrec.kernels.cpu.gradient.prepared import TILE, architecture, network_unfit, policies, policy_network
from jacrec.kernels.cpu.gradient.watch import Watch
from jacrec.models.world import BatchedPolicy, policy_action

KEPT = 16
"""policies kept at most, those used last; they stay in memory as long, or until `forget()`"""

_policies: "LruStore[PreparedPolicy]" = LruStore(KEPT)


class PreparedPolicy:
    """What a job says about one policy."""

    def __init__(self, policy: nn.Module, state: Tensor):
        self.dtype, self.state_dim = state.dtype, state.shape[-1]
        net, plan = policy_network(policy), Plan(self.dtype)
        self.net, self.watch, self.architecture = net, Watch([policy]), architecture(net)
        self.policy = plan.network(net, net.layers[0].weight)
        self.plan, self.copies = plan, copies.job(plan.copies, [], plan)
        self.batched, self.action_dim = isinstance(policy, BatchedPolicy), int(self.policy[0, layout.OUT])
        self.room = TILE * int(self.policy[0, layout.TAPE])
        self.template = np.zeros(rollout.DOOR, dtype=np.int64)
        self.template[rollout.POLICY] = self.policy.ctypes.data
        self.template[rollout.POLICIES], self.template[rollout.POLICY_LENGTH] = self.policy.shape
        for index, value in {
            rollout.STATE_DIM: self.state_dim,
            rollout.ACTION_DIM: self.action_dim,
            rollout.PARTICLES: 1,
            rollout.BATCHED: self.batched,
            rollout.TILE: TILE,
            rollout.OWN_COPIES: self.copies.ctypes.data,
        }.items():
            self.template[index] = value

    def unchanged(self, policy: nn.Module, state: Tensor) -> bool:
        """Whether it is of this policy as it is now, for such states."""
        return (
            self.dtype == state.dtype
            and self.state_dim == state.shape[-1]
            and (not self.batched or self.template[rollout.POLICIES] == len(state))
            and self.watch.unchanged([policy])
            and architecture(self.net) == self.architecture
        )


def action(policy: nn.Module, state: Tensor) -> Tensor:
    """π_ψ at states (N, d) -> (N, m), state n with parameters n of a `BatchedPolicy`: `jacrec.models.world.policy_action`, in compiled
    code if the policy is jacrec's own, as it was made.
    """
    found = _prepared(policy, state)
    if found is None:
        return policy_action(policy, state)
    job, state = found.template.copy(), state.contiguous()
    result = state.new_empty(len(state), found.action_dim)
    job[rollout.ROWS], job[rollout.STATE], job[rollout.ACTIONS] = len(state), state.data_ptr(), result.data_ptr()
    job[rollout.MEMORY] = workspace(found.room, found.dtype).data_ptr()
    entry(decision.act, DTYPES[found.dtype]).ctypes(job.ctypes.data)
    return result


def forget() -> None:
    """Drop what is kept of policies."""
    _policies.clear()


def _prepared(policy: nn.Module, state: Tensor) -> PreparedPolicy | None:
    """What is kept of the policy, or made now; None where the kernels do not serve it."""
    found = _policies.get(id(policy))
    if found is not None and found.unchanged(policy, state):
        return found
    if not has_written_jacobian(policy) or state.dtype not in DTYPES or policies(policy) not in ((), (len(state),)):
        return None
    net = policy_network(policy)
    if network_unfit("policy", net, state.shape[-1], net.out_dim, policies(policy)) is not None:
        return None
    if any(x.dtype != state.dtype or x.device.type != "cpu" for x in (state, *net.parameters())):
        return None
    made = PreparedPolicy(policy, state)
    _policies.put(id(policy), made)
    return made
