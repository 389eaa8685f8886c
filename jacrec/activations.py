"""Elementwise activations with their derivatives, as functions of the pre-activation z."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Activation:
    """`value(z)` and `slope(z)` = (act(z), act'(z)), same shape as z."""

    name: str
    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], tuple[Tensor, Tensor]]


def _relu(z: Tensor) -> tuple[Tensor, Tensor]:
    positive = (z > 0).to(z.dtype)
    return z * positive, positive


def _silu(z: Tensor) -> tuple[Tensor, Tensor]:
    gate = torch.sigmoid(z)
    value = z * gate
    return value, gate + value * (1 - gate)


def _mish(z: Tensor) -> tuple[Tensor, Tensor]:
    soft = torch.tanh(functional.softplus(z))
    return z * soft, soft + z * torch.sigmoid(z) * (1 - soft * soft)


def _tanh(z: Tensor) -> tuple[Tensor, Tensor]:
    value = torch.tanh(z)
    return value, 1 - value * value


def _gelu(z: Tensor) -> tuple[Tensor, Tensor]:
    normal_cdf = 0.5 * (1 + torch.erf(z / math.sqrt(2)))
    return z * normal_cdf, normal_cdf + z * torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)


ACTIVATIONS = {
    "relu": Activation("relu", torch.relu, _relu),
    "silu": Activation("silu", functional.silu, _silu),
    "mish": Activation("mish", functional.mish, _mish),
    "tanh": Activation("tanh", torch.tanh, _tanh),
    "gelu": Activation("gelu", functional.gelu, _gelu),
}

