"""The gradient ascent step (4), row by row, and the trust region around the pretrained parameters."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from jacrec.engine.parameters import over_rows, parameter_norm, trainable
from jacrec.engine.problem import Problem
from jacrec.engine.shapes import check_finite, readable
from jacrec.engine.types import PolicyGradient
from jacrec.models.world import BatchedPolicy


@dataclass(frozen=True)
class Direction:
    """The direction of a step other than the gradient: ψ ← ψ + α step / length."""

    step: dict[str, Tensor]
    """by parameter name"""
    length: Tensor
    """() or (N,); a row of length zero is left unchanged"""


@torch.no_grad()
def ascend(
    p: Problem,
    estimate: PolicyGradient,
    lr: float,
    max_grad_norm: float | None = None,
    *,
    direction: Direction | None = None,
    allowed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """ψ ← ψ + α ∇Ĵ (4), in place; returns ‖∇Ĵ‖ before clipping and the acceptance, () or (N,) for a `BatchedPolicy`.

    Only parameters with requires_grad count and move. A row is rejected as a whole, and left unchanged to the last bit, if its
    value, its gradient, its step or a norm of them is not finite, or if it is not `allowed`.

    Raises:
        ValueError: on a GPU, before anything moves: the state or the noise is not finite. On a CPU `problem` has checked them.
    """
    parameters = trainable(p.policy)
    gradient = {name: estimate.gradient[name] for name in parameters}
    norm = parameter_norm(gradient, batched=p.batched)
    if not p.batched and direction is None and allowed is None and readable(norm):
        return norm, _plain_step(parameters, gradient, estimate.value, norm, lr, max_grad_norm)
    finite = torch.isfinite(estimate.value).reshape(-1)
    accepted = torch.isfinite(norm * lr) & (finite if p.batched else finite.all())
    steps, factor = gradient, torch.full_like(norm, lr)
    if direction is not None:
        steps = {name: direction.step[name] for name in parameters}
        factor = torch.where(direction.length == 0, torch.zeros_like(factor), factor / direction.length)
        accepted &= torch.isfinite(parameter_norm(steps, batched=p.batched) * factor)
    if allowed is not None:
        accepted &= allowed
    scale = torch.where(accepted, factor, torch.zeros_like(norm))
    if max_grad_norm is not None:
        scale = scale * (max_grad_norm / norm.clamp(min=max_grad_norm)).nan_to_num()
    everything = bool(accepted.all())
    if not everything and not readable(p.state):
        check_finite("noise", p.noise, wait=True)  # first, since it marks rows of the state
        check_finite("state", p.state, wait=True)
    for name, parameter in parameters.items():
        step = steps[name]
        if not everything:  # 0 · NaN is NaN: rejected rows have to be cut out, not scaled away
            step = torch.where(over_rows(accepted, parameter), step, torch.zeros_like(step))
        parameter.addcmul_(step, over_rows(scale, parameter).expand_as(step))
    if p.single and p.batched:
        return norm.squeeze(0), accepted.squeeze(0)
    return norm, accepted


def _plain_step(
    parameters: dict[str, nn.Parameter],
    gradient: dict[str, Tensor],
    value: Tensor,
    norm: Tensor,
    lr: float,
    max_grad_norm: float | None,
) -> Tensor:
    """`ascend` for the most common case in torch, one ψ on the CPU, in Python numbers, which are faster than small tensors."""
    length = norm.item()
    # Python's numbers reach further than those of float32
    accepted = length * lr <= torch.finfo(norm.dtype).max and all(map(math.isfinite, value.reshape(-1).tolist()))
    if accepted:
        clip = 1.0 if max_grad_norm is None else max_grad_norm / max(length, max_grad_norm)
        torch._foreach_add_(list(parameters.values()), list(gradient.values()), alpha=lr * clip)  # pyright: ignore
    return torch.tensor(accepted, device=norm.device)


@torch.no_grad()
def distance(policy: nn.Module, centre: dict[str, Tensor]) -> Tensor:
    """‖ψ − ψ₀‖ from the parameters ψ₀ by name, () or (N,) for a `BatchedPolicy`."""
    moved = {name: p - centre[name] for name, p in trainable(policy).items()}
    return parameter_norm(moved, batched=isinstance(policy, BatchedPolicy))


@torch.no_grad()
def project(policy: nn.Module, centre: dict[str, Tensor], radius: float) -> None:
    """ψ ← the nearest point of the ball ‖ψ − ψ₀‖ <= radius, row by row."""
    far = distance(policy, centre)
    if bool((far <= radius).all()):
        return
    share = radius / far.clamp(min=radius)
    for name, p in trainable(policy).items():
        s = over_rows(share, p)
        # rows inside the ball keep their bits: the arithmetic with share 1 would not
        p.copy_(torch.where(s < 1, centre[name] + s * (p - centre[name]), p))
