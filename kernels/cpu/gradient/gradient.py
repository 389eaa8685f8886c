"""The fused adjoint form on the CPU: twin of `jacrec.engine.gradient.adjoint_gradient`, and the update that follows from it."""

from dataclasses import dataclass

import numpy as np
import torch
from numba.core import config
from torch import Tensor, nn

from jacrec.engine import gradient as engine
from jacrec.engine.problem import Problem
from jacrec.engine.types import PolicyGradient
from jacrec.kernels.cpu.base.host import entry
from jacrec.kernels.cpu.base.threads import run, workspace
from jacrec.kernels.cpu.gradient import chain, decision, rollout
from jacrec.kernels.cpu.gradient.action import action
from jacrec.kernels.cpu.gradient.plan import DTYPES
from jacrec.kernels.cpu.gradient.prepared import Moved, Prepared, kept, named_gradients, plan_or_reason
from jacrec.models.dynamics import ChainDynamics, EnsembleDynamics, MultiStepDynamics

kept_plan = kept


def unsupported_reason(p: Problem, form: str) -> str | None:
    """Why the CPU kernels cannot compute this gradient's `form`, "forward", "adjoint" or "multistep"; None if they can."""
    if p.state.device.type != "cpu":
        return f"the CPU kernels take tensors on the CPU, got {p.state.device}"
    f = p.world.dynamics
    if isinstance(f, MultiStepDynamics) != (form == "multistep"):
        return f"the {form} form is not that of {type(f).__name__}"
    if isinstance(f, MultiStepDynamics) and f.passes(p.H) < p.H:
        return f"the kernels imagine exactly, not in sweeps={f.sweeps} of {p.H}"
    if form == "forward" and not isinstance(f, ChainDynamics):
        return f"the fused forward form needs a chain (diffusion, flow or MeanFlow), got {type(f).__name__}"
    found = _plan(p)
    return found if isinstance(found, str) else None


def _plan(p: Problem) -> Prepared | str:
    """The problem's plan, or why there is none."""
    if isinstance(p.plan, Prepared):
        return p.plan
    if config.DISABLE_JIT:  # pyright: ignore[reportAttributeAccessIssue]
        return "numba is told not to compile (NUMBA_DISABLE_JIT)"
    return plan_or_reason(p.policy, p.world, p.state)


@dataclass
class CompiledUpdate:
    """A gradient that has been computed and lies where the compiled step finds it."""

    problem: Problem
    plan: Prepared
    job: np.ndarray
    value: Tensor
    """Ĵ, () or (N,)"""
    gradient: Tensor
    """the policies' rows, and behind them what was added up"""
    norm: Tensor
    """‖∇Ĵ‖ of what requires a gradient, () or (N,) for a `BatchedPolicy`; known when the step has been taken"""
    moved: Moved
    memory: int  # numbers of memory that the job needs
    held: tuple  # what it points to besides
    taken: bool = False

    def step(self, lr: float, max_grad_norm: float | None) -> Tensor:
        """`jacrec.control.ascent.ascend`, the plain step, in compiled code: whether it was taken, shaped as `norm`."""
        if self.taken:
            raise RuntimeError("step: expected to be asked once; the gradient belongs to ψ as it was before the step")
        if not self.moved.parameters:
            raise ValueError("policy: expected parameters with requires_grad=True to improve, got none; thaw some of them")
        self.taken = True
        rates, accepted = np.array([lr, max_grad_norm or 0.0]), torch.empty_like(self.norm, dtype=torch.int64)
        self.job[rollout.RATES], self.job[rollout.ACCEPTED] = rates.ctypes.data, accepted.data_ptr()
        run(entry(decision.ascend, DTYPES[self.plan.dtype]), self.job, int(self.job[rollout.PARTS]))
        accepted = accepted.bool()
        if accepted.any():
            torch.autograd.graph.increment_version(self.moved.parameters)
        return accepted

    def act(self, policy: nn.Module, state: Tensor) -> Tensor:
        """The action of a policy, this one or another, at states (N, d) -> (N, m)."""
        p = self.problem
        if policy is not p.policy or state is not p.state:
            return action(policy, state)
        result = state.new_empty(len(state), int(self.job[rollout.ACTION_DIM]))
        self.job[rollout.ACTIONS] = result.data_ptr()
        self.job[rollout.MEMORY] = workspace(self.memory, self.plan.dtype).data_ptr()
        entry(decision.act, DTYPES[self.plan.dtype]).ctypes(self.job.ctypes.data)
        return result


@torch.no_grad()
def compute_update(p: Problem, *, precision: str | None = None, team: int = 1) -> CompiledUpdate:
    """Ĵ and its gradient; `unsupported_reason(p, "adjoint")` must be None. Options as in `adjoint_gradient`."""
    check_precision(precision)
    found = _plan(p)
    if isinstance(found, str):
        raise ValueError(f'kernel="fused": {found}')
    found.refresh()
    job, sized = found.job(p, team)
    N, single, batched = p.N, p.single, p.batched
    state, moved = p.state.contiguous(), found.moved()
    noise, member = _noise(p)
    value = state.new_empty(() if single else N)
    norm = state.new_empty(N if batched and not single else ())
    own = state.new_empty((N if batched else 1) + sized.shares - 1, sized.length)
    memory = workspace(sized.memory, found.dtype).data_ptr()
    # the returns of all rows lie before the threads' shares of the memory
    job[rollout.STATE : rollout.NORMS + 1] = (
        state.data_ptr(),
        noise.data_ptr(),
        memory,
        own.data_ptr(),
        memory + sized.first,
        sized.room,
        value.data_ptr(),
        norm.data_ptr(),
    )
    if member is not None:
        job[rollout.MEMBER] = member.data_ptr()
    job[rollout.PIECES], job[rollout.PIECE_COUNT] = moved.pieces.ctypes.data, len(moved.pieces)
    parts = 1 if batched or len(moved.pieces) < len(found.parameters) else sized.threads
    squares = np.empty(parts)
    job[rollout.PARTS], job[rollout.SQUARES] = parts, squares.ctypes.data
    run(entry(rollout.rollout_gradient, DTYPES[found.dtype]), job, sized.threads)
    run(entry(decision.settle, DTYPES[found.dtype]), job, parts)
    return CompiledUpdate(p, found, job, value, own, norm, moved, sized.memory, (sized, state, noise, member, squares))


def _noise(p: Problem) -> tuple[Tensor, Tensor | None]:
    """The noise as the kernels read it, (N, M, H, rows, d), and the networks that an ensemble's has drawn, (N, M, H)."""
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

    `recompute` changes nothing here: the memory of a tile is bounded anyway (`TAPE_BYTES`). `precision` is that of the
    tensors; anything but None and "ieee" raises ValueError. `team`: as in `Adjoint`.
    """
    done = compute_update(p, precision=precision, team=team)
    gradient = named_gradients(done.plan, done.gradient, p.N if p.batched else 1, p.batched)
    return PolicyGradient(done.value, gradient)


def forward_gradient(p: Problem, *, precision: str | None = None) -> PolicyGradient:
    """`jacrec.engine.gradient.forward_gradient` with the fused chain, values and tangents together; the rest is plain torch."""
    check_precision(precision)
    return engine.forward_gradient(p, chain=chain)


def check_precision(precision: str | None) -> None:
    """ValueError unless it is that of the tensors."""
    if precision not in (None, "ieee"):
        raise ValueError(f'precision: expected None or "ieee" on a CPU, got {precision!r}; "tf32" is a format of GPUs')
