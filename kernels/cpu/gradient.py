"""The fused adjoint form on the CPU: twin of `jacrec.gradient.adjoint_gradient`."""

import threading

import torch
from numba.core import config

from jacrec import gradient as engine
from jacrec.dynamics import ChainDynamics, DeterministicDynamics
from jacrec.jacobians.policy import has_written_jacobian
from jacrec.kernels.cpu import chain, layout, rollout
from jacrec.kernels.cpu.plan import DTYPES
from jacrec.kernels.cpu.prepared import Prepared, named_gradients, plan_or_reason
from jacrec.kernels.cpu.threads import run, workspace
from jacrec.networks import RewardModel, TwinCritic, written_out
from jacrec.shapes import Problem
from jacrec.types import PolicyGradient

_fresh = threading.local()
"""the plan that this thread's last question has found, and the problem it is for"""


def unserved(p: Problem, form: str) -> str | None:
    """Why the fused CPU kernels cannot compute this gradient's `form`, "forward" or "adjoint"; None if they can."""
    if p.state.device.type != "cpu":
        return f"the CPU kernels take tensors on the CPU, got {p.state.device}"
    if config.DISABLE_JIT:  # pyright: ignore[reportAttributeAccessIssue]
        return "numba is told not to compile (NUMBA_DISABLE_JIT)"
    f = p.world.dynamics
    if form == "forward" and not isinstance(f, ChainDynamics):
        return f"the fused forward form needs a chain (diffusion, flow or MeanFlow), got {type(f).__name__}"
    if not has_written_jacobian(p.policy):
        return f"the policy is not jacrec's own Actor, as it was made, got {type(p.policy).__name__}"
    if not isinstance(f, ChainDynamics | DeterministicDynamics) or not written_out(f):
        return f"the kernels serve jacrec's chains and DeterministicDynamics, as they were made, got {type(f).__name__}"
    if isinstance(f, ChainDynamics) and f.keep is not None:
        return "the sampler looks back (solver 'heun'); the kernels are for samplers of first order"
    for name, part, kind in (("reward", p.world.reward, RewardModel), ("critic", p.world.critic, TwinCritic)):
        if type(part) is not kind or not written_out(part):
            return f"the {name} is not jacrec's own {kind.__name__}, as it was made, got {type(part).__name__}"
    found = plan_or_reason(p)
    if isinstance(found, str):
        return found
    _fresh.found = p, found
    return None


def _plan(p: Problem) -> Prepared:
    """The plan that `unserved` has just found for this problem, or one that is looked for now."""
    problem, plan = getattr(_fresh, "found", (None, None))
    _fresh.found = None, None
    if problem is p and plan is not None:
        return plan
    found = plan_or_reason(p)
    if isinstance(found, str):
        raise ValueError(f'kernel="fused": {found}')
    return found


@torch.no_grad()
def adjoint_gradient(p: Problem, *, recompute: bool = False, precision: str | None = None, crew: int = 1) -> PolicyGradient:
    """`jacrec.gradient.adjoint_gradient` in compiled code, tile by tile; `unserved(p, "adjoint")` must be None.

    `recompute` changes nothing here: the memory of a tile is bounded anyway (`TAPE_BYTES`). `precision` is that of the
    tensors; anything but None and "ieee" raises ValueError. `crew`: as in `Adjoint`.
    """
    _check_precision(precision)
    plan = _plan(p)
    job, sized = plan.job(p, crew)
    rows, shares, policies = int(job[rollout.ROWS]), int(job[rollout.SHARES]), p.N if p.batched else 1
    state, noise = p.state.contiguous(), p.noise.contiguous()
    returns = state.new_empty(rows)
    own = state.new_empty(policies + shares - 1, int(plan.policy[0, layout.GRADIENT]))
    memory = workspace(sized.threads * sized.room, plan.dtype)
    job[rollout.STATE : rollout.MEMORY_LENGTH + 1] = *(x.data_ptr() for x in (state, noise, returns, own, memory)), sized.room
    gradient, total = rollout.compiled(DTYPES[plan.dtype])
    run(gradient, job, sized.threads)
    if shares > 1:
        total.ctypes(job.ctypes.data)
    value = returns.view(p.N, -1).mean(1)
    return PolicyGradient(value.squeeze(0) if p.single else value, named_gradients(plan, own, policies, p.batched))


def forward_gradient(p: Problem, *, precision: str | None = None) -> PolicyGradient:
    """`jacrec.gradient.forward_gradient` with the fused chain, values and tangents together; the rest is plain torch."""
    _check_precision(precision)
    return engine.forward_gradient(p, chain=chain)


def _check_precision(precision: str | None) -> None:
    if precision not in (None, "ieee"):
        raise ValueError(f'precision: expected None or "ieee" on a CPU, got {precision!r}; "tf32" is a format of GPUs')
