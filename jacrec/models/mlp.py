"""The network that all of jacrec's models are: `MLP`, alone, in a stack, or with the layers of another module."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from jacrec.models.activations import ACTIVATIONS
from jacrec.models.layers import Layers, layers_of
from jacrec.models.unmodified import written
from jacrec.models.wrappers import unwrapped
from jacrec.util.errors import expect_one_of

Module = TypeVar("Module", bound=nn.Module)


@written
class Affine(nn.Module):
    """x ↦ x Wᵀ + b; with `stack` = n it holds n sets of W and b, applied to n slices of x.

    `weight` is (out, in) or (n, out, in), `bias` (out,) or (n, out).
    """

    def __init__(self, in_dim: int, out_dim: int, stack: int | None = None):
        super().__init__()
        lead = () if stack is None else (stack,)
        self.weight = nn.Parameter(torch.empty(*lead, out_dim, in_dim))
        self.bias = nn.Parameter(torch.empty(*lead, out_dim))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out); stacked: (n, ..., in) -> (n, ..., out)."""
        return affine(x, self.weight, self.bias)


def affine(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + b for weight (out, in), or slice by slice for weight (n, out, in) and x (n, ..., in)."""
    if weight.dim() == 2:
        return nn.functional.linear(x, weight, bias)
    rows = x.reshape(x.shape[0], -1, x.shape[-1])
    y = torch.bmm(rows, weight.mT) if bias is None else torch.baddbmm(bias.unsqueeze(1), rows, weight.mT)
    return y.reshape(*x.shape[:-1], weight.shape[-2])


@written
class LayerNorm(nn.Module):
    """Normalisation over the features with gain and offset; (width,) or stacked (n, width). ε = 1e-6 as in ReBRAC."""

    eps = 1e-6

    def __init__(self, width: int, stack: int | None = None):
        super().__init__()
        lead = () if stack is None else (stack,)
        self.weight = nn.Parameter(torch.ones(*lead, width))
        self.bias = nn.Parameter(torch.zeros(*lead, width))

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width)."""
        if self.weight.dim() == 1:
            return nn.functional.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)
        lead = (self.weight.shape[0],) + (1,) * (x.dim() - 2) + (-1,)
        y = nn.functional.layer_norm(x, x.shape[-1:], None, None, self.eps)
        return torch.addcmul(self.bias.view(lead), y, self.weight.view(lead))


@written
class MLP(nn.Module):
    """Linear → activation [→ LayerNorm] for each hidden layer, then Linear [→ tanh].

    With `residual`, every hidden layer behind the first that is as wide as the one before adds its input. With `stack` = n
    the module holds n networks of one architecture and maps (n, ..., in) to (n, ..., out).
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        hidden: Sequence[int],
        *,
        activation: str = "relu",
        layer_norm: bool = False,
        residual: bool = False,
        tanh_output: bool = False,
        stack: int | None = None,
    ):
        super().__init__()
        if in_dim < 1 or out_dim < 1 or any(width < 1 for width in hidden) or not hidden:
            raise ValueError(
                f"MLP: expected positive dimensions and at least a hidden layer, got {in_dim} -> {tuple(hidden)} -> {out_dim}"
            )
        self.in_dim, self.out_dim, self.hidden = in_dim, out_dim, tuple(hidden)
        self.activation, self.residual, self.tanh_output, self.stack = activation, residual, tanh_output, stack
        widths = [in_dim, *hidden, out_dim]
        # lists of these classes to a type checker, registered modules to torch
        self.layers = cast("list[Affine]", nn.ModuleList(Affine(a, b, stack) for a, b in pairwise(widths)))
        self.norms = cast("list[LayerNorm]", nn.ModuleList(LayerNorm(width, stack) for width in hidden if layer_norm))
        expect_one_of("activation", activation, ACTIVATIONS)
        self.act = ACTIVATIONS[activation]

    def skips(self, layer: int) -> bool:
        """Whether hidden layer `layer` adds its input to its output."""
        return self.residual and layer > 0 and self.hidden[layer] == self.hidden[layer - 1]

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_dim) -> (..., out_dim); stacked: (n, ..., in_dim) -> (n, ..., out_dim)."""
        return self.after_first(self.layers[0](x))

    def after_first(self, z: Tensor) -> Tensor:
        """The output from the first layer's pre-activation (..., hidden[0])."""
        h = z
        for i in range(len(self.hidden)):
            x, z = h, z if i == 0 else self.layers[i](h)
            h = self.act.value(z)
            if self.norms:
                h = self.norms[i](h)
            if self.skips(i):
                h = h + x
        y = self.layers[-1](h)
        return torch.tanh(y) if self.tanh_output else y

    @classmethod
    def of_layers(cls, layers: Layers, stack: int | None = None) -> "MLP":
        """The network of layers that are another module's: it has their parameters, also those that replace them later."""
        own, (in_dim, *hidden, out_dim) = blank(cls), layers.widths()
        # past `Module.__setattr__`: policies of other classes are read as networks several times in a gradient
        own.__dict__.update(in_dim=in_dim, out_dim=out_dim, hidden=tuple(hidden), stack=stack, residual=False)
        own.__dict__.update(activation=layers.activation, act=ACTIVATIONS[layers.activation], tanh_output=layers.tanh_output)
        for name, kind, tables in (("layers", Affine, layers.linears), ("norms", LayerNorm, layers.norms)):
            own._modules[name] = held = blank(nn.ModuleList)
            held._modules.update({str(i): _holding(kind, table) for i, table in enumerate(tables.values())})
        for norm in own.norms:
            norm.__dict__["eps"] = layers.eps
        return own

    @classmethod
    def of_module(cls, module: nn.Module, caller: str) -> "MLP":
        """The network of an `nn.Sequential`; ValueError in the caller's name if it cannot be read as one."""
        found = layers_of(unwrapped(module)) if isinstance(module, nn.Module) else f"expected an nn.Module, got {module!r}"
        if isinstance(found, str):
            raise ValueError(
                f"{caller}: {found}; other modules are differentiated by torch: give them to the World as they are"
            )
        return cls.of_layers(found)

    def snapshot(self) -> "MLP":
        """The network with its parameters as they are now."""
        own = blank(MLP)
        own.__dict__.update({name: value for name, value in self.__dict__.items() if not name.startswith("_")})
        for name in ("layers", "norms"):
            own._modules[name] = held = blank(nn.ModuleList)
            for i, part in enumerate(getattr(self, name)):
                held._modules[str(i)] = _holding(type(part), {key: p.detach().clone() for key, p in part._parameters.items()})
        for mine, theirs in zip(own.norms, self.norms, strict=True):
            mine.__dict__["eps"] = theirs.eps
        return own

    @torch.no_grad()
    def initialise(self, *, last: float | None = None, hidden_bias: float | None = None) -> None:
        """Weights and biases from U(±1/√fan_in); optionally the last layer from U(±last), hidden biases constant.

        ReBRAC uses last = 1e-3 (actor) or 3e-3 (critics) and hidden_bias = 0.1.
        """
        for layer in self.layers:
            bound = 1.0 / math.sqrt(layer.weight.shape[-1])
            layer.weight.uniform_(-bound, bound)
            layer.bias.uniform_(-bound, bound)
        if hidden_bias is not None:
            for layer in self.layers[:-1]:
                layer.bias.fill_(hidden_bias)
        if last is not None:
            self.layers[-1].weight.uniform_(-last, last)
            self.layers[-1].bias.uniform_(-last, last)


def blank(kind: type[Module]) -> Module:
    """A module of a class, without what its constructor makes."""
    own = kind.__new__(kind)
    nn.Module.__init__(own)
    return own


def _holding(kind: type[Module], table: Mapping[str, Tensor]) -> Module:
    """A layer that has this table of parameters: the table itself, so that what is replaced in it is replaced here."""
    own = blank(kind)
    own.__dict__["_parameters"] = table
    return own


class _StackedLayers(Sequence):
    """The layers of several networks as those of a stack. Each is made when it is asked for, from the parameters as they are."""

    def __init__(self, kind: type[nn.Module], networks: list):
        self.kind, self.networks = kind, networks

    def __len__(self) -> int:
        return len(self.networks[0])

    def __getitem__(self, i: int):
        layers = [network[i] for network in self.networks]
        made = _holding(self.kind, {name: torch.stack([getattr(x, name) for x in layers]) for name in ("weight", "bias")})
        if self.kind is LayerNorm:
            made.eps = layers[0].eps
        return made


@written
class ParallelMLP(MLP):
    """Networks of one architecture, each with parameters of its own, as the stack that they are equal to."""

    def __init__(self, networks: Sequence[MLP]):
        nn.Module.__init__(self)
        first = networks[0]
        self.in_dim, self.out_dim, self.hidden, self.stack = first.in_dim, first.out_dim, first.hidden, len(networks)
        self.activation, self.act, self.residual, self.tanh_output = (
            first.activation,
            first.act,
            first.residual,
            first.tanh_output,
        )
        self.networks = cast("list[MLP]", nn.ModuleList(networks))

    @property
    def layers(self) -> Sequence[Affine]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return _StackedLayers(Affine, [network.layers for network in self.networks])

    def initialise(self, *, last: float | None = None, hidden_bias: float | None = None) -> None:
        """As `MLP.initialise`, each network on its own."""
        for network in self.networks:
            network.initialise(last=last, hidden_bias=hidden_bias)

    @property
    def norms(self) -> Sequence[LayerNorm]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return _StackedLayers(LayerNorm, [network.norms for network in self.networks])
