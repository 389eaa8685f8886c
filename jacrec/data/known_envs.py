"""Dimensions and time limits of known environments, looked up by id without building them."""

import re

import gymnasium

# the state of a goal environment is (position if the observation lacks it, observation, goal)
DIMENSIONS = (
    (r"Hopper-v\d+", (11, 3)),
    (r"(HalfCheetah|Walker2d)-v\d+", (17, 6)),
    (r"Ant-v4", (27, 8)),
    (r"Ant-v5", (105, 8)),
    (r"PointMaze_\w+-v\d+", (6, 2)),
    (r"AntMaze_\w+-v[34]", (31, 8)),
    (r"AntMaze_\w+-v5", (109, 8)),
    (r"jacrec/antmaze-[\w-]+-collect-v\d+", (31, 8)),
    (r"jacrec/antmaze-[\w-]+-v\d+", (29, 8)),
)


def known_dimensions(env_id: str) -> tuple[int, int] | None:
    """(d, m) as `jacrec.envs.physics.make_env` builds the environment; None if it is unknown."""
    return next((dimensions for pattern, dimensions in DIMENSIONS if re.fullmatch(pattern, env_id)), None)


def episode_limit(env_id: str) -> int | None:
    """Steps after which an episode is truncated; None if the environment is not registered or has no limit."""
    if env_id.startswith("jacrec/antmaze-"):
        # evaluation in the U-maze is limited to 700 steps, but umaze-diverse was recorded with the other mazes' limit: its
        # million rows hold 1036 episodes (counted by tensorflow_datasets)
        return 1000
    spec = gymnasium.registry.get(env_id)
    return None if spec is None else spec.max_episode_steps


def recorded_env_id(env_id: str, where: str) -> str:
    """An environment's id that was read from a file. gymnasium would import the module of an id ``module:Env-v0``.

    Raises:
        ValueError: the id names a module.
    """
    module, colon, _ = env_id.partition(":")
    if colon:
        raise ValueError(
            f"{where}: expected the id of a registered environment, got {env_id!r}, which would import {module!r}; if you trust "
            f"that module, name the environment yourself: --env-id {env_id} (env_id in Python)"
        )
    return env_id
