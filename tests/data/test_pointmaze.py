"""The point-maze controller: shortest paths on small maps, and success in every maze."""

import numpy as np
import pytest

from jacrec.data import load, make_dataset
from jacrec.data.behaviour.make import MAZES, behaviour_stages, make_episodes
from jacrec.data.behaviour.pointmaze import PointMazeController, shortest_paths

RNG = np.random.default_rng(0)


def test_paths_are_shortest_and_avoid_walls():
    free = np.array([[1, 1, 1, 1], [1, 0, 0, 1], [1, 1, 0, 1], [0, 0, 0, 1]], bool)
    ahead = shortest_paths(free)
    position, steps = (2, 1), 0
    while position != (3, 3):
        following = tuple(ahead[(*position, 3, 3)])
        assert abs(following[0] - position[0]) + abs(following[1] - position[1]) == 1
        assert free[following]
        position, steps = following, steps + 1
    assert steps == 9
    assert (ahead[1, 1, 3, 3] == -1).all()
    assert (ahead[3, 3, 3, 3] == -1).all()


def test_the_controller_is_bounded_and_depends_only_on_the_state():
    controller = PointMazeController(np.array([-1.5, 1.5]), 1.0, shortest_paths(np.ones((3, 3), bool)))
    state = RNG.uniform(-2, 2, (50, 6))
    action = controller(state)
    assert action.shape == (50, 2)
    assert np.abs(action).max() <= 1.0
    assert np.array_equal(action[7], controller(state[7:8])[0])
    # at rest in the goal's cell, to the left of the goal: push right
    assert controller(np.array([[-0.3, 0.0, 0.0, 0.0, 0.3, 0.0]])).tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize("env_name", sorted(MAZES))
def test_every_maze_is_solved(env_name):
    pytest.importorskip("gymnasium_robotics", reason="the maze extra is not installed")
    episodes = make_episodes(env_name, "expert", steps=2400, seed=0)
    complete = [episode for episode in episodes if len(episode) >= 300]
    assert len(complete) >= 3
    assert all(episode.rewards.sum() > 50 for episode in complete)


def test_data_have_goal_dicts_on_disk_and_flat_states_in_memory(tmp_path, monkeypatch):
    pytest.importorskip("gymnasium_robotics", reason="the maze extra is not installed")
    minari = pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    made = make_dataset("pointmaze-umaze", "expert", steps=700)
    data = load(made.dataset_id)
    assert (data.state_dim, data.action_dim, len(data)) == (6, 2, 700)
    assert data.info.env_id == "PointMaze_UMaze-v3"
    assert data.info.score(data.info.ref_max) == pytest.approx(100.0)
    episode = next(minari.load_dataset(made.dataset_id).iterate_episodes())
    assert set(episode.observations) == {"observation", "achieved_goal", "desired_goal"}
    state = np.concatenate((episode.observations["observation"], episode.observations["desired_goal"]), axis=1)
    assert np.array_equal(data.state[:300], state[:-1].astype(np.float32))
    assert np.array_equal(episode.observations["achieved_goal"], episode.observations["observation"][:, :2])
    assert behaviour_stages("pointmaze-umaze", "random")[0].policy is None
