"""Behaviour for D4RL's AntMaze: breadth-first search for the path, a gait to walk along it.

Data are collected by D4RL's protocol (starts and goals of `jacrec.envs.antmaze_layout`, action noise 0.2, the ant keeps
walking after arrival) and relabelled afterwards with the rewards of one goal drawn as in an evaluation. The walker is
jacrec's own, so the data resemble D4RL's but are not identical. Two deliberate differences: episodes are as long as in
evaluation, whereas D4RL's recorder counts one step more, and the state after the last step is stored.
"""

from dataclasses import dataclass, replace

import numpy as np

from jacrec.data.behaviour.ant_gait import Gait, load_gait
from jacrec.data.behaviour.collect import Episode
from jacrec.data.behaviour.pointmaze import shortest_paths
from jacrec.envs.antmaze import STATE_DIM
from jacrec.envs.antmaze_layout import MAZES, TASKS, Maze, centre, draw_goal, reached

ACTION_NOISE = 0.2
"""standard deviation of the action noise, as in D4RL"""
MIN_REWARDED_EPISODES = 2
"""minimum number of episodes with a rewarded step; data with fewer are rejected"""


@dataclass(frozen=True)
class WaypointFollower:
    """Walks to the goal, which follows the 29 numbers of the state.

    In the goal's cell it heads straight for the goal; elsewhere along the line from its cell's centre to the next cell's,
    steering back towards that line. It depends on the state alone, so that the data are Markov.
    """

    maze: Maze
    next_cell: np.ndarray  # (rows, columns, rows, columns, 2) [from][goal] -> next cell of a shortest path, -1 if none
    gait: Gait
    pull: float = 1.0
    """steering towards the line, radians of turn per metre of distance near it"""

    @classmethod
    def of(cls, maze: str, gait: Gait | None = None) -> "WaypointFollower":
        """The follower for one of `jacrec.envs.antmaze_layout.MAZES`."""
        return cls(MAZES[maze], shortest_paths(MAZES[maze].free), gait or load_gait())

    @classmethod
    def for_task(cls, task: str, gait: Gait | None = None) -> "WaypointFollower":
        """The follower for the maze of one of the six tasks."""
        return cls.of(TASKS[task].maze, gait)

    def __call__(self, state: np.ndarray) -> np.ndarray:
        """Map states with goals (n, 31) to actions (n, 8)."""
        return self.gait(state, self.heading(state[:, :2], state[:, STATE_DIM:]))

    def heading(self, xy: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """Headings (n,) from positions (n, 2) towards goals (n, 2), in radians from the x axis."""
        here, there = self.maze.cell_of(xy), self.maze.cell_of(goal)
        ahead = self.next_cell[here[:, 0], here[:, 1], there[:, 0], there[:, 1]]
        straight = (here == there).all(1) | (ahead[:, 0] < 0)
        along = (ahead - here)[:, ::-1]  # (n, 2) unit vector in x, y
        offset = xy - centre(here)
        across = np.stack((-along[:, 1], along[:, 0]), axis=1)
        aside = (offset * across).sum(1, keepdims=True)
        direction = np.where(straight[:, None], goal - xy, along - self.pull * aside * across)
        return np.arctan2(direction[:, 1], direction[:, 0])


@dataclass(frozen=True)
class RewardCount:
    """How much of a data set is rewarded."""

    episodes: int
    """episodes with a rewarded step"""
    steps: int
    """rewarded steps"""
    of: int
    """total number of episodes"""


def evaluation_goal(task: str, seed: int) -> np.ndarray:
    """The goal (2,) that defines a data set's rewards, drawn as in an evaluation."""
    return draw_goal(np.random.default_rng([seed, 0x60A1]), (MAZES[TASKS[task].maze].evaluation_goal,))


def relabel(episodes: list[Episode], goal: np.ndarray) -> list[Episode]:
    """Convert collected episodes (T + 1, 31) to those of the data set (T + 1, 29), rewarded for another goal (2,).

    As in D4RL, step k has reward 1 and is terminal if the state after it is within the goal's radius. Episodes do not end
    there: the ant kept walking to the goal it had, and steps after a terminal one are ordinary transitions.
    """
    found = []
    for episode in episodes:
        success = reached(episode.observations[1:, :2], goal)
        found.append(
            replace(
                episode, observations=episode.observations[:, :STATE_DIM], rewards=success.astype(np.float64), terminals=success
            )
        )
    return found


def require_reward(name: str, episodes: list[Episode]) -> RewardCount:
    """Count the rewarded steps of relabelled episodes.

    Raises:
        ValueError: fewer than `MIN_REWARDED_EPISODES` episodes are rewarded, too few for a critic to learn from.
    """
    steps = [int(episode.rewards.sum()) for episode in episodes]
    found = RewardCount(sum(n > 0 for n in steps), sum(steps), len(steps))
    if found.episodes < MIN_REWARDED_EPISODES:
        raise ValueError(
            f"{name}: expected at least {MIN_REWARDED_EPISODES} episodes that reach the evaluation goal, got {found.episodes} "
            f"of {found.of}; most goals of this kind lie elsewhere: collect more steps"
        )
    return found
