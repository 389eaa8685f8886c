"""Policies and critics that were trained by CORL's scripts td3_bc.py (torch) and rebrac.py (JAX)."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jacrec.adapters.layers import Layers, Norm, Scaling, as_actor, as_critic, double
from jacrec.adapters.parts import Parts
from jacrec.adapters.weights import expect_states, load_weights
from jacrec.envs.actions import ActionBox
from jacrec.util.errors import real

FLAX_EPS = 1e-6
"""ε of flax's LayerNorm"""


def from_corl(
    source: Mapping[str, Any] | str | Path,
    *,
    state_mean: Any = None,
    state_std: Any = None,
    max_action: float = 1.0,
    discount: float = 0.99,
) -> Parts:
    """Policy and critic of CORL's TD3+BC or ReBRAC: an `Actor` and a `TwinCritic`, on the fused kernels' path.

    Args:
        source: for TD3+BC a checkpoint_*.pt, or its content: {"actor", "critic_1", "critic_2"} with torch's state dicts. For ReBRAC
            {"actor": params, "critic": params}, the flax parameters of the two train states.
        state_mean, state_std: (d,), by which the script normalised states. CORL adds 1e-3 to the std of the data set. They are not in
            the checkpoint. Required for TD3+BC, which normalises by default (give 0 and 1 for normalize=False).
        max_action: the largest action of the environment, TD3+BC's factor on the actor's tanh.
        discount: γ, the script's own.

    A script that changed the rewards (normalize_reward) has a critic of those: train the world model on the same rewards.

    Raises:
        ValueError: another layout, or TD3+BC without mean and std.
        FileNotFoundError: no file there.
    """
    content = load_weights(source) if isinstance(source, str | Path) else source
    keys = set(content) if isinstance(content, Mapping) else set()
    if {"actor", "critic_1", "critic_2"} <= keys:
        expect_states({name: content[name] for name in ("actor", "critic_1", "critic_2")}, "a state dict of CORL's TD3+BC")
        actor = _sequential(content["actor"], "actor", tanh=True)
        heads = [_sequential(content[name], name, tanh=False) for name in ("critic_1", "critic_2")]
        if state_mean is None or state_std is None:
            raise ValueError(
                "state_mean, state_std: expected those of TD3+BC's training, which are not in its checkpoint, got none; give the "
                "data's mean and its std + 1e-3, or 0 and 1 for a training with normalize=False"
            )
    elif {"actor", "critic"} <= keys:
        if max_action != 1.0:
            raise ValueError(
                f"max_action: expected 1 for ReBRAC, whose networks know the tanh itself, got {max_action}; omit it"
            )
        actor = _flax(content["actor"], "actor", tanh=True)[0]
        heads = _flax(content["critic"], "critic", tanh=False)
    else:
        raise ValueError(
            "source: expected the entries actor, critic_1 and critic_2 of CORL's TD3+BC, or actor and critic of its ReBRAC, got "
            f"{sorted(map(str, keys)) or type(content).__name__}"
        )
    d, m = actor.weights[0].shape[1], len(actor.biases[-1])
    mean, std = _row("state_mean", _or(state_mean, 0.0), d), _row("state_std", _or(state_std, 1.0), d)
    if not (mean.isfinite().all() and std.isfinite().all() and (std > 0).all()):
        raise ValueError(
            f"state_mean, state_std: expected finite numbers, and stds > 0, got means from {float(mean.min()):g} to "
            f"{float(mean.max()):g} and stds from {float(std.min()):g} to {float(std.max()):g}; give the data's mean and its std + 1e-3"
        )
    scaling = Scaling(mean, std)
    max_action = real("max_action", max_action)
    policy = as_actor(actor, scaling)
    critic = as_critic(heads, scaling, m, action_scale=torch.full((m,), float(max_action)))
    if policy is None or critic is None:
        raise ValueError(f"source: expected an actor of d = {d} and critics of d + m = {d + m} inputs, got others")
    return Parts(policy, critic, discount, ActionBox((-max_action,), (max_action,)), d, m)


def _row(name: str, values: Any, d: int) -> Tensor:
    """One number per observation, given as such, as one for all, or with an axis of 1 in front; float64."""
    try:
        row = np.asarray(values, np.float64)
        row = np.broadcast_to(row[0] if row.ndim == 2 and len(row) == 1 else row, (d,))
    except (TypeError, ValueError):
        shape = np.shape(values) if not isinstance(values, str) else values
        raise ValueError(f"{name}: expected d = {d} numbers, as many as the actor takes, or one for all, got {shape}") from None
    return torch.from_numpy(row.copy())


def _or(value: Any, default: float) -> Any:
    return default if value is None else value


def _sequential(state: Mapping[str, Any], name: str, *, tanh: bool) -> Layers:
    """The layers of a state dict net.0, net.2, … of Linear with ReLU between."""
    found = {key: value for key, value in state.items() if re.fullmatch(r"net\.\d+\.(weight|bias)", str(key))}
    numbers = sorted({int(key.split(".")[1]) for key in found})
    if set(found) != set(state) or len(found) != 2 * len(numbers) or numbers != list(range(0, 2 * len(numbers), 2)):
        raise ValueError(f"{name}: expected entries net.0.weight, net.0.bias, net.2.weight, …, got {sorted(map(str, state))}")
    weights, biases = ([double(found[f"net.{i}.{part}"]) for i in numbers] for part in ("weight", "bias"))
    return Layers(tuple(weights), tuple(biases), tanh=tanh)


def _flax(params: Any, name: str, *, tanh: bool) -> list[Layers]:
    """The networks of flax parameters with Dense and LayerNorm layers, ReLU between: one, or as many as the arrays are stacked."""
    dense: list[tuple[Tensor, Tensor]] = []
    norms: list[tuple[Tensor, Tensor]] = []
    _collect(params, name, dense, norms)
    if len(dense) < 2 or len(norms) not in (0, len(dense) - 1):
        raise ValueError(
            f"{name}: expected flax parameters of Dense layers, each but the last with a LayerNorm or none, got {len(dense)} and "
            f"{len(norms)} of them"
        )
    stacked = dense[0][0].dim() == 3
    count = len(dense[0][0]) if stacked else 1

    def of(x: Tensor, i: int) -> Tensor:
        return x[i] if stacked else x

    return [
        Layers(
            tuple(of(kernel, i).mT for kernel, _ in dense),
            tuple(of(bias, i) for _, bias in dense),
            norms=tuple(Norm(of(scale, i), of(bias, i), FLAX_EPS) for scale, bias in norms),
            tanh=tanh,
        )
        for i in range(count)
    ]


def _collect(tree: Any, path: str, dense: list[tuple[Tensor, Tensor]], norms: list[tuple[Tensor, Tensor]]) -> None:
    """The parameters of Dense and LayerNorm layers below a mapping, in the order of their numbers.

    Raises:
        ValueError: something else is there, which the networks would be without.
    """
    name, last = path.partition(".")[0], path.rpartition(".")[2]
    expected = (
        f"{name}: expected flax parameters, Dense layers of kernel and bias, ReLU, then any LayerNorm, as of CORL's ReBRAC"
    )
    other = "wrap another network in a module yourself"
    if not isinstance(tree, Mapping):
        raise ValueError(f"{expected}, got {path}; {other}")
    if {"kernel", "bias"} == set(tree):
        dense.append((double(tree["kernel"]), double(tree["bias"])))
    elif {"scale", "bias"} == set(tree) and re.fullmatch(r"(LayerNorm|layers)_\d+", last):
        norms.append((double(tree["scale"]), double(tree["bias"])))
    else:
        for key, layer in tree.items():  # the layers of a Sequential are counted with its activations
            place = re.fullmatch(r"layers_(\d+)", str(key))
            if place and isinstance(layer, Mapping) and "scale" in layer and f"layers_{int(place[1]) - 2}" not in tree:
                raise ValueError(f"{expected}, got a LayerNorm before its ReLU, {path}.{key}; {other}")
        for key in sorted(tree, key=lambda key: [int(x) if x.isdigit() else x for x in re.split(r"(\d+)", str(key))]):
            _collect(tree[key], f"{path}.{key}", dense, norms)
