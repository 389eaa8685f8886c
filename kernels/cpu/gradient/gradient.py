"""The fused adjoint form on the CPU: twin of `jacrec.engine.gradient.adjoint_gradient`, and the update that follows from it."""

from dataclasses import dataclass, field
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import cast

import numpy as np
import torch
from numba.core import config
from torch import Tensor, nn

from jacrec.engine import gradient as engine
from jacrec.engine.jacobians.generic import value_and_gradient
from jacrec.engine.problem import Problem
from jacrec.engine.types import PolicyGradient, UpdateResult
from jacrec.kernels.cpu.base.helpers import pool
from jacrec.kernels.cpu.base.host import entry
from jacrec.kernels.cpu.base.layout import DTYPES
from jacrec.kernels.cpu.base.threads import workspace
from jacrec.kernels.cpu.gradient import chain as chain
from jacrec.kernels.cpu.gradient import unsupported
from jacrec.kernels.cpu.gradient.action import action
from jacrec.kernels.cpu.gradient.chain import chain_forward
from jacrec.kernels.cpu.gradient.decision import apply_step, evaluate_policy, reduce_gradient
from jacrec.kernels.cpu.gradient.job import AT, CALL, Call, Sizes
from jacrec.kernels.cpu.gradient.moves import Moved, named_gradients
from jacrec.kernels.cpu.gradient.plan_parts import parts
from jacrec.kernels.cpu.gradient.plans import Plan, plan_or_reason
from jacrec.kernels.cpu.gradient.plans import examined_plan as examined_plan
from jacrec.kernels.cpu.gradient.plans import kept_plan as kept_plan
from jacrec.kernels.cpu.gradient.rollout import rollout_gradient
from jacrec.kernels.cpu.gradient.shares import SLOT as _SLOT
from jacrec.kernels.cpu.gradient.shares import Reads, run_shares
from jacrec.kernels.cpu.gradient.sized import SizedJob
from jacrec.models.dynamics import ChainDynamics, EnsembleDynamics, MultiStepDynamics


def unsupported_reason(p: Problem, form: str) -> str | None:
    """Why the CPU kernels cannot compute this gradient's `form`, "forward", "adjoint" or "multistep"; None if they can."""
    if p.state.device.type != "cpu":
        return f"the CPU kernels take tensors on the CPU, got {p.state.device}"
    f = p.world.dynamics
    if isinstance(f, MultiStepDynamics) != (form == "multistep"):
        return f"the {form} form is not that of {type(f).__name__}"
    if isinstance(f, MultiStepDynamics) and f.passes(p.H) < p.H:
        return f"the kernels compute exact rollouts of multi-step models, got sweeps={f.sweeps} of {p.H}"
    if form == "forward" and not isinstance(f, ChainDynamics):
        return f"the fused forward form needs a chain (diffusion, flow or MeanFlow), got {type(f).__name__}"
    found = _plan(p)
    return found if isinstance(found, str) else None


def part_reasons(p: Problem, form: str) -> list[tuple[str, str]]:
    """The parts that keep a gradient from one compiled call, and why; those that torch evaluates between two calls included."""
    found = list(unsupported.part_reasons(p.policy, p.world, p.state))
    if not found:
        reason = unsupported_reason(p, form)
        found = [] if reason is None else [("kernels", reason)]
    beside = [name for name, part in zip(("reward", "critic"), parts(p.world)[1:], strict=True) if part is None]
    return found + [(name, f"{name}: torch evaluates it between two compiled calls") for name in beside]


def _plan(p: Problem) -> Plan | str:
    """The problem's plan, or why there is none."""
    if isinstance(p.plan, Plan):
        return p.plan
    if config.DISABLE_JIT:  # pyright: ignore[reportAttributeAccessIssue]
        return "numba does not compile here (NUMBA_DISABLE_JIT)"
    return plan_or_reason(p.policy, p.world, p.state)


@dataclass
class FusedUpdate:
    """A `jacrec.engine.types.Update` in compiled code's memory: the gradient, and the plain step (4) along it."""

    problem: Problem
    lr: float
    max_grad_norm: float | None
    plan: Plan
    job: np.ndarray
    value: Tensor
    """Ĵ, () or (N,)"""
    gradient: Tensor
    """vectors of the policies' gradients, (policies, …), then those of other shares"""
    norm: Tensor
    """‖∇Ĵ‖ over the parameters with requires_grad, () or (N,) for a `BatchedPolicy`; valid after `apply`"""
    moved: Moved
    memory: int  # elements of memory that the job needs
    held: tuple = field(repr=False)  # what else the job points to
    applied: bool = False

    def apply(self) -> UpdateResult:
        """`jacrec.control.ascent.ascend`, the plain step, in compiled code."""
        if self.applied:
            raise RuntimeError("apply: expected one call, got a second; the gradient belongs to ψ as it was before the step")
        if not self.moved.parameters:
            raise ValueError("policy: expected parameters with requires_grad=True to improve, got none; thaw some of them")
        self.applied = True
        rates, accepted = np.array([self.lr, self.max_grad_norm or 0.0]), torch.empty_like(self.norm, dtype=torch.int64)
        self.job[_SLOT["rates"]], self.job[_SLOT["accepted"]] = rates.ctypes.data, accepted.data_ptr()
        entry(apply_step, DTYPES[self.plan.dtype]).ctypes(self.job.ctypes.data)
        accepted = accepted.bool()
        if accepted.any():
            torch.autograd.graph.increment_version(self.moved.parameters)
        return UpdateResult(self.value, self.norm, accepted)

    def action(self, policy: nn.Module, state: Tensor) -> Tensor:
        """The action of a policy, this one or another, at states (N, d) -> (N, m)."""
        p = self.problem
        if policy is not p.policy or state is not p.state:
            return action(policy, state)
        result = state.new_empty(len(state), self.plan.policy.action_dim)
        self.job[_SLOT["actions"]] = result.data_ptr()
        self.job[_SLOT["memory"]] = workspace(self.memory, self.plan.dtype).data_ptr()
        entry(evaluate_policy, DTYPES[self.plan.dtype]).ctypes(self.job.ctypes.data)
        return result


@torch.no_grad()
def compute_update(
    p: Problem, lr: float = 0.0, max_grad_norm: float | None = None, *, precision: str | None = None, team: int = 1
) -> FusedUpdate:
    """Ĵ, its gradient, and the step along it with this step size; `unsupported_reason(p, "adjoint")` must be None. Options as in `adjoint_gradient`."""
    check_precision(precision)
    plan = _plan(p)
    if isinstance(plan, str):
        raise ValueError(f'kernel="fused": {plan}')
    job, sized = plan.job(p, team)
    pool().rouse(sized.threads - 1)
    plan.refresh()
    N, single, batched = p.N, p.single, p.batched
    state, moved = p.state.contiguous(), plan.policy.moved()
    noise, member = _noise(p)
    value = state.new_empty(() if single else N)
    norm = state.new_empty(N if batched and not single else ())
    vectors = state.new_empty((N if batched else 1) + sized.shares - 1, sized.length)
    # the returns of all rows lie before the threads' memory
    memory = workspace(sized.memory, plan.dtype).data_ptr()
    # several threads can share the step only if all of ψ moves, and all states share it
    parts = 1 if batched or len(moved.pieces) < len(plan.policy.parameters) else sized.threads
    squares = np.empty(parts)
    job[CALL] = Call(
        state=state.data_ptr(),
        noise=noise.data_ptr(),
        member=0 if member is None else member.data_ptr(),
        returns=memory,
        gradients=vectors.data_ptr(),
        memory=memory + sized.first,
        memory_length=sized.room,
        values=value.data_ptr(),
        norms=norm.data_ptr(),
        pieces=moved.pieces.ctypes.data,
        piece_count=len(moved.pieces),
        parts=parts,
        squares=squares.ctypes.data,
    )
    reads = Reads((p, plan, state, noise, member), plan.tensors)
    terms = _given_terms(p, plan, job, sized, vectors, reads)
    if terms:  # a reward or critic may use these kernels itself, and then the workspace is another one
        memory = workspace(sized.memory, plan.dtype).data_ptr()
        job[_SLOT["returns"]], job[_SLOT["memory"]] = memory, memory + sized.first
    settle = partial(entry(reduce_gradient, DTYPES[plan.dtype]).ctypes, job.ctypes.data)
    reads = reads._replace(things=(*reads.things, terms))
    book = run_shares(entry(rollout_gradient, DTYPES[plan.dtype]), job, sized, vectors, reads, settle)
    held = sized, state, noise, member, squares, terms, book
    return FusedUpdate(p, lr, max_grad_norm, plan, job, value, vectors, norm, moved, sized.memory, held)


def _given_terms(p: Problem, plan: Plan, job: np.ndarray, sized: SizedJob, vectors: Tensor, reads: Reads) -> list[Tensor]:
    """Lets torch evaluate a reward or critic that is not jacrec's along the path, and the job read it: its tensors."""
    H, world = p.H, plan.world
    steps = {"reward": range(0 if world.reward else H), "critic": range(H, H if world.critics else H + 1)}
    if not any(map(len, steps.values())):
        return []
    rows, like = int(job[AT.sizes + Sizes._fields.index("rows")]), p.state
    states, actions = (like.new_empty(H + 1, rows, n) for n in (plan.policy.state_dim, plan.policy.action_dim))
    path = job.copy()
    path[_SLOT["path_s"]], path[_SLOT["path_a"]] = states.data_ptr(), actions.data_ptr()
    run_shares(entry(rollout_gradient, DTYPES[plan.dtype]), path, sized, vectors, reads, lambda: None)
    terms = [like.new_empty(H + 1, rows), torch.empty_like(states), torch.empty_like(actions)]
    for name, which in steps.items():
        if which:
            at = slice(which.start, which.stop)
            found = value_and_gradient(name, getattr(p.world, name), states[at].flatten(0, 1), actions[at].flatten(0, 1))
            for term, value in zip(terms, found, strict=True):
                term[at].copy_(value.view_as(term[at]))
    for name, term in zip(("terms", "terms_s", "terms_a"), terms, strict=True):
        job[_SLOT[name]] = term.data_ptr()
    return terms


def _noise(p: Problem) -> tuple[Tensor, Tensor | None]:
    """The noise as the kernels read it, (N, M, H, rows, d), and the networks that an ensemble's noise selects, (N, M, H)."""
    f, noise = p.world.dynamics, p.noise
    if isinstance(f, EnsembleDynamics):
        # nothing is read past the last network, whatever the noise is
        return noise.contiguous(), f.member(noise).clamp_(min=0).contiguous()
    if isinstance(f, MultiStepDynamics):
        f.check_horizon(p.H)
        path = f.path_noise(noise)
        noise = noise if path is None else path
    return noise.contiguous(), None


def multistep_gradient(p: Problem) -> PolicyGradient:
    """`jacrec.engine.multistep.multistep_gradient` in compiled code; `unsupported_reason(p, "multistep")` must be None."""
    return adjoint_gradient(p)


def adjoint_gradient(p: Problem, *, recompute: bool = False, precision: str | None = None, team: int = 1) -> PolicyGradient:
    """`jacrec.engine.gradient.adjoint_gradient` in compiled code, tile by tile; `unsupported_reason(p, "adjoint")` must be None.

    `recompute` has no effect here: the memory of a tile is bounded anyway (`sized.TAPE_BYTES`). `precision` is that of the
    tensors; anything but None and "ieee" raises ValueError. `team`: as in `Adjoint`.
    """
    done = compute_update(p, precision=precision, team=team)
    return PolicyGradient(done.value, named_gradients(done.plan.policy.pieces, done.gradient, p.N if p.batched else None))


def forward_gradient(p: Problem, *, precision: str | None = None) -> PolicyGradient:
    """`jacrec.engine.gradient.forward_gradient` with the fused chain, values and tangents together; the rest is plain torch."""
    check_precision(precision)
    own = SimpleNamespace(chain_forward=partial(chain_forward, checked=True))  # `unsupported_reason` has checked the dynamics
    return engine.forward_gradient(p, chain=cast(ModuleType, own))


def check_precision(precision: str | None) -> None:
    """ValueError unless it is that of the tensors."""
    if precision not in (None, "ieee"):
        raise ValueError(f'precision: expected None or "ieee" on a CPU, got {precision!r}; "tf32" is a format of GPUs')
