"""Episodes of one contestant (base policy, MPC or planner) in the environment of a run."""

import zlib
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from torch import nn

from jacrec.control.controller import MPC, MPCConfig
from jacrec.data.known_envs import recorded_env_id
from jacrec.data.transitions import DatasetInfo
from jacrec.envs.actions import ActionBox, expect_time_limit, played_box
from jacrec.envs.batch import BatchedEnv
from jacrec.evaluation.config import PlayConfig
from jacrec.evaluation.episodes import EpisodeLog, PolicyController, Watcher, play
from jacrec.evaluation.planner_probe import PlannerProbe
from jacrec.evaluation.probes import ThinkingProbe
from jacrec.models.dynamics.sampler import Sampler, with_sampler
from jacrec.models.io import load_module
from jacrec.models.networks import Actor
from jacrec.models.world import World
from jacrec.planners import Planner, PlannerConfig, model_calls
from jacrec.training.run import Run
from jacrec.util.files import user_path


class Trained(Protocol):
    """What an environment is opened for: a `Run`, or a policy under training."""

    @property
    def policy(self) -> Actor: ...
    @property
    def info(self) -> DatasetInfo: ...
    @property
    def path(self) -> Path: ...


class Played(Protocol):
    """What a contestant needs of a run."""

    @property
    def policy(self) -> nn.Module: ...
    @property
    def world(self) -> World: ...
    @property
    def info(self) -> DatasetInfo: ...


@dataclass(frozen=True)
class PolicyAndWorld:
    """A policy and a world of any origin, with what is known of the environment."""

    policy: nn.Module
    world: World
    info: DatasetInfo


Own = TypeVar("Own", Run, PolicyAndWorld)


def open_env(run: Trained, config: PlayConfig, *, threads: int | None = None, played: bool = True) -> BatchedEnv:
    """The batched environment that a run is evaluated in.

    Args:
        config: `rows` (default: `episodes`) is the batch size.
        threads: simulation threads (default: all processors available to this process).
        played: whether whole episodes are played, so that a time limit is needed.

    Raises:
        ValueError: the environment is unknown, its dimensions differ from the policy's, it has no time limit, or its action
            bounds are not finite or differ from those of the run's data (see `jacrec.envs.actions.played_box`).
    """
    env_id = environment_id(run, config.env_id)
    env = BatchedEnv(
        env_id,
        config.rows or config.episodes,
        physics=config.physics,
        threads=threads,
        max_episode_steps=config.max_episode_steps,
    )
    prepare_env(env, run.info.action_box, config, played=played)
    if (env.state_dim, env.action_dim) != (run.policy.state_dim, run.policy.action_dim):
        raise ValueError(
            f"{env_id}: expected state and action dimensions {run.policy.state_dim} and {run.policy.action_dim}, as in the "
            f"run, got {env.state_dim} and {env.action_dim}; name the right environment with env_id"
        )
    return env


def prepare_env(env: BatchedEnv, data: ActionBox | None, config: PlayConfig, *, played: bool = True) -> None:
    """Let [-1, 1] stand for the actions of the environment, or of `data`, as `config` says; see `open_env`."""
    env.action_box = played_box(env.action_space, env.env_id, data, config.action_bounds)
    if played:
        expect_time_limit(env.env_id, env.max_episode_steps)


def environment_id(run: Trained, env_id: str | None) -> str:
    """`env_id`, or by default the environment of the run's data.

    Raises:
        ValueError: neither is known, or the run's record names a module that gymnasium would import.
    """
    if env_id:
        return env_id
    if run.info.env_id is None:
        raise ValueError(f"{run.path}: expected data that names its environment, got none; set env_id, e.g. Hopper-v4")
    return recorded_env_id(run.info.env_id, str(run.path))


def play_contestant(
    run: Played,
    controller: MPCConfig | PlannerConfig | None,
    config: PlayConfig,
    env: BatchedEnv,
    *,
    watch: Watcher | None = None,
    progress: Callable[[float], None] | None = None,
) -> dict[str, Any]:
    """Play one contestant on the seeds of `config`; the same arguments give the same returns.

    Args:
        controller: settings of the `MPC` or `Planner`; None: the base policy.
        watch: called after each decision of the base policy; ignored for controllers.

    Returns:
        The fields of `EpisodeLog` and the normalised scores (None without reference returns); for a controller also its
        settings, its `model_calls` and, as "thinking", the summary of its probe.
    """
    if controller is None:
        log = play(env, PolicyController(run.policy), config.seeds, watch=watch, progress=progress)
        return _as_dict(log, run)
    player = make_controller(run, controller, env.n)
    if isinstance(controller, PlannerConfig):
        assert isinstance(player, Planner)
        probe = PlannerProbe(player, config.probe_every, config.probe_particles)
        log = play(env, player, config.seeds, watch=probe.watch, progress=progress)
    else:
        assert isinstance(player, MPC)
        probe = ThinkingProbe(run.policy, run.world, player, config.probe_every, config.probe_particles)
        if controller.deadline_ms is None:  # a deadline's expectations are part of the controller, and are its own
            player.warm_up(np.zeros((env.n, env.state_dim)), decisions=2)
        log = play(env, player, config.seeds, before=probe.before, watch=probe.watch, progress=progress)
    thinking = {"controller": asdict(controller), "model_calls": model_calls(controller), "thinking": probe.summary()}
    return _as_dict(log, run) | thinking


def expect_value_scale(run: Run, controllers: Iterable[MPCConfig | PlannerConfig | None]) -> None:
    """ValueError if a controller measures in units of a value scale that the run does not have; before anything is played."""
    for own in controllers:
        if isinstance(own, MPCConfig) and own.units == "value" and run.world.value_scale is None:
            raise ValueError(
                f'{run.path}: units: expected "absolute" for a run without value_scale, got "value"; its critic has diverged, or '
                'is of an earlier version. Set units to "absolute" with an lr for it (--mpc.units; of candidates: in a YAML file), or '
                "train a new run"
            )


def make_controller(run: Played, controller: MPCConfig | PlannerConfig, batch: int | None) -> MPC | Planner:
    """The controller with these settings for a run's policy and world."""
    if isinstance(controller, PlannerConfig):
        return Planner(run.policy, run.world, controller, batch=batch)
    return MPC(run.policy, run.world, controller, batch=batch)


def with_dynamics(run: Run, folder: str | Path) -> Run:
    """The run with the world model in `folder`/dynamics.safetensors."""
    return replace(run, world=replace(run.world, dynamics=load_module(user_path(folder) / "dynamics.safetensors")))


def with_sampling(run: Own, sampler: Sampler) -> Own:
    """The run with other sampling settings of its world model (`jacrec.models.dynamics.sampler.with_sampler`)."""
    dynamics = run.world.dynamics
    if not sampler.changes:
        return run
    if not isinstance(dynamics, nn.Module):
        raise ValueError(f"sampler: expected a world model of jacrec, got {type(dynamics).__name__}; omit the sampler")
    return replace(run, world=replace(run.world, dynamics=with_sampler(dynamics, sampler)))


def environment_record(env: BatchedEnv) -> dict[str, Any]:
    """Environment, engine, physics settings, and action bounds other than -1 and 1, ready for JSON."""
    box = env.action_box
    return {
        "id": env.env_id,
        "engine": env.engine,
        "step_time": env.step_time,
        "max_episode_steps": env.max_episode_steps,
        **({} if box.is_unit else {"action_low": list(box.low), "action_high": list(box.high)}),
        **env.physics,
    }


def digests(run: Played) -> dict[str, str]:
    """CRC-32 of each network's parameters and buffers, as hexadecimal digits."""
    parts = {"actor": run.policy, "critic": run.world.critic, "dynamics": run.world.dynamics, "reward": run.world.reward}
    return {name: _digest(module) for name, module in parts.items() if isinstance(module, nn.Module)}


def _digest(module: nn.Module) -> str:
    value = 0
    for name, tensor in sorted(module.state_dict().items()):
        value = zlib.crc32(tensor.detach().cpu().contiguous().numpy().tobytes(), zlib.crc32(name.encode(), value))
    return f"{value:08x}"


def _as_dict(log: EpisodeLog, run: Played) -> dict[str, Any]:
    scores = run.info.score(log.returns, log.terminated)
    return asdict(log) | {"scores": None if scores is None else [float(s) for s in scores]}
