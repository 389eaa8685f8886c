"""Mazes and tasks of D4RL's AntMaze: walls, cells, where episodes start, where goals lie.

    MAZES: umaze, medium, large -> Maze(walls, evaluation_goal, training_goals, max_episode_steps)
    TASKS: umaze, umaze-diverse, medium-play, ... -> Task(maze, starts, goals)   what the data are collected with
    centre(cell) -> (x, y)   Maze.cell_of(xy) -> (row, column)   draw_goal(rng, cells)   draw_start(rng, cells)

Cells are squares of side 4. The start cell (1, 1) has its centre at the origin; x grows with the column, y with the row.
Read off D4RL (Fu et al. 2020), d4rl/locomotion at commit 89141a6: maze_env.py, generate_dataset.py. What it does not say: which
goals the data of the diverse kinds were collected with (its flag only names the file). Here they are uniform over the free
cells, which is what its sampler does with a map that marks no goals.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

CELL = 4.0
"""side of a cell, metres"""
GOAL_RADIUS = 0.5
"""a goal is reached within this distance, metres"""
Cell = tuple[int, int]
"""(row, column)"""


@dataclass(frozen=True)
class Maze:
    """A map, and what an evaluation in it is."""

    walls: tuple[str, ...]
    """one string per row, "#" for a wall"""
    evaluation_goal: Cell
    training_goals: tuple[Cell, ...]
    """goals of the data of the kind play (umaze: of its only kind with fixed goals)"""
    max_episode_steps: int

    @cached_property
    def free(self) -> np.ndarray:
        """(rows, columns) bool: cells without a wall."""
        return np.array([[mark != "#" for mark in row] for row in self.walls])

    @property
    def free_cells(self) -> tuple[Cell, ...]:
        return tuple((int(i), int(j)) for i, j in np.argwhere(self.free))

    @property
    def blocks(self) -> tuple[Cell, ...]:
        """The walls' cells, row by row."""
        return tuple((int(i), int(j)) for i, j in np.argwhere(~self.free))

    def cell_of(self, xy: np.ndarray) -> np.ndarray:
        """Row and column (..., 2) of positions (..., 2); positions outside the map count to its border."""
        cell = np.floor(np.asarray(xy)[..., ::-1] / CELL + 1.5).astype(int)
        return np.clip(cell, 0, np.array(self.free.shape) - 1)


@dataclass(frozen=True)
class Task:
    """One of the six: a maze, and the protocol that its data are collected by. Evaluations start at the origin in all six."""

    maze: str
    starts: tuple[Cell, ...] | None
    """cells where the data's episodes start, uniformly; None: at the origin"""
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
    """Fixed goals; where a map marks a goal, D4RL starts no episode."""
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
    """(..., 2) the centres (x, y) of cells (row, column) (..., 2), metres."""
    return CELL * (np.asarray(cell, np.float64)[..., ::-1] - 1.0)


def draw_goal(rng: np.random.Generator, cells: tuple[Cell, ...]) -> np.ndarray:
    """(2,) a goal in one of the cells: its centre + U(0, 1)² + U(0, 0.5)², not below 0."""
    corner = centre(cells[rng.integers(len(cells))])
    return np.maximum(corner + rng.uniform(0.0, 1.0, 2) + rng.uniform(0.0, 0.5, 2), 0.0)


def draw_start(rng: np.random.Generator, cells: tuple[Cell, ...]) -> np.ndarray:
    """(2,) where an episode of the data starts: the centre of one of the cells + U(0, 1)², not below 0."""
    return np.maximum(centre(cells[rng.integers(len(cells))]) + rng.uniform(0.0, 1.0, 2), 0.0)


def reached(xy: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """(...) bool: positions (..., 2) within `GOAL_RADIUS` of goals (..., 2)."""
    return np.sqrt(np.square(np.asarray(xy) - goal).sum(-1)) <= GOAL_RADIUS
