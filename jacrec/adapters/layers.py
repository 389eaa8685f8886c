"""Feed-forward networks of other libraries as jacrec's own `Actor` and `TwinCritic`, which the fused kernels serve.

What stands around a network elsewhere becomes part of its weights, in float64:

* a scaling of observations or actions, (x − mean) / std, of the first layer;
* a clip of scaled observations (Stable-Baselines3's `VecNormalize`), where the activation is ReLU, another first layer:
  clip(x, ±c) = relu(x) − relu(−x) − relu(x − c) + relu(−x − c), which is x itself, to the last bit, where |x| <= c;
* a scaling of rewards, of the critics' last layer;
* the ε of LayerNorm behind ReLU, 1e-5 in torch and 1e-6 in jacrec: LayerNorm with ε of x is LayerNorm with c² ε of c x, and
  relu(c z) = c relu(z), so that c is part of the layer before.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from jacrec.models.layers import ACTIVATIONS
from jacrec.models.networks import MLP, Actor, LayerNorm, TwinCritic, is_unmodified

WITHOUT_EFFECT = (nn.Identity, nn.Dropout)
"""modules that change nothing in evaluation mode"""


LARGEST_SHIFT = 100.0
"""|mean| / std of an observation up to which the scaling becomes part of the weights: beyond it x W − mean W cancels in float32,
where (x − mean) does not"""


@dataclass(frozen=True)
class Norm:
    """A LayerNorm behind an activation."""

    weight: Tensor  # (width,)
    bias: Tensor  # (width,)
    eps: float


@dataclass(frozen=True)
class Layers:
    """A network Linear → activation [→ LayerNorm] → … → Linear [→ tanh], float64."""

    weights: tuple[Tensor, ...]  # (out, in) each
    biases: tuple[Tensor, ...]  # (out,) each
    activation: str = "relu"
    norms: tuple[Norm, ...] = ()
    tanh: bool = False

    def __post_init__(self):
        shapes, biases = [tuple(weight.shape) for weight in self.weights], [tuple(bias.shape) for bias in self.biases]
        norms = [shape for norm in self.norms for shape in (tuple(norm.weight.shape), tuple(norm.bias.shape))]
        widths = [shape[:1] for shape in shapes]
        good = len(shapes) > 1 and all(len(shape) == 2 and 0 not in shape for shape in shapes)
        good = good and biases == widths and [shape[1:] for shape in shapes[1:]] == widths[:-1]
        if not good or norms not in ([], [width for width in widths[:-1] for _ in range(2)]):
            raise ValueError(
                "layers: expected weights (out, in), two or more, each taking what the one before gives, with biases, and any "
                f"LayerNorms as wide, got {shapes} with biases {biases} and LayerNorms {norms}"
            )

    @property
    def hidden(self) -> tuple[int, ...]:
        """Widths of the hidden layers."""
        return tuple(len(bias) for bias in self.biases[:-1])


@dataclass(frozen=True)
class Scaling:
    """What a library does to observations: clip((x − mean) / std, ±clip)."""

    mean: Tensor  # (d,) float64
    std: Tensor  # (d,) float64
    clip: float = math.inf

    def __post_init__(self):
        for name in ("mean", "std"):
            object.__setattr__(self, name, torch.as_tensor(getattr(self, name), dtype=torch.float64).reshape(-1))
        good = self.mean.isfinite().all() and self.std.isfinite().all() and (self.std != 0).all() and self.clip > 0
        if self.mean.shape != self.std.shape or not good:
            raise ValueError(
                "scaling: expected finite means and stds other than 0, as many of each, and a clip > 0, got "
                f"{tuple(self.mean.shape)} and {tuple(self.std.shape)} with clip {self.clip}; train for longer before the conversion"
            )

    @classmethod
    def none(cls, d: int) -> "Scaling":
        """Observations as they are."""
        return cls(torch.zeros(d), torch.ones(d))


def read_layers(module: nn.Module) -> Layers | None:
    """The layers of a network of torch's own modules, nested in any way; None if jacrec's networks cannot express them."""
    parts = list(_flat(module))
    if not all(is_unmodified(part) for part in (*parts, *module.modules())):
        return None
    tanh = bool(parts) and type(parts[-1]) is nn.Tanh
    weights, biases, kinds, norms = [], [], set(), []
    for i, part in enumerate(parts[:-1] if tanh else parts):
        before = type(parts[i - 1]) if i else None
        if type(part) is nn.Linear and before is not nn.Linear:
            weights.append(double(part.weight))
            biases.append(torch.zeros_like(weights[-1][:, 0]) if part.bias is None else double(part.bias))
        elif type(part) in ACTIVATIONS and before is nn.Linear:
            if isinstance(part, nn.GELU) and part.approximate != "none":
                return None
            kinds.add(ACTIVATIONS[type(part)])
        elif (
            isinstance(part, nn.LayerNorm) and type(part) is nn.LayerNorm and before in ACTIVATIONS and part.weight is not None
        ):
            bias = torch.zeros_like(part.weight) if part.bias is None else part.bias
            norms.append(Norm(double(part.weight), double(bias), part.eps))
        else:
            return None
    ends_linear = len(weights) > 1 and type(parts[-2 if tanh else -1]) is nn.Linear
    if not ends_linear or len(kinds) != 1 or len(norms) not in (0, len(weights) - 1):
        return None
    return Layers(tuple(weights), tuple(biases), kinds.pop(), tuple(norms), tanh)


def _flat(module: nn.Module) -> Iterable[nn.Module]:
    """The modules of nested Sequentials in order, without those that have no effect."""
    if type(module) is nn.Sequential:
        for part in module:
            yield from _flat(part)
    elif type(module) not in WITHOUT_EFFECT:
        yield module


def double(x: Any) -> Tensor:
    """A tensor or array of a library as float64 on the CPU.

    Raises:
        ValueError: it does not hold real numbers, or one of them is not finite.
    """
    try:
        given = torch.as_tensor(x if isinstance(x, Tensor) else np.asarray(x)).detach()
        if given.is_complex() or given.layout != torch.strided:
            raise TypeError(f"{given.dtype}, {given.layout}")
        found = given.to("cpu", torch.float64)
    except (RuntimeError, TypeError, ValueError) as error:
        told = " ".join(str(error).split())
        raise ValueError(
            f"weights: expected arrays of real numbers, got {type(x).__name__} ({told}); save them again"
        ) from error
    if not found.isfinite().all():
        raise ValueError(f"weights: expected finite numbers, got others in {tuple(found.shape)}; the training had diverged")
    return found


def as_actor(layers: Layers | None, scaling: Scaling) -> Actor | None:
    """The network behind the scaling as an `Actor`; None if jacrec's networks cannot express it."""
    ready = None if layers is None or not layers.tanh else _ready(layers, scaling, m=0)
    if ready is None:
        return None
    d, m = len(scaling.mean), len(ready.biases[-1])
    actor = _quiet(Actor, d, m, ready.hidden, activation=ready.activation, layer_norm=bool(ready.norms))
    _fill(actor.mlp, [ready])
    return actor.eval()


def as_critic(
    heads: Sequence[Layers | None],
    scaling: Scaling,
    m: int,
    *,
    action_scale: Tensor | None = None,
    action_bias: Tensor | None = None,
    reward_scale: float = 1.0,
) -> TwinCritic | None:
    """The networks of (scaled state, m actions) as a `TwinCritic` of actions in [-1, 1]; None if it cannot express them.

    Args:
        action_scale, action_bias: (m,), what the networks know as the action is scale · a + bias; default: a itself.
        reward_scale: factor on the rewards that the networks learned from; the critic's values are those of the rewards without it.
    """
    d = len(scaling.mean)
    for name, row in (("action_scale", action_scale), ("action_bias", action_bias)):
        if row is not None and row.shape != (m,):
            raise ValueError(f"{name}: expected one number per action, shape ({m},), got {tuple(row.shape)}")
    found: list[Layers] = []
    for head in heads:
        if head is None or head.tanh or head.weights[0].shape[1] != d + m or len(head.biases[-1]) != 1:
            return None
        ready = _ready(_of_unit_actions(head, d, action_scale, action_bias), scaling, m=m)
        if ready is None:
            return None
        found.append(_with_output(ready, 1.0 / reward_scale))
    first = found[0]
    if any((x.hidden, x.activation, len(x.norms)) != (first.hidden, first.activation, len(first.norms)) for x in found):
        return None
    options = dict(activation=first.activation, layer_norm=bool(first.norms), critics=len(found))
    critic = _quiet(TwinCritic, d, m, first.hidden, **options)
    _fill(critic.mlp, found)
    return critic.eval()


def mean_of_outputs(layers: Layers) -> Layers:
    """The network of the mean of all outputs, such as of quantiles."""
    weight, bias = layers.weights[-1].mean(0, keepdim=True), layers.biases[-1].mean(0, keepdim=True)
    return replace(layers, weights=(*layers.weights[:-1], weight), biases=(*layers.biases[:-1], bias))


def _with_output(layers: Layers, factor: float) -> Layers:
    return replace(
        layers,
        weights=(*layers.weights[:-1], layers.weights[-1] * factor),
        biases=(*layers.biases[:-1], layers.biases[-1] * factor),
    )


def _of_unit_actions(layers: Layers, d: int, scale: Tensor | None, bias: Tensor | None) -> Layers:
    """The same network of actions in [-1, 1]."""
    weight, first = layers.weights[0], layers.biases[0]
    if bias is not None:
        first = first + weight[:, d:] @ bias.to(weight)
    if scale is not None:
        weight = torch.cat([weight[:, :d], weight[:, d:] * scale.to(weight)], 1)
    return replace(layers, weights=(weight, *layers.weights[1:]), biases=(first, *layers.biases[1:]))


def _ready(layers: Layers, scaling: Scaling, *, m: int) -> Layers | None:
    """The network of the observation itself, and of m more inputs, with jacrec's ε; None if that is impossible."""
    own = _with_eps(layers)
    if own is None or own.weights[0].shape[1] != len(scaling.mean) + m:
        return None
    if float((scaling.mean / scaling.std).abs().max()) > LARGEST_SHIFT:
        return None
    if not math.isfinite(scaling.clip):
        gain = torch.cat([1.0 / scaling.std, torch.ones(m, dtype=torch.float64)])
        mean = torch.cat([scaling.mean, torch.zeros(m, dtype=torch.float64)])
        weight = own.weights[0] * gain
        return replace(own, weights=(weight, *own.weights[1:]), biases=(own.biases[0] - weight @ mean, *own.biases[1:]))
    return _clipped(own, scaling, m) if own.activation == "relu" and not own.norms else None


def _clipped(layers: Layers, scaling: Scaling, m: int) -> Layers:
    """The network with a first layer that scales and clips the observation and passes m more inputs on."""
    c, d = scaling.clip, len(scaling.mean)
    gain, shift = torch.diag(1.0 / scaling.std), scaling.mean / scaling.std
    rows, beside = torch.zeros(4 * d, m, dtype=torch.float64), torch.zeros(2 * m, d, dtype=torch.float64)
    unit = torch.eye(m, dtype=torch.float64)
    weight = torch.cat(
        [
            torch.cat([torch.cat([gain, -gain, gain, -gain]), rows], 1),
            torch.cat([beside, torch.cat([unit, -unit])], 1),
        ]
    )
    bias = torch.cat([-shift, shift, -shift - c, shift - c, torch.zeros(2 * m, dtype=torch.float64)])
    W, V = layers.weights[0][:, :d], layers.weights[0][:, d:]
    second = torch.cat([W, -W, -W, W, V, -V], 1)
    return replace(layers, weights=(weight, second, *layers.weights[1:]), biases=(bias, *layers.biases))


def _with_eps(layers: Layers) -> Layers | None:
    """The network with the ε of jacrec's LayerNorm; None if its activation is not ReLU and its ε another."""
    factors = [math.sqrt(LayerNorm.eps / norm.eps) if norm.eps > 0 else math.nan for norm in layers.norms]
    if all(x == 1.0 for x in factors):
        return layers
    if layers.activation != "relu" or any(math.isnan(x) for x in factors):
        return None
    factors.append(1.0)
    return replace(
        layers,
        weights=tuple(x * w for x, w in zip(factors, layers.weights, strict=True)),
        biases=tuple(x * b for x, b in zip(factors, layers.biases, strict=True)),
    )


def _quiet(kind: type, *args, **options):
    """A new network; torch's random numbers go on as if there were none."""
    with torch.random.fork_rng(devices=[]):
        return kind(*args, **options)


@torch.no_grad()
def _fill(mlp: MLP, heads: Sequence[Layers]) -> None:
    """Give a network, or a stack of them, these weights."""

    def put(parameter: Tensor, values: Sequence[Tensor]) -> None:
        parameter.copy_(torch.stack(list(values)).reshape(parameter.shape))

    for i, layer in enumerate(mlp.layers):
        put(layer.weight, [head.weights[i] for head in heads])
        put(layer.bias, [head.biases[i] for head in heads])
    for i, norm in enumerate(mlp.norms):
        put(norm.weight, [head.norms[i].weight for head in heads])
        put(norm.bias, [head.norms[i].bias for head in heads])
