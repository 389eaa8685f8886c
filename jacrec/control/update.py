"""One update of ψ, computed before it is applied: in compiled code if the method supports it, else in torch."""

from dataclasses import dataclass

from torch import Tensor, nn

from jacrec.control.ascent import Direction, ascend
from jacrec.engine.methods import Method, compiled_update, resolved
from jacrec.engine.problem import Problem
from jacrec.engine.types import PolicyGradient, Update, UpdateResult
from jacrec.models.world import policy_action


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
        return UpdateResult(self.value, *done)

    def action(self, policy: nn.Module, state: Tensor) -> Tensor:
        return policy_action(policy, state)


def compute_update(problem: Problem, method: Method, lr: float, max_grad_norm: float | None = None) -> Update:
    """Compute the plain step (4), in compiled code if `method` computes the gradient there."""
    chosen = resolved(method, problem)
    compiled = compiled_update(chosen, problem, lr, max_grad_norm, checked=chosen is not method)
    return compiled or TorchUpdate(problem, chosen.gradient(problem), lr, max_grad_norm)
