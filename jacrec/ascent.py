"""The policy update (4): plain gradient ascent, row by row, with nothing done where something is not finite."""

import torch
from torch import Tensor, nn

from jacrec.shapes import Problem
from jacrec.types import PolicyGradient
from jacrec.world import BatchedPolicy


@torch.no_grad()
def ascend(p: Problem, estimate: PolicyGradient, lr: float, max_grad_norm: float | None = None) -> tuple[Tensor, Tensor]:
    """ψ ← ψ + α ∇Ĵ (4), in place; returns the norm before clipping and the acceptance, () or (N,) for a `BatchedPolicy`.

    A row is rejected whole if its value, its gradient or the gradient's norm is not finite: its ψ keeps every bit.
    """
    norm = parameter_norm(estimate.gradient, batched=p.batched)
    finite = torch.isfinite(estimate.value).reshape(-1)
    accepted = torch.isfinite(norm * lr) & (finite if p.batched else finite.all())
    scale = accepted.to(norm.dtype) * lr  # torch.where(accepted, lr, 0.0) would round lr to float32
    if max_grad_norm is not None:
        scale = scale * (max_grad_norm / norm.clamp(min=max_grad_norm)).nan_to_num()
    everything = bool(accepted.all())
    for name, parameter in p.policy.named_parameters():
        step, row = estimate.gradient[name], scale.view(-1, *(1,) * (parameter.dim() - 1)) if p.batched else scale
        if not everything:  # 0 · NaN is NaN: rejected rows have to be cut out, not scaled away
            keep = accepted.view_as(row) if p.batched else accepted
            step = torch.where(keep, step, torch.zeros_like(step))
        parameter.addcmul_(step, row.expand_as(step))
    if p.single and p.batched:
        return norm.squeeze(0), accepted.squeeze(0)
    return norm, accepted


def parameter_norm(tensors: dict[str, Tensor], *, batched: bool) -> Tensor:
    """The Euclidean norm over all parameters together: (), or (N,) with a leading axis N."""
    start = 1 if batched else 0
    norms = [torch.linalg.vector_norm(t, dim=tuple(range(start, t.dim()))) for t in tensors.values()]
    return torch.linalg.vector_norm(torch.stack(norms), dim=0)


class TrustRegion:
    """The ball ‖ψ − ψ₀‖ <= radius around the pretrained parameters; radius None is all of space."""

    def __init__(self, centre: dict[str, Tensor], radius: float | None):
        self.centre, self.radius = centre, radius

    @torch.no_grad()
    def distance(self, policy: nn.Module, *, batched: bool) -> Tensor:
        """‖ψ − ψ₀‖, () or (N,)."""
        return parameter_norm({k: p - self.centre[k] for k, p in policy.named_parameters()}, batched=batched)

    @torch.no_grad()
    def project(self, policy: nn.Module) -> None:
        """ψ ← its nearest point in the ball, row by row."""
        if self.radius is None:
            return
        batched = isinstance(policy, BatchedPolicy)
        distance = self.distance(policy, batched=batched)
        if bool((distance <= self.radius).all()):
            return
        share = (self.radius / distance.clamp(min=self.radius)).clamp(max=1.0)
        for name, p in policy.named_parameters():
            s = share.view(-1, *(1,) * (p.dim() - 1)) if batched else share
            # rows inside the ball keep their bits: lerp with weight 1 would not
            p.copy_(torch.where(s < 1, self.centre[name] + s * (p - self.centre[name]), p))
