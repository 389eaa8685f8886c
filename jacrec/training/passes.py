"""Value and cotangent passes of an `MLP` for training: few operations, in place where that is safe, no autograd graph.

The same mathematics as `jacrec.jacobians.mlp`, with other aims: gradients summed over the batch are written straight
into the optimiser's vector, and a stacked network is worked through one head after the other, which is what a CPU's
cache likes best.
"""

import importlib
from dataclasses import dataclass, field

import torch
from torch import Tensor

from jacrec.networks import MLP, LayerNorm


@dataclass
class Tape:
    """What the value pass of a batch of B rows leaves for the cotangents."""

    inputs: list[Tensor] = field(default_factory=list)  # x_l of every layer, (B, in_l)
    gates: list[Tensor] = field(default_factory=list)  # ReLU: its output; else act'(z_l); (B, hidden[l])
    values: list[Tensor] = field(default_factory=list)  # input of the LayerNorm, (B, hidden[l])
    moments: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # LayerNorm's mean and 1/σ, (B, 1) each
    output: Tensor | None = None  # (B, out), for the slope of tanh

    def rows(self, index: Tensor) -> "Tape":
        """The tape of some of the rows, for input cotangents alone."""
        gates = [t.index_select(0, index) for t in self.gates]
        return Tape(
            gates=gates,
            # after a ReLU the gate and the LayerNorm's input are one tensor
            values=[g if v is t else v.index_select(0, index) for g, t, v in zip(gates, self.gates, self.values, strict=False)],
            moments=[(m.index_select(0, index), r.index_select(0, index)) for m, r in self.moments],
            output=None if self.output is None else self.output.index_select(0, index),
        )


def why_not_fused(parameters: Tensor) -> str | None:
    """Why compiled code cannot update networks with these parameters; None where it can."""
    if parameters.device.type != "cpu":
        return f"the networks are on {parameters.device}, and the fused update is for a CPU"
    if parameters.dtype not in (torch.float32, torch.float64):
        return f"the networks are {parameters.dtype}, and the fused update is for float32 and float64"
    try:
        importlib.import_module("numba")
    except ImportError as error:
        return f"Numba is missing ({error})"
    return None


class MLPPass:
    """One head of an `MLP` (head = None: an unstacked one) whose parameters are read and whose gradients are written in place.

    Args:
        mlp: the network; later changes of its parameters in place are seen.
        gradients: where `pull` writes, by `mlp.named_parameters()` names; None if no parameter gradients are wanted.
        head: which network of a stack.
    """

    def __init__(self, mlp: MLP, gradients: dict[str, Tensor] | None = None, head: int | None = None):
        def pick(tensor: Tensor) -> Tensor:
            return tensor.detach() if head is None else tensor.detach()[head]

        def picked(prefix: str, count: int, suffix: str) -> list[Tensor]:
            return [pick(gradients[f"{prefix}.{i}.{suffix}"]) for i in range(count)] if gradients else []

        if (mlp.stack is None) != (head is None):
            raise ValueError(f"MLPPass: expected head = {None if mlp.stack is None else 'an index'}, got {head}")
        self.mlp = mlp
        self.weights = [pick(layer.weight) for layer in mlp.layers]
        self.biases = [pick(layer.bias) for layer in mlp.layers]
        self.gains = [pick(norm.weight) for norm in mlp.norms]
        self.offsets = [pick(norm.bias) for norm in mlp.norms]
        self.weight_bars = picked("layers", len(mlp.layers), "weight")
        self.bias_bars = picked("layers", len(mlp.layers), "bias")
        self.gain_bars = picked("norms", len(mlp.norms), "weight")
        self.offset_bars = picked("norms", len(mlp.norms), "bias")

    def value(self, x: Tensor) -> Tensor:
        """(B, in) -> (B, out)."""
        return self._forward(x, None)

    def record(self, x: Tensor) -> tuple[Tensor, Tape]:
        """(B, in) -> (B, out) and the tape. Until the tape is used, x must stay as it is."""
        tape = Tape()
        return self._forward(x, tape), tape

    def _forward(self, x: Tensor, tape: Tape | None) -> Tensor:
        mlp, h = self.mlp, x
        for i, width in enumerate(mlp.hidden):
            z = torch.addmm(self.biases[i], h, self.weights[i].T)
            value, gate = mlp.act.gated(z) if tape is not None else (mlp.act.value(z), z)
            y = value
            if mlp.norms:
                y, *moments = torch.native_layer_norm(value, (width,), self.gains[i], self.offsets[i], LayerNorm.eps)
                if tape is not None:
                    tape.values.append(value)
                    tape.moments.append((moments[0], moments[1]))
            if tape is not None:
                tape.inputs.append(h)
                tape.gates.append(gate)
            h = y + h if mlp.skips(i) else y
        y = torch.addmm(self.biases[-1], h, self.weights[-1].T)
        if mlp.tanh_output:
            y.tanh_()
        if tape is not None:
            tape.inputs.append(h)
            tape.output = y if mlp.tanh_output else None
        return y

    def pull(self, tape: Tape, y_bar: Tensor, *, parameters: bool = True, inputs: bool = False) -> Tensor | None:
        """Cotangents for the output's y_bar (B, out): the parameters' into their vector, the input's (B, in) as the answer."""
        mlp = self.mlp
        bar = y_bar if tape.output is None else torch.ops.aten.tanh_backward(y_bar, tape.output)
        skipped = bar
        for i in reversed(range(len(mlp.layers))):
            if parameters:
                torch.mm(bar.T, tape.inputs[i], out=self.weight_bars[i])
                torch.sum(bar, 0, out=self.bias_bars[i])
            if i == 0:
                return bar @ self.weights[0] if inputs else None
            x_bar = bar @ self.weights[i]
            if i < len(mlp.hidden) and mlp.skips(i):
                x_bar += skipped  # the cotangent of this layer's own output
            skipped = x_bar
            bar = self._hidden(tape, x_bar, i - 1, parameters)
        raise AssertionError("a network has a first layer")

    def _hidden(self, tape: Tape, bar: Tensor, i: int, parameters: bool) -> Tensor:
        """z̄_i of hidden layer i from its output's cotangent."""
        if self.mlp.norms:
            mean, inv_std = tape.moments[i]
            bar, gain_bar, offset_bar = torch.ops.aten.native_layer_norm_backward(
                bar, tape.values[i], (bar.shape[-1],), mean, inv_std, self.gains[i], self.offsets[i],
                (True, parameters, parameters),
            )  # fmt: skip
            if parameters:
                self.gain_bars[i].copy_(gain_bar)
                self.offset_bars[i].copy_(offset_bar)
        return self.mlp.act.times(bar, tape.gates[i])
