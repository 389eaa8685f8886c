"""Value, tangent and cotangent passes of an `MLP` for training: few operations, in place where safe, no autograd graph.

The mathematics is that of `jacrec.engine.jacobians.mlp`, with different goals: parameter gradients, summed over the batch,
are written directly into the optimiser's vector, and the heads of a stacked network are processed one after the other,
which suits a CPU's cache.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from jacrec.models.networks import MLP, LayerNorm


@dataclass
class Tape:
    """What the value pass of a batch of B rows stores for the cotangents."""

    inputs: list[Tensor] = field(default_factory=list)  # x_l of every layer, (B, in_l)
    gates: list[Tensor] = field(default_factory=list)  # ReLU: its output; else act'(z_l); (B, hidden[l])
    values: list[Tensor] = field(default_factory=list)  # input of the LayerNorm, (B, hidden[l])
    moments: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # LayerNorm's mean and 1/σ, (B, 1) each
    output: Tensor | None = None  # (B, out), for the slope of tanh

    def rows(self, index: Tensor) -> "Tape":
        """The tape of some of the rows, for input cotangents only."""
        gates = [t.index_select(0, index) for t in self.gates]
        return Tape(
            gates=gates,
            # for ReLU the gate and the LayerNorm's input are the same tensor
            values=[g if v is t else v.index_select(0, index) for g, t, v in zip(gates, self.gates, self.values, strict=False)],
            moments=[(m.index_select(0, index), r.index_select(0, index)) for m, r in self.moments],
            output=None if self.output is None else self.output.index_select(0, index),
        )


def fused_unsupported_reason(parameters: Tensor) -> str | None:
    """Why compiled code cannot update networks with these parameters; None if it can."""
    if parameters.device.type != "cpu":
        return f"the networks are on {parameters.device}, and the fused update requires a CPU"
    if parameters.dtype not in (torch.float32, torch.float64):
        return f"the networks are {parameters.dtype}, and the fused update requires float32 or float64"
    try:
        host = importlib.import_module("jacrec.kernels.cpu.base.host")
    except ImportError as error:
        return f"Numba is not installed ({error})"
    return host.disabled_reason()


def regression_unsupported_reason(mlp: MLP, parameters: Tensor, least_squares: bool = True) -> str | None:
    """Why compiled code cannot make the steps of a regression by `mlp`, whose parameters are these; None if it can."""
    if mlp.stack is not None:
        return "the model is a stack of networks, and the fused step requires a single one"
    if mlp.tanh_output:
        return "the output goes through tanh, and the fused step requires a linear one"
    if not least_squares:
        return "the loss is not a mean squared error, which the fused step requires"
    return fused_unsupported_reason(parameters)


class MLPPass:
    """Passes of an `MLP`, or of one head of a stack. Parameters are read, and gradients written, in place.

    With parameters that have a leading axis of S networks, every batch below is (S, B, ·) instead of (B, ·).

    Args:
        mlp: the network; later in-place changes of its parameters take effect.
        gradients: where `pull` writes, by `mlp.named_parameters()` names; None for no parameter gradients.
        head: index of the network in a stack; None for an unstacked one.
        parameters: parameters to use instead of the network's own, by the same names; one set, or S.
        stacked: whether the S networks are all the heads of a stack.
    """

    def __init__(
        self,
        mlp: MLP,
        gradients: dict[str, Tensor] | None = None,
        head: int | None = None,
        parameters: dict[str, Tensor] | None = None,
        *,
        stacked: bool = False,
    ):
        if (mlp.stack is None) != (head is None) and not (stacked and mlp.stack is not None):
            raise ValueError(f"head: expected {None if mlp.stack is None else f'an index below {mlp.stack}'}, got {head}")
        self.mlp = mlp
        read: Mapping[str, Tensor] = dict(mlp.named_parameters()) if parameters is None else parameters
        self.several = stacked or read["layers.0.bias"].dim() > mlp.layers[0].bias.dim()

        def picked(tensors: Mapping[str, Tensor] | None, prefix: str, suffix: str) -> list[Tensor]:
            if tensors is None:
                return []
            found = [tensors[f"{prefix}.{i}.{suffix}"].detach() for i in range(len(getattr(mlp, prefix)))]
            return found if head is None else [t.select(1 if self.several else 0, head) for t in found]

        self.weights, self.biases = picked(read, "layers", "weight"), picked(read, "layers", "bias")
        self.gains, self.offsets = picked(read, "norms", "weight"), picked(read, "norms", "bias")
        self.weight_bars, self.bias_bars = picked(gradients, "layers", "weight"), picked(gradients, "layers", "bias")
        self.gain_bars, self.offset_bars = picked(gradients, "norms", "weight"), picked(gradients, "norms", "bias")

    def value(self, x: Tensor) -> Tensor:
        """(B, in) -> (B, out)."""
        return self._forward(x, None)

    def record(self, x: Tensor) -> tuple[Tensor, Tape]:
        """(B, in) -> (B, out) and the tape. x must not change until the tape is used."""
        tape = Tape()
        return self._forward(x, tape), tape

    def _forward(self, x: Tensor, tape: Tape | None) -> Tensor:
        mlp, h = self.mlp, x
        for i, width in enumerate(mlp.hidden):
            z = self._affine(i, h)
            value, gate = mlp.act.gated(z) if tape is not None else (mlp.act.value(z), z)
            y = value
            if mlp.norms:
                y, moments = self._normalised(i, value, width)
                if tape is not None:
                    tape.values.append(value)
                    tape.moments.append(moments)
            if tape is not None:
                tape.inputs.append(h)
                tape.gates.append(gate)
            h = y + h if mlp.skips(i) else y
        y = self._affine(-1, h)
        if mlp.tanh_output:
            y.tanh_()
        if tape is not None:
            tape.inputs.append(h)
            tape.output = y if mlp.tanh_output else None
        return y

    def _affine(self, i: int, h: Tensor) -> Tensor:
        if self.several:
            return torch.baddbmm(self.biases[i].unsqueeze(1), h, self.weights[i].mT)
        return torch.addmm(self.biases[i], h, self.weights[i].T)

    def _normalised(self, i: int, value: Tensor, width: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        gain, offset = (None, None) if self.several else (self.gains[i], self.offsets[i])
        y, mean, inv_std = torch.native_layer_norm(value, (width,), gain, offset, LayerNorm.eps)
        if self.several:
            y = torch.addcmul(self.offsets[i].unsqueeze(1), y, self.gains[i].unsqueeze(1))
        return y, (mean, inv_std)

    def push(self, tape: Tape, tangents: Tensor) -> Tensor:
        """Map tangents (J, in) of the inputs of the tape's first J rows to tangents (J, out) of their outputs."""
        mlp, h = self.mlp, tangents
        rows = tangents.shape[-2]
        for i in range(len(mlp.hidden)):
            y = mlp.act.times(h @ self.weights[i].mT, tape.gates[i][..., :rows, :])
            if mlp.norms:
                y = self._normalised_tangent(tape, i, y)
            h = y + h if mlp.skips(i) else y
        y = h @ self.weights[-1].mT
        return y if tape.output is None else torch.ops.aten.tanh_backward(y, tape.output[..., :rows, :])

    def _normalised_tangent(self, tape: Tape, i: int, tangents: Tensor) -> Tensor:
        rows = tangents.shape[-2]
        mean, inv_std = (t[..., :rows, :] for t in tape.moments[i])
        hat = (tape.values[i][..., :rows, :] - mean) * inv_std
        centred = tangents - tangents.mean(-1, keepdim=True)
        gain = self.gains[i].unsqueeze(1) if self.several else self.gains[i]
        return (centred - hat * (hat * tangents).mean(-1, keepdim=True)) * inv_std * gain

    def pull(self, tape: Tape, y_bar: Tensor, *, parameters: bool = True, inputs: bool = False) -> Tensor | None:
        """Backpropagate y_bar (B, out): write the parameters' cotangents to `gradients`, return the input's (B, in) if requested."""
        mlp = self.mlp
        bar = y_bar if tape.output is None else torch.ops.aten.tanh_backward(y_bar, tape.output)
        skipped = bar
        for i in reversed(range(len(mlp.layers))):
            if parameters:
                product = torch.bmm if self.several else torch.mm
                product(bar.mT, tape.inputs[i], out=self.weight_bars[i])
                torch.sum(bar, -2, out=self.bias_bars[i])
            if i == 0:
                return bar @ self.weights[0] if inputs else None
            x_bar = bar @ self.weights[i]
            if i < len(mlp.hidden) and mlp.skips(i):
                x_bar += skipped  # the cotangent of this layer's own output
            skipped = x_bar
            bar = self._hidden(tape, x_bar, i - 1, parameters)
        raise AssertionError("unreachable: the loop returns at layer 0")

    def _hidden(self, tape: Tape, bar: Tensor, i: int, parameters: bool) -> Tensor:
        """z̄_i of hidden layer i from its output's cotangent."""
        if self.mlp.norms and self.several:
            bar = self._stacked_norm_backward(tape, bar, i, parameters)
        elif self.mlp.norms:
            mean, inv_std = tape.moments[i]
            bar, gain_bar, offset_bar = torch.ops.aten.native_layer_norm_backward(
                bar,
                tape.values[i],
                (bar.shape[-1],),
                mean,
                inv_std,
                self.gains[i],
                self.offsets[i],
                (True, parameters, parameters),
            )
            if parameters:
                self.gain_bars[i].copy_(gain_bar)
                self.offset_bars[i].copy_(offset_bar)
        return self.mlp.act.times(bar, tape.gates[i])

    def _stacked_norm_backward(self, tape: Tape, bar: Tensor, i: int, parameters: bool) -> Tensor:
        """The cotangent of LayerNorm i's input, for S gains and offsets."""
        value, (mean, inv_std) = tape.values[i], tape.moments[i]
        if parameters:
            torch.sum(bar * ((value - mean) * inv_std), -2, out=self.gain_bars[i])
            torch.sum(bar, -2, out=self.offset_bars[i])
        bar = bar * self.gains[i].unsqueeze(1)
        return torch.ops.aten.native_layer_norm_backward(
            bar, value, (bar.shape[-1],), mean, inv_std, None, None, (True, False, False)
        )[0]
