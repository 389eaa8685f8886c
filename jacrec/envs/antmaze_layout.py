"""Mazes and tasks of D4RL's AntMaze: walls, cells, start positions and goals.

Cells are squares of side 4. The start cell (1, 1) is centred at the origin; x grows with the column, y with the row.
Taken from D4RL (Fu et al. 2020), d4rl/locomotion at commit 89141a6: maze_env.py, generate_dataset.py. D4RL does not state
which goals the data of the diverse kinds were collected with (its flag only affects the file name). Here they are uniform
over the free cells, as its sampler does for a map without marked goals.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

CELL = 4.0
"""side length of a cell, metres"""
GOAL_RADIUS = 0.5
"""distance within which a goal counts as reached, metres"""
Cell = tuple[int, int]
"""(row, column)"""


@dataclass(frozen=True)
class Maze:
    """A map with its evaluation goal and time limit."""

    walls: tuple[str, ...]
    """one string per row, "#" is a wall"""
    evaluation_goal: Cell
    training_goals: tuple[Cell, ...]
    """goals of the data of kind play (umaze: of its only kind with fixed goals)"""
    max_episode_steps: int

    @cached_property
    def free(self) -> np.ndarray:
        """(rows, columns) bool: cells without a wall."""
        return np.array([[mark != "#" for mark in row] for row in self.walls])

    @property
    def free_cells(self) -> tuple[Cell, ...]:
        """The cells without a wall, row by row."""
        return tuple((int(i), int(j)) for i, j in np.argwhere(self.free))

    @property
    def wall_cells(self) -> tuple[Cell, ...]:
        """The wall cells, row by row."""
        return tuple((int(i), int(j)) for i, j in np.argwhere(~self.free))

    def cell_of(self, xy: np.ndarray) -> np.ndarray:
        """Row and column (..., 2) of positions (..., 2), clipped to the map."""
        cell = np.floor(np.asarray(xy)[..., ::-1] / CELL + 1.5).astype(int)
        return np.clip(cell, 0, np.array(self.free.shape) - 1)


@dataclass(frozen=True)
class Task:
    """One of the six tasks: a maze and the collection protocol of its data. All evaluations start at the origin."""

    maze: str
    starts: tuple[Cell, ...] | None
    """cells in which the data's episodes start, uniformly; None: at the origin"""
    goals: tuple[Cell, ...]
    """cells of the data's goals, uniformly"""


MAZES = {
    "umaze": Maze(
        (
            "#####",
            "#   #",
            "### #",
            "#   #",
            "#####",
        ),
        evaluation_goal=(3, 1),
        training_goals=((3, 1),),
        max_episode_steps=700,
    ),
    "medium": Maze(
        (
            "########",
            "#  ##  #",
            "#  #   #",
            "##   ###",
            "#  #   #",
            "# #  # #",
            "#   #  #",
            "########",
        ),
        evaluation_goal=(6, 6),
        training_goals=((2, 6), (5, 1), (6, 5)),
        max_episode_steps=1000,
    ),
    "large": Maze(
        (
            "############",
            "#    #     #",
            "# ## # # # #",
            "#      #   #",
            "# #### ### #",
            "#  # #     #",
            "## # # # ###",
            "#  #   #   #",
            "############",
        ),
        evaluation_goal=(7, 9),
        training_goals=((1, 6), (3, 5), (3, 10), (5, 2), (7, 4), (7, 6), (7, 9)),
        max_episode_steps=1000,
    ),
}


def _play(name: str) -> Task:
    """Fixed goals. D4RL never starts an episode in a cell marked as a goal."""
    maze = MAZES[name]
    return Task(name, tuple(cell for cell in maze.free_cells if cell not in maze.training_goals), maze.training_goals)


def _diverse(name: str) -> Task:
    return Task(name, MAZES[name].free_cells, MAZES[name].free_cells)


TASKS = {
    "umaze": Task("umaze", None, MAZES["umaze"].training_goals),
    "umaze-diverse": _diverse("umaze"),
    "medium-play": _play("medium"),
    "medium-diverse": _diverse("medium"),
    "large-play": _play("large"),
    "large-diverse": _diverse("large"),
}


def centre(cell: Cell | np.ndarray) -> np.ndarray:
    """Centres (x, y) of cells (row, column), (..., 2), metres."""
    return CELL * (np.asarray(cell, np.float64)[..., ::-1] - 1.0)


def draw_goal(rng: np.random.Generator, cells: tuple[Cell, ...]) -> np.ndarray:
    """A goal (2,) in one of the cells: its centre + U(0, 1)² + U(0, 0.5)², clipped below at 0."""
    corner = centre(cells[rng.integers(len(cells))])
    return np.maximum(corner + rng.uniform(0.0, 1.0, 2) + rng.uniform(0.0, 0.5, 2), 0.0)


def draw_start(rng: np.random.Generator, cells: tuple[Cell, ...]) -> np.ndarray:
    """A start position (2,) of the data: the centre of one of the cells + U(0, 1)², clipped below at 0."""
    return np.maximum(centre(cells[rng.integers(len(cells))]) + rng.uniform(0.0, 1.0, 2), 0.0)


def reached(xy: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """(...) bool: positions (..., 2) within `GOAL_RADIUS` of goals (..., 2)."""
    return np.sqrt(np.square(np.asarray(xy) - goal).sum(-1)) <= GOAL_RADIUS
