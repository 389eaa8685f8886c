"""The networks of the paper (section 3): policy π_ψ, twin critic Q_φ, reward model r_ξ, denoiser ε̂_θ.

All four are an `MLP` with different inputs and outputs. `MLP.forward` is ordinary differentiable torch; the
hand-written values, tangents and cotangents of the same object are in `jacrec.engine.jacobians.mlp`.
"""

import math
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from jacrec.models.activations import ACTIVATIONS
from jacrec.util.errors import counted, expect_one_of, widths

WRITTEN: set[type] = {nn.ModuleList}
"""the classes with hand-written derivatives"""


def written(cls):
    """Class decorator: its forward has hand-written derivatives."""
    WRITTEN.add(cls)
    return cls


def has_manual_derivatives(module: object) -> bool:
    """Whether jacrec's hand-written derivatives hold for this module.

    Not if it or any submodule is a subclass, or has a hook, a parametrisation or a forward of its own; it is then treated as
    third-party.
    """
    if global_hooks():
        return False
    parts = [module]
    # not `modules()`, whose check for cycles is many times slower: this is called at every decision
    for part in parts:  # grows as it goes
        if type(part) not in WRITTEN or not is_unmodified(part):  # pyright: ignore
            return False
        own = part.__dict__["_modules"]
        if own:
            parts.extend(own.values())
    return True


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL_HOOKS = tuple(getattr(torch_module, f"_global{name}") for name in HOOKS)


def global_hooks() -> bool:
    """Whether torch calls a hook with every module."""
    return any(_GLOBAL_HOOKS)


@cache
def methods_of(kind: type) -> frozenset[str]:
    """The names of the methods that decide what a module of this class computes: those beside `nn.Module`'s, and its calls."""
    own = {name for name in dir(kind) if callable(getattr(kind, name))}.difference(dir(nn.Module))
    return frozenset(own | {"forward", "_call_impl", "_wrapped_call_impl"})


def is_unmodified(module: nn.Module) -> bool:
    """Whether a module, its submodules aside, has no hooks and the methods of its class."""
    own = module.__dict__
    hooks = own["_forward_hooks"] or own["_forward_pre_hooks"] or own["_backward_hooks"] or own["_backward_pre_hooks"]
    return not hooks and own.keys().isdisjoint(methods_of(type(module)))


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


@written
class Actor(nn.Module):
    """Deterministic policy π_ψ: state (..., d) -> action (..., m) in [-1, 1] (section 3.3; 3×256 ReLU, tanh as in ReBRAC)."""

    def __init__(
        self,
        state_dim: int,
        action_dim: int,
        hidden: Sequence[int] = (256, 256, 256),
        *,
        activation: str = "relu",
        layer_norm: bool = False,
        residual: bool = False,
    ):
        super().__init__()
        state_dim, action_dim = counted("state_dim", state_dim), counted("action_dim", action_dim)
        hidden = widths("hidden", hidden)
        self.config = dict(
            state_dim=state_dim,
            action_dim=action_dim,
            hidden=list(hidden),
            activation=activation,
            layer_norm=layer_norm,
            residual=residual,
        )
        self.state_dim, self.action_dim = state_dim, action_dim
        self.mlp = MLP(
            state_dim, action_dim, hidden, activation=activation, layer_norm=layer_norm, residual=residual, tanh_output=True
        )
        self.mlp.initialise(last=1e-3, hidden_bias=0.1)

    def forward(self, state: Tensor) -> Tensor:
        """(..., d) -> (..., m) in [-1, 1]."""
        return self.mlp(state)


@written
class TwinCritic(nn.Module):
    """Q_φ: two critics in one stack; calling it returns the smaller (section 3.3; 3×256, Linear → ReLU → LayerNorm)."""

    def __init__(
        self,
        state_dim: int,
        action_dim: int,
        hidden: Sequence[int] = (256, 256, 256),
        *,
        activation: str = "relu",
        layer_norm: bool = True,
        residual: bool = False,
        critics: int = 2,
    ):
        super().__init__()
        state_dim, action_dim = counted("state_dim", state_dim), counted("action_dim", action_dim)
        hidden = widths("hidden", hidden)
        critics = counted("critics", critics)
        self.config = dict(
            state_dim=state_dim,
            action_dim=action_dim,
            hidden=list(hidden),
            activation=activation,
            layer_norm=layer_norm,
            residual=residual,
            critics=critics,
        )
        self.state_dim, self.action_dim, self.critics = state_dim, action_dim, critics
        self.mlp = MLP(
            state_dim + action_dim, 1, hidden, activation=activation, layer_norm=layer_norm, residual=residual, stack=critics
        )
        self.mlp.initialise(last=3e-3, hidden_bias=0.1)

    def both(self, state: Tensor, action: Tensor) -> Tensor:
        """(..., d), (..., m) -> (critics, ...): every critic's value."""
        x = torch.cat([state, action], -1)
        return self.mlp(x.expand(self.critics, *x.shape)).squeeze(-1)

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        """(..., d), (..., m) -> (...): the smallest of the critics."""
        return self.both(state, action).amin(0)


@written
class RewardModel(nn.Module):
    """r_ξ: (s, a) ↦ reward (section 3.2), 3×512 ReLU on standardised states and raw actions.

    The buffers hold the data's scales: states are standardised with (`state_mean`, `state_std`), the output is
    `reward_mean` + `reward_std` · network.
    """

    def __init__(
        self,
        state_dim: int,
        action_dim: int,
        hidden: Sequence[int] = (512, 512, 512),
        *,
        activation: str = "relu",
        layer_norm: bool = False,
        residual: bool = False,
    ):
        super().__init__()
        state_dim, action_dim = counted("state_dim", state_dim), counted("action_dim", action_dim)
        hidden = widths("hidden", hidden)
        self.config = dict(
            state_dim=state_dim,
            action_dim=action_dim,
            hidden=list(hidden),
            activation=activation,
            layer_norm=layer_norm,
            residual=residual,
        )
        self.state_dim, self.action_dim = state_dim, action_dim
        self.mlp = MLP(state_dim + action_dim, 1, hidden, activation=activation, layer_norm=layer_norm, residual=residual)
        self.mlp.initialise()
        self.state_mean: Tensor
        self.state_std: Tensor
        self.reward_mean: Tensor
        self.reward_std: Tensor
        self.register_buffer("state_mean", torch.zeros(state_dim))
        self.register_buffer("state_std", torch.ones(state_dim))
        self.register_buffer("reward_mean", torch.zeros(()))
        self.register_buffer("reward_std", torch.ones(()))

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        """(..., d), (..., m) -> (...): the predicted reward in the data's units."""
        x = torch.cat([(state - self.state_mean) / self.state_std, action], -1)
        return self.reward_mean + self.reward_std * self.mlp(x).squeeze(-1)


@written
class Denoiser(nn.Module):
    """ε̂_θ(u, k, (s, a)) of section 3.1: noisy latent u (..., d), step k, standardised state and action -> (..., d).

    `embedding_dim` sinusoidal features of k enter the first layer, whose action on them is a table of K rows: the
    embedding costs nothing at inference (see `jacrec.engine.jacobians.chain`). With `times` > 1 a step is told by as many
    numbers, each with features of its own.
    """

    def __init__(
        self,
        state_dim: int,
        action_dim: int,
        hidden: Sequence[int] = (256, 256, 256),
        *,
        activation: str = "relu",
        layer_norm: bool = False,
        residual: bool = False,
        embedding_dim: int = 32,
        times: int = 1,
    ):
        super().__init__()
        state_dim, action_dim = counted("state_dim", state_dim), counted("action_dim", action_dim)
        hidden = widths("hidden", hidden)
        embedding_dim, times = counted("embedding_dim", embedding_dim, 2), counted("times", times)
        if embedding_dim % 2:
            raise ValueError(f"embedding_dim: expected a positive even number, got {embedding_dim}")
        self.config = dict(
            state_dim=state_dim,
            action_dim=action_dim,
            hidden=list(hidden),
            activation=activation,
            layer_norm=layer_norm,
            residual=residual,
            embedding_dim=embedding_dim,
            times=times,
        )
        self.state_dim, self.action_dim, self.embedding_dim, self.times = state_dim, action_dim, embedding_dim, times
        self.mlp = MLP(
            2 * state_dim + action_dim + times * embedding_dim,
            state_dim,
            hidden,
            activation=activation,
            layer_norm=layer_norm,
            residual=residual,
        )
        self.mlp.initialise()

    def forward(self, u: Tensor, k: Tensor, state: Tensor, action: Tensor) -> Tensor:
        """u (..., d), k (...) or (..., times) integer or real, standardised state (..., d), action (..., m) -> (..., d)."""
        return self.mlp(torch.cat([u, state, action, self.embed(k).to(u)], -1))

    def embed(self, k: Tensor) -> Tensor:
        """The features of k (...), or of k (..., times): (..., times · embedding_dim), float64."""
        features = step_embedding(k, self.embedding_dim)
        return features if self.times == 1 else features.flatten(-2)

    def split(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The first layer by inputs: W_u (w, d), W_sa (w, d+m), W_t (w, e), b (w,)."""
        first = self.mlp.layers[0]
        d, m = self.state_dim, self.action_dim
        return first.weight[:, :d], first.weight[:, d : 2 * d + m], first.weight[:, 2 * d + m :], first.bias


def step_embedding(k: Tensor, dim: int) -> Tensor:
    """Sinusoids of the step: (...) -> (..., dim), frequencies from 1 to 1e-4 (float64 inside)."""
    angle = k.to(torch.float64).unsqueeze(-1) * step_frequencies(dim, k.device)
    return torch.cat([angle.sin(), angle.cos()], -1)


def step_frequencies(dim: int, device: torch.device | None = None) -> Tensor:
    """Of the features of `step_embedding`, (dim / 2,) float64: from 1 to 1e-4."""
    index = torch.arange(dim // 2, dtype=torch.float64, device=device)
    return torch.exp(index * (-math.log(1e4) / max(dim // 2 - 1, 1)))
