"""Elementwise activations, and multiplication by their derivatives for tangents and cotangents."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Activation:
    """act(z); and act(z) with a *gate*, stored to multiply by act'(z) later. All elementwise, gate shaped as z."""

    name: str
    value: Callable[[Tensor], Tensor]
    """z -> act(z)"""
    gated: Callable[[Tensor], tuple[Tensor, Tensor]]
    """z -> act(z), gate"""
    times: Callable[[Tensor, Tensor], Tensor]
    """x, gate -> x ⊙ act'(z), broadcasting the gate"""


def _relu(z: Tensor) -> tuple[Tensor, Tensor]:
    value = torch.relu(z)
    return value, value  # the slope follows from the value: nothing else is stored


def _relu_times(x: Tensor, gate: Tensor) -> Tensor:
    return torch.ops.aten.threshold_backward(x, gate, 0)


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
    "relu": Activation("relu", torch.relu, _relu, _relu_times),
    "silu": Activation("silu", functional.silu, _silu, torch.mul),
    "mish": Activation("mish", functional.mish, _mish, torch.mul),
    "tanh": Activation("tanh", torch.tanh, _tanh, torch.mul),
    "gelu": Activation("gelu", functional.gelu, _gelu, torch.mul),
}
