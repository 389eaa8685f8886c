"""Embedded offline data: real MuJoCo under our own behaviour, written as Minari data sets.

    make_dataset(env_name, kind, *, steps=100_000, seed=0, overwrite=False, dataset_id=None, physics="d4rl",
                 threads=None, progress=None) -> MadeDataset(dataset_id, path, episodes, steps, seconds, rewarded)
    make_episodes(env_name, kind, *, steps, seed, ...) -> list[Episode]
    ENV_NAMES, KINDS, available_kinds(env_name), default_id(env_name, kind)

The kinds are those of D4RL, with linear policies and Gaussian action noise in place of SAC's:

    random         actions uniform in [-1, 1]
    medium         the snapshot whose return is nearest to `MEDIUM_SHARE` of the best
    expert         the best snapshot
    medium-expert  half medium, half expert
    medium-replay  every snapshot of the search up to the medium one, in order, in equal shares
    full-replay    every snapshot

Point mazes have no snapshots: expert is the search-and-PD controller with noise. The kinds of antmaze are D4RL's six tasks,
umaze to large-diverse (`jacrec.data.behaviour.antmaze`). Every other environment that gymnasium knows, named by its id, with actions in
[-1, 1] and a time limit, can be made in the kind random.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from jacrec.data.behaviour.antmaze import ACTION_NOISE, RewardCount, WaypointFollower, evaluation_goal, relabel, require_reward
from jacrec.data.behaviour.collect import BehaviourStage, Episode, collect
from jacrec.data.behaviour.linear_policy import ENVIRONMENTS, Snapshot, load_action_noise, load_snapshots
from jacrec.data.behaviour.pointmaze import PointMazeController
from jacrec.data.d4rl_files import KINDS
from jacrec.data.readers.minari import dataset_path, refuse_to_replace, write_minari
from jacrec.data.references import reference_by_env
from jacrec.envs.antmaze import COLLECTION_IDS as ANTMAZE_COLLECTION_IDS
from jacrec.envs.antmaze import ENV_IDS as ANTMAZE_IDS
from jacrec.envs.physics import make_env, physics_record
from jacrec.util.errors import expect_one_of

MAZES = {
    "pointmaze-umaze": "PointMaze_UMaze-v3",
    "pointmaze-medium": "PointMaze_Medium-v3",
    "pointmaze-large": "PointMaze_Large-v3",
}
ANTMAZE = "antmaze"
ANTMAZE_KINDS = tuple(ANTMAZE_IDS)
ENV_NAMES = (*ENVIRONMENTS, *MAZES, ANTMAZE)
MEDIUM_SHARE = 0.5
MAZE_NOISE = 0.5
"""standard deviation of the action noise in the mazes, D4RL's"""


@dataclass(frozen=True)
class MadeDataset:
    """What `make_dataset` made."""

    dataset_id: str
    path: Path
    episodes: int
    steps: int
    seconds: float
    """wall time, collection and writing"""
    rewarded: RewardCount | None = None
    """how much of it carries reward, where rewards were relabelled (AntMaze)"""


def available_kinds(env_name: str) -> tuple[str, ...]:
    """The kinds an environment can be made in.

    Raises:
        ValueError: neither an embedded environment nor one of gymnasium's.
    """
    if env_name == ANTMAZE:
        return ANTMAZE_KINDS
    if resolve_env_id(env_name) == env_name:
        return ("random",)
    return ("random", "expert") if env_name in MAZES else KINDS


def default_id(env_name: str, kind: str) -> str:
    """The id a made data set gets: ``jacrec/hopper-medium-replay-v0``, ``jacrec/Walker2d-v4-random-v0``."""
    return f"jacrec/{env_name.replace('/', '-')}-{kind}-v0"


def medium_index(snapshots: tuple[Snapshot, ...]) -> int:
    """Which snapshot plays "medium": its return is nearest to `MEDIUM_SHARE` of the best."""
    returns = np.array([snapshot.mean_return for snapshot in snapshots])
    return int(np.argmin(np.abs(returns - MEDIUM_SHARE * returns.max())))


def behaviour_stages(env_name: str, kind: str) -> list[BehaviourStage]:
    """The behaviour of a kind, stage by stage in equal shares.

    Raises:
        ValueError: an unknown environment, or a kind it cannot be made in.
    """
    expect_one_of(f"kind of {env_name}", kind, available_kinds(env_name))
    if kind == "random":
        return [BehaviourStage("random", None)]
    if env_name == ANTMAZE:
        return [BehaviourStage("waypoint follower", WaypointFollower.for_task(kind), ACTION_NOISE)]
    if env_name in MAZES:
        env = make_env(MAZES[env_name])
        controller = PointMazeController.of(env)
        env.close()
        return [BehaviourStage("controller", controller, MAZE_NOISE)]
    snapshots = load_snapshots(env_name)
    noise = load_action_noise(env_name)
    medium, best = medium_index(snapshots), len(snapshots) - 1
    chosen = {
        "medium": [medium],
        "expert": [best],
        "medium-expert": [medium, best],
        "medium-replay": list(range(medium + 1)),
        "full-replay": list(range(best + 1)),
    }[kind]
    return [BehaviourStage(f"snapshot {i}", snapshots[i].policy, noise) for i in chosen]


def make_episodes(
    env_name: str,
    kind: str,
    *,
    steps: int,
    seed: int,
    physics: str = "d4rl",
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Episode]:
    """The episodes of a kind, exactly `steps` steps, in memory (see `jacrec.data.behaviour.collect.collect`)."""
    stages = behaviour_stages(env_name, kind)
    where = ANTMAZE_COLLECTION_IDS[kind] if env_name == ANTMAZE else resolve_env_id(env_name)
    episodes = collect(where, stages, steps=steps, seed=seed, physics=physics, threads=threads, progress=progress)
    return relabel(episodes, evaluation_goal(kind, seed)) if env_name == ANTMAZE else episodes


def resolve_env_id(env_name: str, kind: str | None = None) -> str:
    """The gymnasium id behind a short name; an id that gymnasium knows stands for itself. Of antmaze's, `kind` is one of six.

    Raises:
        ValueError: neither.
    """
    if env_name == ANTMAZE:
        expect_one_of("kind of antmaze", kind, ANTMAZE_KINDS)
        return ANTMAZE_IDS[str(kind)]
    if env_name in gymnasium.registry:
        return env_name
    if env_name not in ENV_NAMES:
        known = ", ".join(map(repr, ENV_NAMES))
        raise ValueError(f"env_name: expected one of {known}, or the id of a gymnasium environment, got {env_name!r}")
    return {**ENVIRONMENTS, **MAZES}[env_name]


def make_dataset(
    env_name: str,
    kind: str,
    *,
    steps: int = 100_000,
    seed: int = 0,
    overwrite: bool = False,
    dataset_id: str | None = None,
    physics: str = "d4rl",
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> MadeDataset:
    """Make an embedded data set and write it to Minari's local root.

    The data depend on the arguments alone, not on the number of threads. `progress` is called with the steps collected
    so far. An interruption leaves nothing behind.

    Raises:
        ValueError: unknown names, fewer steps than stages, or AntMaze data of which next to nothing carries reward; nothing
            is written then.
        FileExistsError: the set exists and `overwrite` is False; said before any work is done.
    """
    began = time.monotonic()
    stages = behaviour_stages(env_name, kind)
    dataset_id = dataset_id or default_id(env_name, kind)
    dataset_path(dataset_id)
    refuse_to_replace(dataset_id, overwrite)
    env_id = resolve_env_id(env_name, kind)
    episodes = make_episodes(env_name, kind, steps=steps, seed=seed, physics=physics, threads=threads, progress=progress)
    rewarded = require_reward(dataset_id, episodes) if env_name == ANTMAZE else None
    env = make_env(env_id, physics=physics)
    metadata = _metadata(env_name, kind, env_id, stages, steps, seed, physics_record(env))
    if rewarded is not None:
        goal = evaluation_goal(kind, seed).tolist()
        metadata["jacrec"] |= {"goal": goal, "rewarded": asdict(rewarded)}
    path = write_minari(dataset_id, episodes, env=env.unwrapped, metadata=metadata, overwrite=overwrite)
    env.close()
    return MadeDataset(dataset_id, path, len(episodes), sum(map(len, episodes)), time.monotonic() - began, rewarded)


def _metadata(
    env_name: str, kind: str, env_id: str, stages: list[BehaviourStage], steps: int, seed: int, physics: dict[str, Any]
) -> dict[str, Any]:
    policies = []
    for stage in stages:
        policy: Any = stage.policy
        numbers = {"gain": policy.gain.tolist(), "bias": policy.bias.tolist()} if hasattr(policy, "bias") else {}
        if isinstance(policy, WaypointFollower):
            numbers = {"gait": policy.gait.numbers().tolist()}
        policies.append({"name": stage.name, "noise": stage.noise, **numbers})
    made = version("jacrec")
    metadata: dict[str, Any] = {
        "description": f"{env_name} {kind}, {steps} steps made by jacrec {made} with seed {seed} from embedded behaviour",
        "algorithm_name": {"random": "uniform actions"}.get(kind)
        or {ANTMAZE: "breadth-first search and a gait", **dict.fromkeys(MAZES, "search and PD control")}.get(
            env_name, "augmented random search"
        ),
        "author": {"jacrec"},
        "requirements": [f"gymnasium=={gymnasium.__version__}", f"mujoco=={physics['mujoco']}"],
        "jacrec": {
            "version": made,
            "env_name": env_name,
            "env_id": env_id,
            "kind": kind,
            "seed": seed,
            "steps": steps,
            "physics": physics,
            "policies": policies,
        },
    }
    reference = reference_by_env(env_id)
    if reference is not None:
        metadata |= {"ref_min_score": reference.ref_min, "ref_max_score": reference.ref_max}
    return metadata
