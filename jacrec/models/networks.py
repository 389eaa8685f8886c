"""The networks of the paper (section 3): policy π_ψ, twin critic Q_φ, reward model r_ξ, denoiser ε̂_θ.

All four are an `MLP` with different inputs and outputs. `MLP.forward` is ordinary differentiable torch; the
hand-written values, tangents and cotangents of the same object are in `jacrec.engine.jacobians.mlp`.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from jacrec.models.mlp import MLP as MLP
from jacrec.models.mlp import Affine as Affine
from jacrec.models.mlp import LayerNorm as LayerNorm
from jacrec.models.mlp import ParallelMLP, blank
from jacrec.models.mlp import affine as affine
from jacrec.models.unmodified import HOOKS as HOOKS
from jacrec.models.unmodified import WRITTEN as WRITTEN
from jacrec.models.unmodified import global_hooks as global_hooks
from jacrec.models.unmodified import has_manual_derivatives as has_manual_derivatives
from jacrec.models.unmodified import is_unmodified as is_unmodified
from jacrec.models.unmodified import methods_of as methods_of
from jacrec.models.unmodified import written as written
from jacrec.util.errors import counted, expect_count, widths


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

    @classmethod
    def from_module(cls, module: nn.Module) -> "Actor":
        """The actor that an `nn.Sequential` of torch's own layers is: it has the module's parameters, not copies.

        Such a policy needs no conversion: it is recognised wherever an actor is. Layers as in `RewardModel.from_module`, and a
        final Tanh.

        Raises:
            ValueError: other layers, or a module with hooks or methods of its own.
        """
        own, mlp = blank(cls), MLP.of_module(module, "Actor.from_module")
        if not mlp.tanh_output:
            raise ValueError("Actor.from_module: expected a Tanh as the last layer, got none; actions lie in [-1, 1]")
        own.state_dim, own.action_dim, own.mlp = mlp.in_dim, mlp.out_dim, mlp
        own.config = _config(mlp, mlp.in_dim, mlp.out_dim)
        return own

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

    @classmethod
    def from_modules(cls, *modules: nn.Module, state_dim: int) -> "TwinCritic":
        """The critic that is the smallest of some `nn.Sequential`s over [state, action], with their parameters, not copies.

        Layers as in `RewardModel.from_module`, the same in all modules.

        Raises:
            ValueError: no module, other layers, or a module with hooks or methods of its own.
        """
        name = "TwinCritic.from_modules"
        expect_count(f"{name}: modules", len(modules), 1)
        state_dim = counted("state_dim", state_dim)
        networks = [MLP.of_module(module, name) for module in modules]
        forms = [(x.in_dim, *_form(x)) for x in networks]
        if len(set(forms)) > 1:
            raise ValueError(f"{name}: expected modules of the same layers, got {' and '.join(map(str, dict.fromkeys(forms)))}")
        if len({id(x) for network in networks for x in network.parameters()}) < sum(
            len(list(x.parameters())) for x in networks
        ):
            raise ValueError(f"{name}: expected modules with parameters of their own, got some that share them")
        own, mlp = blank(cls), ParallelMLP(networks)
        own.state_dim, own.action_dim, own.critics, own.mlp = state_dim, _actions(mlp, state_dim, name), len(networks), mlp
        own.config = _config(mlp, state_dim, own.action_dim) | {"critics": len(networks)}
        return own

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

    @classmethod
    def from_module(cls, module: nn.Module, *, state_dim: int) -> "RewardModel":
        """The reward model that an `nn.Sequential` over [state, action] is: it has the module's parameters, not copies.

        Its layers are Linear, an activation (ReLU, SiLU, GELU, Mish or Tanh, the same everywhere) and a LayerNorm or none, for
        each hidden layer, and a last Linear; Identity, nested Sequential, and Dropout in evaluation mode may lie between. The
        scales are 0 and 1; another layer put into the module later is not seen, other parameters of the same layers are.

        Raises:
            ValueError: other layers, or a module with hooks or methods of its own.
        """
        state_dim = counted("state_dim", state_dim)
        own, mlp = blank(cls), MLP.of_module(module, "RewardModel.from_module")
        own.state_dim, own.action_dim, own.mlp = state_dim, _actions(mlp, state_dim, "RewardModel.from_module"), mlp
        own.config = _config(mlp, state_dim, own.action_dim)
        like = mlp.layers[0].weight.detach()
        for name, value in (("mean", 0.0), ("std", 1.0)):
            own.register_buffer(f"state_{name}", like.new_full((state_dim,), value))
            own.register_buffer(f"reward_{name}", like.new_full((), value))
        return own

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        """(..., d), (..., m) -> (...): the predicted reward in the data's units."""
        x = torch.cat([(state - self.state_mean) / self.state_std, action], -1)
        return self.reward_mean + self.reward_std * self.mlp(x).squeeze(-1)


def _form(mlp: MLP) -> tuple:
    """hidden widths, activation, LayerNorm's ε."""
    return mlp.hidden, mlp.activation, mlp.norms[0].eps if mlp.norms else None, mlp.tanh_output


def _config(mlp: MLP, state_dim: int, action_dim: int) -> dict:
    """The constructor's arguments of a network with such layers."""
    options = dict(activation=mlp.activation, layer_norm=bool(mlp.norms), residual=mlp.residual)
    return dict(state_dim=state_dim, action_dim=action_dim, hidden=list(mlp.hidden), **options)


def _actions(mlp: MLP, state_dim: int, caller: str) -> int:
    """m of a network over [state, action] with one output."""
    expect_count(f"{caller}: state_dim", state_dim, 1)
    if mlp.in_dim <= state_dim or mlp.out_dim != 1 or mlp.tanh_output:
        got = f"{mlp.in_dim} inputs and {mlp.out_dim} outputs{', with a Tanh' if mlp.tanh_output else ''}"
        raise ValueError(f"{caller}: expected more inputs than state_dim = {state_dim} and one output without Tanh, got {got}")
    return mlp.in_dim - state_dim


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
