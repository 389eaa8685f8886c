"""The contact compatibility, its record, and the reference step."""

import tempfile

import gymnasium
import mujoco
import numpy as np
import pytest

from jacrec.envs import physics
from jacrec.envs.physics import check_physics, make_env, margins_are_summed, physics_record


def test_only_the_compatible_physics_reproduce_the_reference():
    check = check_physics()
    assert check.ok
    assert check.error < 1e-12
    assert check.native_error > 1e-3
    assert "reproduce the reference physics" in check.message


def test_a_failing_check_names_the_remedy(monkeypatch):
    monkeypatch.setattr(physics, "_probe_error", lambda name: 0.01)
    check = check_physics()
    assert not check.ok
    assert "not comparable with D4RL's" in check.message
    assert "install mujoco>=3.17,<4" in check.message


def test_margins_are_halved_once_and_recorded():
    native, ours = make_env("Hopper-v4", physics="native"), make_env("Hopper-v4")
    assert np.array_equal(ours.unwrapped.model.geom_margin, 0.5 * native.unwrapped.model.geom_margin)
    assert physics_record(ours) == {"mujoco": mujoco.__version__, "physics": "d4rl", "margins_halved": True}
    assert physics_record(native)["margins_halved"] is False
    assert physics_record(make_env("HalfCheetah-v4"))["margins_halved"] is False


@pytest.mark.parametrize(
    ("version", "summed"), [("2.3.7", False), ("3.4.0", False), ("3.5.0", True), ("3.17.0", True), ("4.0.0", True)]
)
def test_versions_that_sum_margins(version, summed):
    assert margins_are_summed(version) is summed


def test_making_environments_is_quiet_and_leaves_no_log(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    for env_id in ("Hopper-v4", "HalfCheetah-v4", "Walker2d-v4"):
        make_env(env_id).close()
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_invalid_arguments_are_rejected():
    with pytest.raises(ValueError, match=r"^env_id: .*got 'Hoper-v4'"):
        make_env("Hoper-v4")
    with pytest.raises(ValueError, match=r"^physics: .*'d4rl', 'native', got 'old'"):
        make_env("Hopper-v4", physics="old")
    with pytest.raises(ValueError, match=r"^env: .*jacrec\.envs\.physics\.make_env"):
        physics_record(gymnasium.make("CartPole-v1"))


def test_the_state_of_a_maze_contains_the_goal(tmp_path, monkeypatch):
    pytest.importorskip("gymnasium_robotics", reason="the maze extra is not installed")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "inner"))
    (tmp_path / "inner").mkdir()
    env = make_env("PointMaze_UMaze-v3")
    assert list(tmp_path.glob("**/*.xml")) == []
    observation, _ = env.reset(seed=0)
    assert observation.shape == env.observation_space.shape == (6,)
    assert np.array_equal(observation[4:], env.unwrapped.goal)


def test_a_missing_maze_extra_is_reported(monkeypatch):
    monkeypatch.setattr(physics.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"^env_id: 'PointMaze_UMaze-v3' .*pip install 'jacrec\[maze\]'"):
        make_env("PointMaze_UMaze-v3")
