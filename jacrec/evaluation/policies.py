"""Evaluation of any policy and world in any environment, without a run."""

import contextlib
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import gymnasium
import torch
from torch import nn

from jacrec.control.config import MPCConfig
from jacrec.data.references import reference_by_env
from jacrec.data.transitions import DatasetInfo, with_bounds
from jacrec.envs.actions import ActionBox
from jacrec.envs.batch import BatchedEnv
from jacrec.evaluation.config import EvalConfig
from jacrec.evaluation.contestant import (
    PolicyAndWorld,
    digests,
    environment_record,
    play_contestant,
    prepare_env,
    with_sampling,
)
from jacrec.evaluation.versions import machine, versions
from jacrec.models.world import World
from jacrec.models.wrappers import check_policy_kind
from jacrec.training.run import torch_threads


def evaluate_policy(
    policy: nn.Module,
    world: World,
    env: str | gymnasium.Env | Callable[[], gymnasium.Env],
    config: EvalConfig | None = None,
    *,
    action_box: ActionBox | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> dict[str, Any]:
    """Play the contestants of `config` on the same seeds: the policy as it is, H = 0, MPC, and planners.

    Args:
        policy: π_ψ, state (B, d) -> action (B, m) in [-1, 1]; never changed.
        world: the world that MPC imagines in.
        env: a gymnasium id; a function that makes a new environment at every call, of which `config.rows` (default: all episodes)
            are played in lock-step; or one environment, in which the episodes are played one after the other. An environment that
            is given is not closed.
        config: seeds, contestants and their settings. `env_id`, `rehearse` and `tuned` belong to runs.
        action_box: what the policy's -1 and 1 stand for, e.g. `Parts.action_box`. If the environment's bounds are others,
            `config.action_bounds` has to say whose count; default: the environment's.
        progress: called with a contestant's name and the share of its work that is done.

    Returns:
        A record as of `jacrec.evaluation.evaluate.evaluate`, for `jacrec.evaluation.results.compare` and `table`: under
        "contestants", by name, `returns`, `lengths`, `terminated`, `scores` (None without D4RL's references) and so on.

    Raises:
        ValueError: settings that belong to runs, an environment of other dimensions, without a time limit, without finite bounds, or
            whose wrappers go on normalising by running statistics (`update_running_mean`).
    """
    config = config or EvalConfig()
    check_policy_kind(policy)
    for name, part, kind in (("world", world, World), ("config", config, EvalConfig)):
        if not isinstance(part, kind):
            raise ValueError(f"{name}: expected {kind.__name__}, got {type(part).__name__}")
    ActionBox.expect(action_box)
    for name in ("env_id", "rehearse", "tuned"):
        if getattr(config, name):
            raise ValueError(f"config.{name}: expected the default without a run, got {getattr(config, name)!r}")
    controllers = {name: None if name == "base" else config.controller(name) for name in config.order}
    for controller in controllers.values():
        if isinstance(controller, MPCConfig):
            controller.in_absolute_units(world.value_scale)  # refuses units that the world lacks, before anything is played
    rows = _rows(env, config)
    make = env if not isinstance(env, gymnasium.Env) else lambda: env
    made = BatchedEnv(make, rows, physics=config.physics, max_episode_steps=config.max_episode_steps)
    with contextlib.ExitStack() as stack:
        if not isinstance(env, gymnasium.Env):
            stack.callback(made.close)
        stack.enter_context(torch_threads(config.threads))
        prepare_env(made, action_box, config)
        _expect_dimensions(policy, made)
        if action_box is not None and not action_box.serves(made.action_dim):
            raise ValueError(f"action_box: expected bounds of m = {made.action_dim} actions, got {action_box}")
        parts = with_sampling(PolicyAndWorld(policy, world, _info(env, made, action_box)), config.dynamics)
        record: dict[str, Any] = {
            "settings": asdict(config) | {"rows": rows},
            "rehearsal": None,
            "tuning": None,
            "networks": digests(parts),
            "environment": environment_record(made),
            "versions": versions(),
            "machine": machine(),
            "growth": None,
            "contestants": {},
        }
        for name, controller in controllers.items():
            told = None if progress is None else lambda share, name=name: progress(name, share)
            record["contestants"][name] = play_contestant(parts, controller, config, made, progress=told)
    return record


def _rows(env: object, config: EvalConfig) -> int:
    """How many episodes are played in lock-step."""
    if isinstance(env, str):
        return config.rows or config.episodes
    if isinstance(env, gymnasium.Env):
        if config.rows not in (None, 1):
            raise ValueError(f"config.rows: expected 1 or None with a single environment, got {config.rows}; give a function")
        return 1
    if callable(env):
        return config.rows or config.episodes
    raise ValueError(
        f"env: expected a gymnasium id, an environment or a function that makes one, got {type(env).__name__}; for a vector "
        "environment give the function that makes one of its environments"
    )


def _info(env: object, made: BatchedEnv, box: ActionBox | None) -> DatasetInfo:
    reference = reference_by_env(env) if isinstance(env, str) else None
    refs = (reference.ref_min, reference.ref_max) if reference else (None, None)
    info = DatasetInfo(made.env_id, made.env_id, *refs)
    return info if box is None else with_bounds(info, box.low, box.high)


@torch.no_grad()
def _expect_dimensions(policy: nn.Module, env: BatchedEnv) -> None:
    like = next(policy.parameters(), torch.zeros(()))
    told = getattr(policy, "state_dim", None)
    try:
        action = policy(torch.zeros(1, env.state_dim).to(like))
        shape = tuple(action.shape) if isinstance(action, torch.Tensor) else type(action).__name__
    except RuntimeError as error:
        expected = "" if told is None else f" (state_dim = {told})"
        raise ValueError(
            f"{env.env_id}: expected observations that the policy takes{expected}, got d = {env.state_dim}: {error}"
        ) from error
    if shape != (1, env.action_dim):
        raise ValueError(f"{env.env_id}: expected actions of m = {env.action_dim}, got {shape} of the policy for one state")
