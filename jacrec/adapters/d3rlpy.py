"""Policies and critics of d3rlpy. Nothing of it is imported here."""

from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from jacrec.adapters.layers import Scaling, read_layers
from jacrec.adapters.parts import FROM_FILE, Found, Parts
from jacrec.envs.actions import ActionBox

ALGORITHMS = ("ReBRAC", "TD3PlusBC", "TD3", "DDPG", "SAC", "CQL", "IQL", "AWAC", "CalQL", "PRDC")


def from_d3rlpy(algo: Any) -> Parts:
    """Policy and critic of a trained ReBRAC, TD3PlusBC, TD3, DDPG, SAC, CQL, CalQL, IQL, AWAC or PRDC; actions as of `algo.predict`.

    The policy is an `Actor` and the critic a `TwinCritic`, on the fused kernels' path, with vector encoders of one activation of ReLU,
    Tanh or GELU, LayerNorm with ReLU, dropout, and mean Q functions. Others, with batch normalisation or an encoder of your own,
    are plain modules, which torch differentiates.

    Scalers become part of both: the policy takes raw observations, the critic's values are in units of raw rewards, and with an
    action scaler `action_box` is its range. Without one, the algorithm's actions in [-1, 1] are the environment's own.

    Args:
        algo: e.g. `d3rlpy.load_learnable("rebrac.d3")`.

    Raises:
        ValueError: another algorithm, one that is not built, observations that are not vectors, a distributional Q function, or a
            scaler whose effect on values is not a factor.
    """
    if not type(algo).__module__.startswith("d3rlpy.") or type(algo).__name__ not in ALGORITHMS:
        advice = FROM_FILE if isinstance(algo, str | Path) else ""
        raise ValueError(f"algo: expected one of d3rlpy's {', '.join(ALGORITHMS)}, got {type(algo).__name__}{advice}")
    if algo.impl is None:
        raise ValueError("algo: expected a trained algorithm, got one without networks; call fit, build_with_env or load_model")
    if len(algo.observation_shape) != 1:
        raise ValueError(f"algo: expected vectors as observations, got shape {algo.observation_shape}; use vectors")
    config, impl = algo.config, algo.impl
    policy, q_functions = impl.policy, list(impl.q_function)
    if not all(hasattr(q, "_fc") and type(q).__name__ == "ContinuousMeanQFunction" for q in q_functions):
        names = ", ".join(sorted({type(q).__name__ for q in q_functions}))
        raise ValueError(f"algo: expected mean Q functions, got {names}; train with q_func_factory=MeanQFunctionFactory()")
    d, m = algo.observation_shape[0], algo.action_size
    kind = type(policy).__name__
    if kind == "DeterministicPolicy":
        output = policy._fc
    elif kind == "NormalPolicy":
        output = policy._mu
    else:
        raise ValueError(f"algo: expected a deterministic or normal policy, got {kind}; wrap it in a module yourself")
    body = nn.Sequential(*_encoder(policy), output, nn.Tanh())
    known = all(isinstance(getattr(q.encoder, "_layers", None), nn.Sequential) for q in q_functions)
    heads = [nn.Sequential(q.encoder._layers, q._fc) if known else _WithAction(q, d) for q in q_functions]
    return Found(
        scaling=_scaling(config.observation_scaler, d),
        action_box=_box(config.action_scaler, m),
        discount=float(config.gamma),
        policy=read_layers(body),
        heads=[read_layers(head) if known else None for head in heads],
        body=body,
        features=nn.Identity(),
        critics=heads,
        action_dim=m,
        reward_scale=_reward_scale(config.reward_scaler),
    ).parts()


class _WithAction(nn.Module):
    """A Q function of d3rlpy as a module of its inputs side by side."""

    def __init__(self, q_function: nn.Module, d: int):
        super().__init__()
        self.q_function, self.d = q_function, d

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, d + m) -> (B, 1)."""
        return self.q_function(inputs[:, : self.d], inputs[:, self.d :]).q_value


def _encoder(policy: Any) -> list[nn.Module]:
    layers = getattr(policy._encoder, "_layers", None)
    return [layers if isinstance(layers, nn.Sequential) else policy._encoder]


def _refuse(scaler: Any, what: str, advice: str) -> NoReturn:
    raise ValueError(f"algo: expected a {what} that is fitted and {advice}, got {type(scaler).__name__}")


def _scaling(scaler: Any, d: int) -> Scaling:
    if scaler is None:
        return Scaling.none(d)
    kind = type(scaler).__name__
    if kind == "StandardObservationScaler" and scaler.built:
        return Scaling(_row(scaler.mean, d), _row(scaler.std, d) + scaler.eps)
    if kind == "MinMaxObservationScaler" and scaler.built:
        low, high = _row(scaler.minimum, d), _row(scaler.maximum, d)
        return Scaling((low + high) / 2, (high - low) / 2)
    _refuse(scaler, "StandardObservationScaler or MinMaxObservationScaler", "of vectors")


def _row(values: Any, width: int) -> Tensor:
    return torch.from_numpy(np.broadcast_to(np.asarray(values, np.float64), (width,)).copy())


def _box(scaler: Any, m: int) -> ActionBox:
    if scaler is None:
        return ActionBox()
    if type(scaler).__name__ == "MinMaxActionScaler" and scaler.built:
        low, high = (tuple(_row(x, m).tolist()) for x in (scaler.minimum, scaler.maximum))
        return ActionBox(low, high)
    _refuse(scaler, "MinMaxActionScaler", "known")


def _reward_scale(scaler: Any) -> float:
    """The factor by which a scaler multiplies rewards."""
    if scaler is None:
        return 1.0
    kind = type(scaler).__name__
    if kind == "MultiplyRewardScaler":
        return float(scaler.multiplier)
    if kind == "ReturnBasedRewardScaler" and scaler.built:
        return float(scaler.multiplier / (scaler.return_max - scaler.return_min))
    _refuse(
        scaler,
        "MultiplyRewardScaler or ReturnBasedRewardScaler",
        "only multiplies, since a shift changes a value by the number of steps left; train with one of these",
    )
