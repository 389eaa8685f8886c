"""Values, tangents and cotangents of an `MLP`, by hand (MATH: y = act(x Wᵀ + b), ẏ = act'(z) ⊙ ẋ Wᵀ, x̄ = (ȳ ⊙ act'(z)) W).

A tensor of *rows* carries a value with its tangents: (..., 1+T, width), row 0 the value, rows 1…T the tangents. One
matrix product then serves all of them. Every function starts from the first layer's pre-activation, because the
callers know more about the first layer than the network does (its input is split, partly constant, partly a table).

Stacked networks (`MLP.stack`, or one network per real state) have weights (n, out, in); their arrays start with n.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from jacrec.models.networks import MLP, Affine, LayerNorm, affine


def join(value: Tensor, tangents: Tensor) -> Tensor:
    """(..., w) and (..., T, w) -> rows (..., 1+T, w)."""
    return torch.cat([value.unsqueeze(-2), tangents], -2)


def split(rows: Tensor) -> tuple[Tensor, Tensor]:
    """rows (..., 1+T, w) -> value (..., w), tangents (..., T, w); views."""
    return rows[..., 0, :], rows[..., 1:, :]


def affine_push(layer: Affine, rows: Tensor) -> Tensor:
    """x Wᵀ on all rows, b on the value alone: (..., 1+T, in) -> (..., 1+T, out)."""
    z = affine(rows, layer.weight)
    value = z[..., 0, :]
    value += _aligned(layer.bias, value)
    return z


def mlp_push(mlp: MLP, rows: Tensor) -> Tensor:
    """Value and tangents of the network: rows (..., 1+T, hidden[0]) of z_1 -> rows (..., 1+T, out)."""
    h = rows
    for i in range(len(mlp.hidden)):
        x, z = h, h if i == 0 else affine_push(mlp.layers[i], h)
        value, gate = mlp.act.gated(z[..., 0, :])
        z = mlp.act.times(z, gate.unsqueeze(-2))
        z[..., 0, :] = value
        h = _norm_push(mlp.norms[i], z) if mlp.norms else z
        if mlp.skips(i):
            h += x
    y = affine_push(mlp.layers[-1], h)
    if mlp.tanh_output:
        value = torch.tanh(y[..., 0, :])
        y *= (1 - value * value).unsqueeze(-2)
        y[..., 0, :] = value
    return y


@dataclass
class MLPTape:
    """What a value pass leaves for the cotangents: everything elementwise, nothing multiplied."""

    inputs: list[Tensor] = field(default_factory=list)  # x_l of layers 1…, (..., in_l); kept for parameter cotangents only
    gates: list[Tensor] = field(default_factory=list)  # what multiplies by act'(z_l), (..., hidden[l])
    hats: list[Tensor] = field(default_factory=list)  # LayerNorm's normalised input, (..., hidden[l])
    inv_std: list[Tensor] = field(default_factory=list)  # LayerNorm's 1/σ, (..., 1)
    output_slope: Tensor | None = None  # 1 − tanh², (..., out)


@dataclass
class Cotangents:
    """z̄_l for every layer, first to last: (..., width_l); and the LayerNorms' ȳ, (..., hidden[l])."""

    layers: list[Tensor]
    norms: list[Tensor]


def mlp_record(mlp: MLP, z: Tensor, *, keep_inputs: bool = False) -> tuple[Tensor, MLPTape]:
    """The network's value (..., out) from z_1 (..., hidden[0]), and its tape."""
    tape = MLPTape()
    h = z
    for i in range(len(mlp.hidden)):
        x, z = h, h if i == 0 else mlp.layers[i](h)
        h, gate = mlp.act.gated(z)
        tape.gates.append(gate)
        if mlp.norms:
            norm = mlp.norms[i]
            centred = h - h.mean(-1, keepdim=True)
            inv_std = (centred.square().mean(-1, keepdim=True) + norm.eps).rsqrt()
            hat = centred * inv_std
            tape.hats.append(hat)
            tape.inv_std.append(inv_std)
            h = torch.addcmul(_aligned(norm.bias, hat), hat, _aligned(norm.weight, hat))
        if mlp.skips(i):
            h = h + x
        if keep_inputs:
            tape.inputs.append(h)
    y = mlp.layers[-1](h)
    if mlp.tanh_output:
        y = torch.tanh(y)
        tape.output_slope = 1 - y * y
    return y, tape


def mlp_pull(mlp: MLP, tape: MLPTape, y_bar: Tensor) -> Tensor:
    """z̄_1 for output cotangents y_bar (..., out), or R of them at once, (..., R, out) -> (..., R, hidden[0])."""
    return mlp_cotangents(mlp, tape, y_bar).layers[0]


def mlp_cotangents(mlp: MLP, tape: MLPTape, y_bar: Tensor) -> Cotangents:
    """Every layer's z̄ for output cotangents y_bar (..., out) or (..., R, out)."""
    rows = y_bar.dim() - tape.gates[0].dim()

    def recorded(x: Tensor) -> Tensor:
        return x.unsqueeze(-2) if rows else x

    z_bar = y_bar if tape.output_slope is None else y_bar * recorded(tape.output_slope)
    layers, norms = [z_bar], []
    h_bar = affine(z_bar, mlp.layers[-1].weight.mT)
    for i in reversed(range(len(mlp.hidden))):
        y_bar = h_bar
        if mlp.norms:
            norms.append(y_bar)
            norm, hat = mlp.norms[i], recorded(tape.hats[i])
            g = y_bar * _aligned(norm.weight, y_bar)
            g = g - g.mean(-1, keepdim=True) - hat * (hat * g).mean(-1, keepdim=True)
            y_bar = g * recorded(tape.inv_std[i])
        z_bar = mlp.act.times(y_bar, recorded(tape.gates[i]))
        layers.append(z_bar)
        if i > 0:
            below = affine(z_bar, mlp.layers[i].weight.mT)
            h_bar = below + h_bar if mlp.skips(i) else below
    return Cotangents(layers[::-1], norms[::-1])


def mlp_parameter_pull(mlp: MLP, tape: MLPTape, x: Tensor, y_bar: Tensor) -> dict[str, Tensor]:
    """ȳ ∂y/∂parameters summed over all rows (per stacked network): dict by `mlp.named_parameters()` names.

    x (..., in) is the network's input, y_bar (..., out); the tape must have kept its inputs. The Jacobian stays
    factored: W̄ = z̄ᵀ x per layer.
    """
    bars = mlp_cotangents(mlp, tape, y_bar)
    stacked = mlp.layers[0].weight.dim() == 3

    def flat(t: Tensor) -> Tensor:
        return t.reshape(t.shape[0], -1, t.shape[-1]) if stacked else t.reshape(-1, t.shape[-1])

    gradient = {}
    for i, (z_bar, x_in) in enumerate(zip(bars.layers, [x, *tape.inputs], strict=True)):
        z_bar = flat(z_bar)
        gradient[f"layers.{i}.weight"] = z_bar.mT @ flat(x_in)
        gradient[f"layers.{i}.bias"] = z_bar.sum(-2)
    for i, y_bar in enumerate(bars.norms):
        gradient[f"norms.{i}.weight"] = flat(y_bar * tape.hats[i]).sum(-2)
        gradient[f"norms.{i}.bias"] = flat(y_bar).sum(-2)
    return gradient


def mlp_parameter_rows(mlp: MLP, tape: MLPTape, x: Tensor, y_bar: Tensor) -> dict[str, Tensor]:
    """The same without the sum: x (..., in), y_bar (..., out) or (..., R, out) -> (..., [R,] *shape)."""
    bars = mlp_cotangents(mlp, tape, y_bar)
    rows = y_bar.dim() - x.dim()
    gradient = {}
    for i, (z_bar, x_in) in enumerate(zip(bars.layers, [x, *tape.inputs], strict=True)):
        gradient[f"layers.{i}.weight"] = z_bar.unsqueeze(-1) * (x_in.unsqueeze(-2) if rows else x_in).unsqueeze(-2)
        gradient[f"layers.{i}.bias"] = z_bar
    for i, y_bar in enumerate(bars.norms):
        gradient[f"norms.{i}.weight"] = y_bar * (tape.hats[i].unsqueeze(-2) if rows else tape.hats[i])
        gradient[f"norms.{i}.bias"] = y_bar
    return gradient


def _norm_push(norm: LayerNorm, rows: Tensor) -> Tensor:
    """LayerNorm on rows (..., 1+T, w): ẏ = g ⊙ (ẋ − mean ẋ − x̂ mean(x̂ ⊙ ẋ)) / σ."""
    rows = rows - rows.mean(-1, keepdim=True)
    value = rows[..., 0, :]
    inv_std = (value.square().mean(-1, keepdim=True) + norm.eps).rsqrt()
    hat = value * inv_std
    tangents = rows[..., 1:, :]
    tangents -= hat.unsqueeze(-2) * (hat.unsqueeze(-2) * tangents).mean(-1, keepdim=True)
    rows *= inv_std.unsqueeze(-2) * _aligned(norm.weight, hat).unsqueeze(-2)
    value += _aligned(norm.bias, value)
    return rows


def _aligned(parameter: Tensor, x: Tensor) -> Tensor:
    """A parameter (w,) or stacked (n, w), shaped to broadcast over x (..., w) or (n, ..., w)."""
    if parameter.dim() == 1:
        return parameter
    return parameter.view(parameter.shape[0], *(1,) * (x.dim() - 2), parameter.shape[1])
