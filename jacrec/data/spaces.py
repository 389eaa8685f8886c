"""What is known of environments by their id, without building them.

known_dimensions(env_id) -> (d, m) | None     numbers of a state and of an action, as `jacrec.envs.physics.make_env` has them
episode_limit(env_id) -> int | None           steps after which an episode is cut
"""

import re

import gymnasium

# states of goal environments are (position where the observation lacks it, observation, goal)
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
    """(d, m) of a known environment, None of others."""
    return next((dimensions for pattern, dimensions in DIMENSIONS if re.fullmatch(pattern, env_id)), None)


def episode_limit(env_id: str) -> int | None:
    """The time limit, None of environments that are not registered here or have none."""
    if env_id.startswith("jacrec/antmaze-"):
        # evaluation in the U-maze ends at 700 steps, but umaze-diverse was recorded with the limit of the others: its million
        # rows hold 1036 episodes (tensorflow_datasets' count)
        return 1000
    spec = gymnasium.registry.get(env_id)
    return None if spec is None else spec.max_episode_steps
