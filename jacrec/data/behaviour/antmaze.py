"""Behaviour for D4RL's AntMaze: breadth-first search for the way, a gait to simulate_walk it.

    WaypointFollower.of(maze, gait=None) -> follower; follower(state (n, 31)) -> action (n, 8)
    evaluation_goal(task, seed) -> (2,)   relabel(episodes, goal) -> list[Episode]   require_reward(name, episodes) -> RewardCount

The data are collected by D4RL's protocol (`jacrec.envs.antmaze_layout`: starts and goals; action noise 0.2; the ant goes on
when it has arrived) and rewarded afterwards, by one goal drawn as an evaluation draws it. The walker is ours, so the data are
D4RL's in kind, not in number. Besides, episodes are as long as the evaluation's, where D4RL's recorder counts one step
further, and the state after the last step is kept.
"""

from dataclasses import dataclass, replace

import numpy as np

from jacrec.data.behaviour.ant_gait import Gait, load_gait
from jacrec.data.behaviour.collect import Episode
from jacrec.data.behaviour.pointmaze import shortest_paths
from jacrec.envs.antmaze import STATE_DIM
from jacrec.envs.antmaze_layout import MAZES, TASKS, Maze, centre, draw_goal, reached

ACTION_NOISE = 0.2
"""standard deviation of the noise on the data's actions, D4RL's"""
MIN_REWARDED_EPISODES = 2
"""episodes with a rewarded step, below which data are refused"""


@dataclass(frozen=True)
class WaypointFollower:
    """Walks to the goal that follows the 29 numbers of the state: straight on in the goal's cell, elsewhere along the line from
    its cell's centre to the next one's, drawn towards that line. A function of the state alone, so that the data are Markov.
    """

    maze: Maze
    next_cell: np.ndarray  # (rows, columns, rows, columns, 2) [from][goal] -> neighbour on a shortest way, -1 if none
    gait: Gait
    pull: float = 1.0
    """how strongly it is drawn to the line, radians of turn per metre near it"""

    @classmethod
    def of(cls, maze: str, gait: Gait | None = None) -> "WaypointFollower":
        """The follower for one of `jacrec.envs.antmaze_layout.MAZES`."""
        return cls(MAZES[maze], shortest_paths(MAZES[maze].free), gait or load_gait())

    @classmethod
    def for_task(cls, task: str, gait: Gait | None = None) -> "WaypointFollower":
        """The follower for the maze of one of the six tasks."""
        return cls.of(TASKS[task].maze, gait)

    def __call__(self, state: np.ndarray) -> np.ndarray:
        """States with goals (n, 31) to actions (n, 8)."""
        return self.gait(state, self.heading(state[:, :2], state[:, STATE_DIM:]))

    def heading(self, xy: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """(n,) where to go from positions (n, 2) towards goals (n, 2), radians from the x axis."""
        here, there = self.maze.cell_of(xy), self.maze.cell_of(goal)
        ahead = self.next_cell[here[:, 0], here[:, 1], there[:, 0], there[:, 1]]
        straight = (here == there).all(1) | (ahead[:, 0] < 0)
        along = (ahead - here)[:, ::-1]  # (n, 2) unit vector in x, y
        offset = xy - centre(here)
        across = np.stack((-along[:, 1], along[:, 0]), axis=1)
        aside = (offset * across).sum(1, keepdims=True)
        way = np.where(straight[:, None], goal - xy, along - self.pull * aside * across)
        return np.arctan2(way[:, 1], way[:, 0])


@dataclass(frozen=True)
class RewardCount:
    """How much of a data set carries reward."""

    episodes: int
    """episodes with a rewarded step"""
    steps: int
    """rewarded steps"""
    of: int
    """all episodes"""


def evaluation_goal(task: str, seed: int) -> np.ndarray:
    """(2,) the one goal that the rewards of a data set stand for, drawn as an evaluation draws it."""
    return draw_goal(np.random.default_rng([seed, 0x60A1]), (MAZES[TASKS[task].maze].evaluation_goal,))


def relabel(episodes: list[Episode], goal: np.ndarray) -> list[Episode]:
    """Episodes as collected (T + 1, 31) to those of the data set (T + 1, 29), with the rewards of another goal (2,).

    As in D4RL, step k has reward 1 and is terminal if the state after it is within the goal's radius. No episode ends
    there: the ant went on to the goal it had, and the steps after a terminal one are transitions like any other.
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
    """How much of relabelled episodes carries reward.

    Raises:
        ValueError: fewer than `MIN_REWARDED_EPISODES` episodes do: a critic could learn nothing.
    """
    steps = [int(episode.rewards.sum()) for episode in episodes]
    found = RewardCount(sum(n > 0 for n in steps), sum(steps), len(steps))
    if found.episodes < MIN_REWARDED_EPISODES:
        raise ValueError(
            f"{name}: expected at least {MIN_REWARDED_EPISODES} episodes that come to the evaluation's goal, got {found.episodes} of "
            f"{found.of}; most goals of this kind lie elsewhere: make more steps"
        )
    return found
