"""Policies, critics and replay buffers of Stable-Baselines3 and SB3-Contrib. Nothing of either is imported here."""

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import nn

from jacrec.adapters.layers import Scaling, mean_of_outputs, read_layers
from jacrec.adapters.parts import FROM_FILE, Found, Parts
from jacrec.data.readers.arrays import from_arrays
from jacrec.data.transitions import Transitions
from jacrec.envs.actions import ActionBox

FAMILIES = ("stable_baselines3.sac", "stable_baselines3.td3", "sb3_contrib.tqc")
"""modules of the algorithms; DDPG is a TD3 there"""


def from_sb3(model: Any, vec_normalize: Any = None) -> Parts:
    """Policy and critic of a trained SAC, TD3, DDPG or TQC; its actions are those of `model.predict(deterministic=True)`.

    The policy is an `Actor` and the critic a `TwinCritic`, on the fused kernels' path, if the features are the flat observation and
    the networks are `net_arch` with one activation of ReLU, Tanh, SiLU, Mish or GELU. Others, such as a features extractor of
    your own or gSDE's clipped mean, are plain modules, which torch differentiates. So are networks with another activation than
    ReLU behind a `VecNormalize` that clips.

    `VecNormalize` becomes part of both: the policy takes raw observations, and the critic's values are in units of raw rewards
    (by the latest statistics, and without the clip of rewards). A critic of SAC and TQC is soft: its values include the bonus for
    entropy. That of TQC is the smallest of its networks' mean quantiles.

    Args:
        model: e.g. `SAC.load("model.zip")`.
        vec_normalize: the `VecNormalize` it was trained with; default: that of the model's own environment, if there is one.
            A model that was loaded without its environment has none: pass `VecNormalize.load("vec_normalize.pkl", venv)`.

    Raises:
        ValueError: another algorithm, spaces that are not flat boxes, or statistics of other observations.
    """
    _expect_known(model)
    box = ActionBox.of(model.action_space, "model.action_space", "bound them with a wrapper before training")
    d, m = _flat_size(model.observation_space, "observations"), _flat_size(model.action_space, "actions")
    normalize = model.get_vec_normalize_env() if vec_normalize is None else vec_normalize
    actor, critic = model.policy.actor, model.policy.critic
    body = nn.Sequential(*_features(actor), *_mean(actor))
    features = nn.Sequential(*_features(critic))
    heads = [read_layers(head) if not len(features) else None for head in critic.q_networks]
    return Found(
        scaling=_scaling(normalize, d),
        action_box=box,
        discount=float(model.gamma),
        policy=read_layers(body),
        heads=[None if head is None else mean_of_outputs(head) for head in heads],
        body=body,
        features=features,
        critics=critic.q_networks,
        action_dim=m,
        reward_scale=_reward_scale(normalize),
    ).parts()


def transitions_from_sb3(model: Any, *, env_id: str | None = None, name: str = "replay buffer") -> Transitions:
    """The replay buffer of an off-policy algorithm as data: raw observations and rewards, actions in [-1, 1].

    Args:
        model: with a replay buffer: a trained one, or one after `model.load_replay_buffer(path)`.
        env_id: gymnasium id of the environment that evaluates.

    Raises:
        ValueError: spaces that are not flat boxes, no replay buffer, an empty one, or one without successors
            (`optimize_memory_usage=True`).
    """
    _expect_known(model)
    box = ActionBox.of(model.action_space, "model.action_space", "bound them with a wrapper before training")
    _flat_size(model.observation_space, "observations")
    buffer = model.replay_buffer
    if buffer is None or not buffer.size():
        raise ValueError(
            f"replay_buffer: expected one with transitions, got {'none' if buffer is None else 'an empty one'}; call "
            "model.load_replay_buffer(path) with what model.save_replay_buffer(path) wrote"
        )
    if buffer.optimize_memory_usage:
        raise ValueError(
            "replay_buffer: expected one that keeps successors, got optimize_memory_usage=True, which overwrites those at the ends "
            "of episodes; train with optimize_memory_usage=False"
        )
    begin = buffer.pos if buffer.full else 0

    def rows(array: np.ndarray) -> np.ndarray:
        """(steps, environments, ...) in the order of collection, one environment after the other."""
        ordered = np.roll(array[: buffer.size()], -begin, axis=0)
        return ordered.swapaxes(0, 1).reshape(-1, *array.shape[2:])

    done, timeout = rows(buffer.dones) > 0, rows(buffer.timeouts) > 0
    last = np.zeros((buffer.n_envs, buffer.size()), bool)
    last[:, -1] = True  # where one environment ends and the next begins
    return from_arrays(
        rows(buffer.observations),
        box.from_unit(rows(buffer.actions)),
        rows(buffer.rewards),
        done & ~timeout,
        ends=done | last.reshape(-1),
        next_observations=rows(buffer.next_observations),
        env_id=env_id,
        action_low=box.low,
        action_high=box.high,
        name=name,
    )


def _expect_known(model: Any) -> None:
    known = any(kind.__module__.startswith(FAMILIES) for kind in type(model).__mro__)
    if known and not isinstance(model, nn.Module):
        return
    advice = "; for another, wrap its mean action in an nn.Module and its critic in a function (docs/tutorials/own-models.md)"
    if known:
        advice = "; pass the model that it belongs to"
    elif isinstance(model, str | Path):
        advice = FROM_FILE
    raise ValueError(f"model: expected SAC, TD3, DDPG or TQC of Stable-Baselines3, got {type(model).__name__}{advice}")


def _flat_size(space: gymnasium.Space, what: str) -> int:
    if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1:
        raise ValueError(f"model: expected {what} in a flat Box, got {space}; flatten them with a wrapper before training")
    return int(space.shape[0])


def _features(network: Any) -> list[nn.Module]:
    """The features extractor, [] if it only flattens."""
    extractor = network.features_extractor
    return [] if type(extractor).__name__ == "FlattenExtractor" else [extractor]


def _mean(actor: Any) -> list[nn.Module]:
    """What follows the features, up to the squashed mean."""
    return [actor.latent_pi, actor.mu, nn.Tanh()] if hasattr(actor, "latent_pi") else [actor.mu]


def _scaling(normalize: Any, d: int) -> Scaling:
    if normalize is not None and not hasattr(normalize, "norm_obs"):
        raise ValueError(
            f"vec_normalize: expected a VecNormalize, got {type(normalize).__name__}; load one with VecNormalize.load(path, venv)"
        )
    if normalize is None or not normalize.norm_obs:
        return Scaling.none(d)
    rms = normalize.obs_rms
    if np.shape(rms.mean) != (d,):
        raise ValueError(
            f"vec_normalize: expected statistics of {d} observations, got {np.shape(rms.mean)}; pass the model's own"
        )
    std = np.sqrt(rms.var + normalize.epsilon)
    return Scaling(torch.as_tensor(rms.mean), torch.as_tensor(std), float(normalize.clip_obs))


def _reward_scale(normalize: Any) -> float:
    if normalize is None or not normalize.norm_reward:
        return 1.0
    return float(1.0 / np.sqrt(normalize.ret_rms.var + normalize.epsilon))
