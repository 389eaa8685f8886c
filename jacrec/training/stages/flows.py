"""Training examples of flow matching and MeanFlow: points on the paths between transitions and noise, at continuous times.

MeanFlow's gradient is computed by hand: the network's value for the whole batch, one tangent for the rows that need it,
pushed through the same layers, and the usual cotangents.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from jacrec.models.dynamics.flow import TIME_SCALE
from jacrec.training.stages.examples import Batch, Examples, Push

ADAPTIVE_FLOOR = 0.01
"""c in MeanFlow's adaptive weight 1/(‖Δ‖² + c)^p, where ‖Δ‖² is the mean over dimensions"""


def draw_times(shape: tuple[int, ...], distribution: str, mean: float, std: float, generator: torch.Generator) -> Tensor:
    """Times in (0, 1) of the given shape, float64: "logit-normal", sigmoid(mean + std n), or "uniform"."""
    if distribution == "uniform":
        return torch.rand(shape, generator=generator, dtype=torch.float64)
    return torch.sigmoid(mean + std * torch.randn(shape, generator=generator, dtype=torch.float64))


def times_and_spans(times: Tensor, moving: int) -> Tensor:
    """From pairs of draws (..., B, 2): [t, t − r], with t the larger and r the smaller; r = t in the rows from `moving` on."""
    r, t = times.amin(-1), times.amax(-1)
    span = t - r
    span[..., moving:] = 0
    return torch.stack([t, span], -1)


@dataclass(frozen=True)
class FlowExamples(Examples):
    """Flow matching: x = [(1 − t) target + t noise, s, a, time features]; the goal is noise − target, or the target."""

    frequency: Tensor
    """of the time features, (e / 2,)"""
    of_velocity: bool
    """whether the goal is the velocity (otherwise the target)"""

    def __call__(self, index: Tensor, *random: Tensor) -> Batch:
        """The batch of these rows. `random` is times (..., B, n), the first of which is t, and noise (..., B, d)."""
        times, noise = random
        s_a, target = self.columns(index)
        x, _ = self.inputs(s_a, target, times, noise)
        return Batch(x, noise - target if self.of_velocity else target)

    def inputs(self, s_a: Tensor, target: Tensor, times: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The inputs x (..., B, in), and the time features (..., B, n, e)."""
        angle = (TIME_SCALE * times).unsqueeze(-1) * self.frequency
        features = torch.cat([angle.sin(), angle.cos()], -1)
        return torch.cat([torch.lerp(target, noise, times[..., :1]), s_a, features.flatten(-2)], -1), features


@dataclass(frozen=True)
class MeanFlowBatch(Batch):
    """Goals of MeanFlow at r = t, and the corrections for r < t: the batch's first J rows."""

    tangent: Tensor = field(kw_only=True)
    """of the inputs of these rows along (v, 0, 1), (..., J, in)"""
    span: Tensor = field(kw_only=True)
    """t − r, (..., J, 1)"""
    keep: Tensor | None = field(kw_only=True)
    """r / t if the network predicts x0, (..., J, 1)"""
    power: float = field(kw_only=True)
    """exponent p of the adaptive weight"""

    def loss_and_gradient(self, prediction: Tensor, push: Push) -> tuple[Tensor, Tensor]:
        """As `Batch.loss_and_gradient`, for MeanFlow's goals. The returned loss is without the adaptive weights.

        Velocity: the goal is v − (t − r) du/dt. x0, X = z − t u: the same identity in X has the goal
        x + (t − r)/t (X − x) − (t − r) dX/dt.
        """
        rate = push(self.tangent)
        error = prediction.sub_(self.goal)
        moving = error[..., : rate.shape[-2], :]
        if self.keep is not None:
            moving *= self.keep
        moving += rate.mul_(self.span)
        row = error.square().mean(-1, keepdim=True)
        loss = row.mean((-2, -1))
        if self.power:
            error.mul_(row.add_(ADAPTIVE_FLOOR).pow_(-self.power))
        return loss, error.mul_(2 / (error.shape[-2] * error.shape[-1]))


@dataclass(frozen=True)
class MeanFlowExamples(FlowExamples):
    """MeanFlow: as flow matching, with the tangents of the first `moving` rows; times are [t, t − r]."""

    least_squares = False
    moving: int
    """J, the number of rows with r < t, which come first in the batch"""
    power: float
    """exponent p of the adaptive weight"""

    def __call__(self, index: Tensor, *random: Tensor) -> MeanFlowBatch:
        """The batch of these rows. `random` is times (..., B, 2) as `times_and_spans` returns, and noise (..., B, d)."""
        times, noise = random
        s_a, target = self.columns(index)
        x, features = self.inputs(s_a, target, times, noise)
        velocity = noise - target
        sine, cosine = features[..., : self.moving, :, :].chunk(2, -1)
        rate = TIME_SCALE * self.frequency  # d features / dt, the same for t and t − r
        still = torch.zeros_like(s_a[..., : self.moving, :])
        features_rate = torch.cat([rate * cosine, -rate * sine], -1).flatten(-2)
        tangent = torch.cat([velocity[..., : self.moving, :], still, features_rate], -1)
        t, span = times[..., : self.moving, :1], times[..., : self.moving, 1:]
        keep = None if self.of_velocity else 1 - span / t
        return MeanFlowBatch(
            x, velocity if self.of_velocity else target, tangent=tangent, span=span, keep=keep, power=self.power
        )
