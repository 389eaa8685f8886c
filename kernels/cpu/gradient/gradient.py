"""The fused forms on the CPU: twins of `jacrec.engine.gradient`'s, the update that follows from them, and what diagnostics need."""

import struct
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from jacrec.engine.jacobians.generic import value_and_gradient
from jacrec.engine.problem import Problem
from jacrec.engine.types import PolicyGradient, RolloutJacobians, UpdateResult
from jacrec.kernels.cpu.base.helpers import pool
from jacrec.kernels.cpu.base.host import disabled_reason, entry
from jacrec.kernels.cpu.base.layout import DTYPES
from jacrec.kernels.cpu.base.rows import WORD
from jacrec.kernels.cpu.base.threads import workspace
from jacrec.kernels.cpu.gradient import chain as chain
from jacrec.kernels.cpu.gradient import unsupported
from jacrec.kernels.cpu.gradient.action import action
from jacrec.kernels.cpu.gradient.decision import apply_step, evaluate_policy, reduce_gradient
from jacrec.kernels.cpu.gradient.job import AT, CALL, Call, Sizes
from jacrec.kernels.cpu.gradient.moves import Moved, named_gradients
from jacrec.kernels.cpu.gradient.plan_parts import parts
from jacrec.kernels.cpu.gradient.plans import Plan, plan_or_reason
from jacrec.kernels.cpu.gradient.plans import examined_plan as examined_plan
from jacrec.kernels.cpu.gradient.plans import kept_plan as kept_plan
from jacrec.kernels.cpu.gradient.rollout import rollout_gradient
from jacrec.kernels.cpu.gradient.sensitivities import FORWARD, GRADIENT, GROWTH, JACOBIANS, Forward, rollout_sensitivities
from jacrec.kernels.cpu.gradient.shares import SLOT as _SLOT
from jacrec.kernels.cpu.gradient.shares import Reads, run_shares
from jacrec.kernels.cpu.gradient.sized import Job
from jacrec.models.dynamics import ChainDynamics, DeterministicDynamics, EnsembleDynamics, MultiStepDynamics

_WRITTEN = slice(_SLOT["state"], _SLOT["accepted"] + 1)
_RATES = struct.Struct("2d")


def unsupported_reason(p: Problem, form: str) -> str | None:
    """Why the CPU kernels cannot compute this gradient's `form`, "forward", "adjoint" or "multistep"; None if they can."""
    if p.state.device.type != "cpu":
        return f"the CPU kernels take tensors on the CPU, got {p.state.device}"
    f = p.world.dynamics
    if isinstance(f, MultiStepDynamics) != (form == "multistep"):
        return f"the {form} form is not that of {type(f).__name__}"
    if isinstance(f, MultiStepDynamics) and f.passes(p.H) < p.H:
        return f"the kernels compute exact rollouts of multi-step models, got sweeps={f.sweeps} of {p.H}"
    if form == "forward" and not isinstance(f, ChainDynamics | DeterministicDynamics):
        return f"the fused forward form needs a chain (diffusion, flow or MeanFlow) or one network, got {type(f).__name__}"
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
    return disabled_reason() or plan_or_reason(p.policy, p.world, p.state)


@dataclass
class FusedUpdate:
    """A `jacrec.engine.types.Update` in compiled code's memory: the gradient, and the plain step (4) along it."""

    problem: Problem
    lr: float
    max_grad_norm: float | None
    plan: Plan
    job: Job
    value: Tensor
    """Ĵ, () or (N,)"""
    gradient: Tensor
    """vectors of the policies' gradients, (policies, …), then those of other shares"""
    norm: Tensor
    """‖∇Ĵ‖ over the parameters with requires_grad, () or (N,) for a `BatchedPolicy`; valid after `apply`"""
    moved: Moved
    held: tuple = field(repr=False)  # what else the job points to
    applied: bool = False

    def apply(self) -> UpdateResult:
        """`jacrec.control.ascent.ascend`, the plain step, in compiled code."""
        if self.applied:
            raise RuntimeError("apply: expected one call, got a second; the gradient belongs to ψ as it was before the step")
        if not self.moved.parameters:
            raise ValueError("policy: expected parameters with requires_grad=True to improve, got none; unfreeze some of them")
        self.applied = True
        row, own = self.job.row, self.job.sized.beside
        _RATES.pack_into(row.data, own.rates * WORD, self.lr, self.max_grad_norm or 0.0)
        entry(apply_step, DTYPES[self.plan.dtype]).ctypes(self.job.address)
        accepted = row[own.accepted : own.squares] != 0
        if True in accepted.tolist():
            torch.autograd.graph.increment_version(self.moved.parameters)
        return UpdateResult(self.value, self.norm, torch.from_numpy(accepted.reshape(self.norm.shape)))

    def action(self, policy: nn.Module, state: Tensor) -> Tensor:
        """The action of a policy, this one or another, at states (N, d) -> (N, m)."""
        p = self.problem
        if policy is not p.policy or state is not p.state:
            return action(policy, state)
        result = state.new_empty(len(state), self.plan.policy.action_dim)
        row = self.job.row
        row[_SLOT["actions"]] = result.data_ptr()
        row[_SLOT["memory"]] = workspace(self.job.sized.memory, self.plan.dtype).data_ptr()
        entry(evaluate_policy, DTYPES[self.plan.dtype]).ctypes(self.job.address)
        return result


def compute_update(
    p: Problem,
    lr: float = 0.0,
    max_grad_norm: float | None = None,
    *,
    form: str = "adjoint",
    precision: str | None = None,
    team: int = 1,
    beside: dict[str, int] | None = None,
) -> FusedUpdate:
    """Ĵ, its gradient by a form, and the step along it with this step size; `unsupported_reason(p, form)` must be None.

    precision, team: as in `adjoint_gradient`. beside: addresses of what else the adjoint form writes, fields of `Call`.
    """
    check_precision(precision)
    forward = form == "forward"
    plan, job = _begin(p, team, GRADIENT if forward else None)
    row, sized, own = job.row, job.sized, job.sized.beside
    state, moved, batched = p.state.contiguous(), plan.policy.moved(), p.batched
    noise, member = _noise(p)
    shape = () if p.single else (p.N,)
    value, norm = state.new_empty(shape), state.new_empty(shape if batched else ())
    vectors = state.new_empty(sized.gradients, sized.length)
    # the returns of all rows lie before the threads' memory
    memory = workspace(sized.memory, plan.dtype).data_ptr()
    # several threads can share the step only if all of ψ moves, and all states share it
    parts = 1 if batched or len(moved.pieces) < len(plan.policy.parameters) else sized.threads
    row[_WRITTEN] = (  # in the order of `Call`
        state.data_ptr(),
        noise.data_ptr(),
        0 if member is None else member.data_ptr(),
        memory,
        vectors.data_ptr(),
        memory + sized.first,
        sized.room,
        value.data_ptr(),
        norm.data_ptr(),
        moved.address,
        len(moved.pieces),
        parts,
        job.at(own.squares),
        job.at(own.rates),
        job.at(own.accepted),
    )
    for name, address in (beside or {}).items():
        row[_SLOT[name]] = address
    dtype = DTYPES[plan.dtype]
    passes = entry(rollout_sensitivities if forward else rollout_gradient, dtype)
    # what is written beside the gradient is the caller's: no helper may write it after the call
    bounded, reads = not beside, Reads((p, plan, state, noise, member), plan.tensors)
    terms = given_terms(p, plan, job, partial(run_shares, passes, reads=reads, bounded=bounded))
    if terms:  # a reward or critic may use these kernels itself, and then the workspace is another one
        memory = workspace(sized.memory, plan.dtype).data_ptr()
        row[_SLOT["returns"]], row[_SLOT["memory"]] = memory, memory + sized.first
        reads = reads._replace(things=(*reads.things, terms))
    settle = partial(entry(reduce_gradient, dtype).ctypes, job.address)
    run_shares(passes, job, reads, then=settle, bounded=bounded)
    return FusedUpdate(p, lr, max_grad_norm, plan, job, value, vectors, norm, moved, (state, noise, member, terms))


def _begin(p: Problem, team: int = 1, kind: int | None = None) -> tuple[Plan, Job]:
    """The problem's plan, with copies of the weights as they are now, and a job of it; helpers wake up meanwhile."""
    plan = _plan(p)
    if isinstance(plan, str):
        raise ValueError(f'kernel="fused": {plan}')
    job = plan.job(p, team, kind)
    pool().rouse(job.sized.threads - 1)
    plan.refresh(job)
    return plan, job


def given_terms(p: Problem, plan: Plan, job: Job, compute: Callable[[Job], object]) -> list[Tensor]:
    """Lets torch evaluate a reward or critic that is not jacrec's along the path, and the job read it: its tensors."""
    return [] if plan.world.reward and plan.world.critics else _given_terms(p, plan, job, compute)


@torch.no_grad()
def _given_terms(p: Problem, plan: Plan, job: Job, compute: Callable[[Job], object]) -> list[Tensor]:
    H, world = p.H, plan.world
    steps = {"reward": range(0 if world.reward else H), "critic": range(H, H if world.critics else H + 1)}
    if not any(map(len, steps.values())):
        return []
    rows, like = int(job.row[AT.sizes + Sizes._fields.index("rows")]), p.state
    states, actions = (like.new_empty(H + 1, rows, n) for n in (plan.policy.state_dim, plan.policy.action_dim))
    path = job.copy()
    path.row[_SLOT["path_s"]], path.row[_SLOT["path_a"]], path.row[_SLOT["w"]] = states.data_ptr(), actions.data_ptr(), 0
    compute(path)
    terms = [like.new_empty(H + 1, rows), torch.empty_like(states), torch.empty_like(actions)]
    for name, which in steps.items():
        if which:
            at = slice(which.start, which.stop)
            found = value_and_gradient(name, getattr(p.world, name), states[at].flatten(0, 1), actions[at].flatten(0, 1))
            for term, value in zip(terms, found, strict=True):
                term[at].copy_(value.view_as(term[at]))
    for name, term in zip(("terms", "terms_s", "terms_a"), terms, strict=True):
        job.row[_SLOT[name]] = term.data_ptr()
    return terms


def _noise(p: Problem) -> tuple[Tensor, Tensor | None]:
    """The noise as the kernels read it, (N, M, H, rows, d), and the networks that an ensemble's noise selects, (N, M, H)."""
    f, noise = p.world.dynamics, p.noise.detach() if p.noise.requires_grad else p.noise
    if isinstance(f, EnsembleDynamics):
        # nothing is read past the last network, whatever the noise is
        return noise.contiguous(), f.member(noise).clamp_(min=0).contiguous()
    if isinstance(f, MultiStepDynamics):
        f.check_horizon(p.H)
        path = f.path_noise(noise)
        noise = noise if path is None else path
    return noise.contiguous(), None


@torch.no_grad()
def visits(p: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """Ĵ (N,), the states (N, M, H+1, d), and the weights w_j of ∇L = Σ_j w_j Π_ψ(j), (N, M, H+1, m), by the adjoint form.

    `unsupported_reason(p, "adjoint")` must be None, and H > 0.
    """
    like, rows = p.state, p.N * p.M
    d, m = like.shape[-1], p.world.dynamics.action_dim  # pyright: ignore[reportAttributeAccessIssue]
    states, actions, w = (like.new_empty(p.H + 1, rows, n) for n in (d, m, m))
    beside = {"path_s": states.data_ptr(), "path_a": actions.data_ptr(), "w": w.data_ptr()}
    done = compute_update(p, beside=beside)
    states, w = (x.unflatten(1, (p.N, p.M)).movedim(0, 2).contiguous() for x in (states, w))
    return done.value.reshape(p.N), states, w * (p.M if p.batched else rows)


@torch.no_grad()
def particle_squares(p: Problem, counted: Collection[str]) -> tuple[PolicyGradient, Tensor] | None:
    """The gradient, and ‖∇L‖² of every particle's own over the counted parameters, (N, M); None where there is a LayerNorm.

    `unsupported_reason(p, "adjoint")` must be None, and H > 0.
    """
    plan = _plan(p)
    if isinstance(plan, str) or plan.policy.rows.network.norm:
        return None
    in_order = sorted(plan.policy.pieces, key=lambda piece: piece.start)  # each layer's weight and bias
    flags = np.array([piece.name in counted for piece in in_order], dtype=np.int64)
    found = p.state.new_empty(p.N, p.M)
    done = compute_update(p, beside={"squares_of": found.data_ptr(), "counted": flags.ctypes.data})
    return _gradient(p, done), found * (p.M if p.batched else p.N * p.M) ** 2


@torch.no_grad()
def rollout_jacobians(p: Problem) -> RolloutJacobians:
    """`jacrec.engine.linearize.rollout_jacobians` in compiled code; `unsupported_reason(p, "forward")` must be None."""
    N, M, H, like = p.N, p.M, p.H, p.state
    d, m = like.shape[-1], p.world.dynamics.action_dim  # pyright: ignore[reportAttributeAccessIssue]
    shapes = ((H + 1, d), (H + 1, m), (), (H, d, d), (H, d, m), (H + 1, m, d), (H + 1, d), (H + 1, m), (H + 1, m))
    found = RolloutJacobians(*(like.new_empty(N, M, *shape) for shape in shapes))
    addresses = {name: x.data_ptr() for name, x in found._asdict().items()}
    _run_forward(p, JACOBIANS, Call(returns=addresses.pop("returns")), addresses)
    return found


@torch.no_grad()
def growth(p: Problem, unit: Tensor) -> Tensor:
    """ds̃_j/ds̃_0 times the unit (d,) of each component, its columns as rows: (N, M, H+1, d, d), from d tangents.

    `unsupported_reason(p, "forward")` must be None.
    """
    d, unit = len(unit), unit.contiguous()
    found = p.state.new_empty(p.N, p.M, p.H + 1, d, d)
    _run_forward(p, GROWTH, Call(), {"unit": unit.data_ptr(), "growth": found.data_ptr()})
    return found


def _run_forward(p: Problem, kind: int, call: Call, addresses: dict[str, int]) -> None:
    """`rollout_sensitivities` with the results' addresses, fields of `Forward`."""
    plan, job = _begin(p, kind=kind)
    row, sized = job.row, job.sized
    for name, address in addresses.items():
        row[FORWARD + Forward._fields.index(name)] = address
    state, noise = p.state.contiguous(), p.noise.contiguous()
    pointers = {"state": state.data_ptr(), "noise": noise.data_ptr(), "memory_length": sized.room}
    row[CALL] = call._replace(**pointers, memory=workspace(sized.memory, plan.dtype).data_ptr() + sized.first)
    # all threads write to the results themselves: no helper may go on after the call
    passes, reads = entry(rollout_sensitivities, DTYPES[plan.dtype]), Reads((p, plan, state, noise), plan.tensors)
    compute = partial(run_shares, passes, reads=reads, bounded=False)
    terms = given_terms(p, plan, job, compute) if kind == JACOBIANS else []
    row[_SLOT["memory"]] = workspace(sized.memory, plan.dtype).data_ptr() + sized.first  # a reward may have used it
    compute(job)
    del terms


def multistep_gradient(p: Problem) -> PolicyGradient:
    """`jacrec.engine.multistep.multistep_gradient` in compiled code; `unsupported_reason(p, "multistep")` must be None."""
    return adjoint_gradient(p)


def adjoint_gradient(p: Problem, *, recompute: bool = False, precision: str | None = None, team: int = 1) -> PolicyGradient:
    """`jacrec.engine.gradient.adjoint_gradient` in compiled code, tile by tile; `unsupported_reason(p, "adjoint")` must be None.

    `recompute` has no effect here: the memory of a tile is bounded anyway (`sized.TAPE_BYTES`). `precision` is that of the
    tensors; anything but None and "ieee" raises ValueError. `team`: as in `Adjoint`.
    """
    return _gradient(p, compute_update(p, precision=precision, team=team))


def _gradient(p: Problem, done: FusedUpdate) -> PolicyGradient:
    return PolicyGradient(done.value, named_gradients(done.plan.policy.pieces, done.gradient, p.N if p.batched else None))


def forward_gradient(p: Problem, *, precision: str | None = None) -> PolicyGradient:
    """`jacrec.engine.gradient.forward_gradient` in compiled code, values and tangents together; `unsupported_reason(p, "forward")` must be None.

    Memory does not grow with K. `precision`: as in `adjoint_gradient`.
    """
    return _gradient(p, compute_update(p, form="forward", precision=precision))


def check_precision(precision: str | None) -> None:
    """ValueError unless it is that of the tensors."""
    if precision not in (None, "ieee"):
        raise ValueError(f'precision: expected None or "ieee" on a CPU, got {precision!r}; "tf32" is a format of GPUs')
