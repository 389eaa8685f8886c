"""One update of ψ, computed before it is applied: in torch, or in the memory of compiled kernels."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor, nn

from jacrec.control.ascent import Direction, ascend
from jacrec.engine.dispatch import CompiledUpdate
from jacrec.engine.methods import Method, compiled_update
from jacrec.engine.problem import Problem
from jacrec.engine.types import PolicyGradient
from jacrec.models.world import policy_action


class GateRecord(NamedTuple):
    """What a signal gate did (`jacrec.experimental.gate`), () or (N,) per update."""

    snr: Tensor
    """signal-to-noise ratio of the gradient"""
    particles: Tensor
    """particles drawn"""
    gated: Tensor
    """whether the step was finite but held back for lack of signal"""


class UpdateResult(NamedTuple):
    """Outcome of an applied update: () for a single ψ, (N,) for a `BatchedPolicy`."""

    gradient_norm: Tensor
    accepted: Tensor
    gate: GateRecord | None = None


class Update(Protocol):
    """A step of ψ that has been computed and not yet applied."""

    @property
    def value(self) -> Tensor:
        """Ĵ at the present ψ, () or (N,)."""
        ...

    def apply(self) -> UpdateResult:
        """Take the step, once; rows whose value, gradient or step is not finite are left unchanged and not accepted."""
        ...

    def act(self, policy: nn.Module, state: Tensor) -> Tensor:
        """A policy's action at states (N, d) -> (N, m), evaluated as the update was."""
        ...


@dataclass(frozen=True)
class TorchUpdate:
    """A step along torch tensors: the gradient, or another direction."""

    problem: Problem
    estimate: PolicyGradient
    lr: float
    max_grad_norm: float | None = None
    direction: Direction | None = None
    allowed: Tensor | None = None  # rows that may move; None: all

    @property
    def value(self) -> Tensor:
        return self.estimate.value

    def apply(self) -> UpdateResult:
        done = ascend(self.problem, self.estimate, self.lr, self.max_grad_norm, direction=self.direction, allowed=self.allowed)
        return UpdateResult(*done)

    def act(self, policy: nn.Module, state: Tensor) -> Tensor:
        return policy_action(policy, state)


class KernelUpdate:
    """The plain step in the memory of the CPU kernels, with its step size."""

    def __init__(self, compiled: CompiledUpdate, lr: float, max_grad_norm: float | None):
        self.compiled, self.lr, self.max_grad_norm = compiled, lr, max_grad_norm
        self.value, self.act = compiled.value, compiled.act

    def apply(self) -> UpdateResult:
        accepted = self.compiled.step(self.lr, self.max_grad_norm)
        return UpdateResult(self.compiled.norm, accepted)


def compute_update(problem: Problem, method: Method, lr: float, max_grad_norm: float | None = None) -> Update:
    """Compute the plain step (4), in compiled code if `method` computes the gradient there."""
    compiled = compiled_update(method, problem)
    if compiled is not None:
        return KernelUpdate(compiled, lr, max_grad_norm)
    return TorchUpdate(problem, method.gradient(problem), lr, max_grad_norm)
