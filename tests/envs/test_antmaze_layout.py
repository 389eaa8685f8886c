"""Mazes of D4RL's AntMaze: geometry, starts, goals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jacrec.data.behaviour.pointmaze import shortest_paths
from jacrec.envs.antmaze_layout import MAZES, centre, draw_goal, reached

GOAL_CELLS = {"umaze": (3, 1), "medium": (6, 6), "large": (7, 9)}
FREE = {"umaze": 7, "medium": 26, "large": 46}
PATH_LENGTH = {"umaze": 6, "medium": 10, "large": 14}  # steps between start and goal


@pytest.mark.parametrize("name", MAZES)
def test_mazes_are_closed_and_connected(name):
    maze = MAZES[name]
    free = maze.free
    assert not np.concatenate((free[0], free[-1], free[:, 0], free[:, -1])).any()
    assert free.shape == {"umaze": (5, 5), "medium": (8, 8), "large": (9, 12)}[name]
    assert free.sum() == FREE[name]
    assert maze.evaluation_goal == GOAL_CELLS[name]
    assert free[1, 1]
    assert all(free[cell] for cell in maze.training_goals)
    paths = shortest_paths(free)
    cell, steps = (1, 1), 0
    while cell != maze.evaluation_goal:
        cell, steps = tuple(paths[(*cell, *maze.evaluation_goal)]), steps + 1
    assert steps == PATH_LENGTH[name]
    for start in maze.free_cells:
        assert start == (1, 1) or (paths[(*start, 1, 1)] >= 0).all()


@given(st.sampled_from(sorted(MAZES)), st.data())
def test_cells_and_positions_agree(name, data):
    maze = MAZES[name]
    cell = data.draw(st.sampled_from(maze.free_cells + maze.wall_cells))
    offset = data.draw(st.tuples(*[st.floats(-1.99, 1.99)] * 2))
    assert tuple(maze.cell_of(centre(cell) + np.array(offset))) == cell
    assert centre((1, 1)).tolist() == [0, 0]
    assert centre(cell).tolist() == [4 * (cell[1] - 1), 4 * (cell[0] - 1)]
    assert tuple(maze.cell_of(np.array([-1e3, 1e3]))) == (maze.free.shape[0] - 1, 0)


def test_goals_are_distributed_as_in_d4rl():
    goals = np.array([draw_goal(np.random.default_rng(seed), ((7, 9),)) for seed in range(4000)]) - centre((7, 9))
    assert goals.mean(0) == pytest.approx([0.75, 0.75], abs=0.02)
    assert goals.var(0) == pytest.approx([(1 + 0.25) / 12] * 2, rel=0.06)
    assert np.abs(np.corrcoef(goals.T)[0, 1]) < 0.05
    assert (draw_goal(np.random.default_rng(0), ((0, 0),)) == 0).all()  # clipped at the origin


@given(st.tuples(*[st.floats(-5, 5)] * 2), st.tuples(*[st.floats(-5, 5)] * 2))
def test_reached_is_a_disk(xy, goal):
    distance = np.hypot(xy[0] - goal[0], xy[1] - goal[1])
    assert reached(np.array(xy), np.array(goal)) == (distance <= 0.5) or abs(distance - 0.5) < 1e-12
    assert reached(np.array([goal, goal]), np.array(goal)).tolist() == [True, True]
