"""Behaviour for point mazes: breadth-first search for the path, a PD controller to follow it."""

from collections import deque
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np


@dataclass(frozen=True)
class PointMazeController:
    """action = clip(gain (target - position) - damping velocity, ±1); target: the next cell's centre, or the goal.

    States are (x, y, vx, vy, goal x, goal y) in metres and metres per second. The action depends on the state alone, so that
    the data are Markov.
    """

    origin: np.ndarray  # (2,) x of the left edge, y of the upper edge
    cell: float
    """side length of a cell, metres"""
    next_cell: np.ndarray  # (rows, columns, rows, columns, 2) [from][goal] -> next cell of a shortest path, -1 if none
    gain: float = 10.0
    damping: float = 1.0

    @classmethod
    def of(cls, env: gymnasium.Env) -> "PointMazeController":
        """The controller for a Gymnasium-Robotics PointMaze environment."""
        core: Any = env.unwrapped
        maze = core.maze
        free = np.array([[cell != 1 for cell in row] for row in maze.maze_map])
        origin = np.array([-maze.x_map_center, maze.y_map_center])
        return cls(origin, float(maze.maze_size_scaling), shortest_paths(free))

    def __call__(self, state: np.ndarray) -> np.ndarray:
        """Map states (n, 6) to actions (n, 2)."""
        position, velocity, goal = state[..., :2], state[..., 2:4], state[..., 4:6]
        i, j = self._cell_of(position)
        k, l = self._cell_of(goal)
        ahead = self.next_cell[i, j, k, l]  # (n, 2)
        arrived = ((i == k) & (j == l)) | (ahead[..., 0] < 0)
        centre = self.origin + self.cell * np.stack((ahead[..., 1] + 0.5, -ahead[..., 0] - 0.5), axis=-1)
        target = np.where(arrived[..., None], goal, centre)
        return np.clip(self.gain * (target - position) - self.damping * velocity, -1.0, 1.0)

    def _cell_of(self, point: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Row and column of points (..., 2), clipped to the map."""
        column = np.floor((point[..., 0] - self.origin[0]) / self.cell).astype(int)
        row = np.floor((self.origin[1] - point[..., 1]) / self.cell).astype(int)
        rows, columns = self.next_cell.shape[:2]
        return np.clip(row, 0, rows - 1), np.clip(column, 0, columns - 1)


def shortest_paths(free: np.ndarray) -> np.ndarray:
    """Breadth-first search from every goal: [from][goal] -> the next free cell on a shortest path.

    free (rows, columns) bool; returns (rows, columns, rows, columns, 2) int, -1 where there is no path.
    """
    rows, columns = free.shape
    ahead = np.full((rows, columns, rows, columns, 2), -1)
    for k, l in np.argwhere(free):
        queue, seen = deque([(k, l)]), {(k, l)}
        while queue:
            i, j = queue.popleft()
            for a, b in ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)):
                if 0 <= a < rows and 0 <= b < columns and free[a, b] and (a, b) not in seen:
                    seen.add((a, b))
                    ahead[a, b, k, l] = i, j
                    queue.append((a, b))
    return ahead
