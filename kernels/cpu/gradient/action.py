"""A policy's action in compiled code: π_ψ(s) of a few states, where torch's dispatch would take longer than the arithmetic."""

import numpy as np
from torch import Tensor, nn

from jacrec.kernels.cpu.base.host import entry
from jacrec.kernels.cpu.base.layout import DTYPES
from jacrec.kernels.cpu.base.threads import workspace
from jacrec.kernels.cpu.gradient.decision import evaluate_policy
from jacrec.kernels.cpu.gradient.job import AT, CALL, Call, Constants, Sizes, job_length
from jacrec.kernels.cpu.gradient.plans import policy_plan
from jacrec.kernels.cpu.gradient.sized import TILE
from jacrec.models.world import policy_action


def action(policy: nn.Module, state: Tensor) -> Tensor:
    """π_ψ at states (N, d) -> (N, m), state n with parameters n of a `BatchedPolicy`.

    `jacrec.models.world.policy_action`, in compiled code if the policy is an unmodified `Actor`.
    """
    plan = policy_plan(policy, state)
    if plan is None:
        return policy_action(policy, state)
    state, N, d, m = state.contiguous(), len(state), plan.state_dim, plan.action_dim
    result = state.new_empty(N, m)
    memory = workspace(TILE * plan.rows.network.tape, plan.dtype)
    job = np.zeros(job_length(1), dtype=np.int64)
    batched = plan.policies is not None
    job[AT.sizes : AT.reward] = (*Sizes(1, 1, d, m, 0, 1, N, batched, TILE, TILE), *plan.rows.stack)
    job[AT.constants : AT.call] = Constants(0, 0, plan.copies.ctypes.data)
    job[CALL] = Call(state=state.data_ptr(), memory=memory.data_ptr(), actions=result.data_ptr())
    entry(evaluate_policy, DTYPES[plan.dtype]).ctypes(job.ctypes.data)
    return result
