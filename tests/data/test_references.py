"""References looked up by name and by environment."""

import pytest

from jacrec.data.references import reference_by_env, reference_by_name, references


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("hopper_medium_replay-v2", "hopper"),
        ("hopper-medium-v2", "hopper"),
        ("HalfCheetah-expert", "halfcheetah"),
        ("walker2d_random-v2", "walker2d"),
        ("antmaze-umaze-v2", "antmaze-umaze"),
        ("antmaze-umaze-diverse-v2", "antmaze-umaze-diverse"),
        ("ant-medium-v2", "ant"),
        ("maze2d-umaze-sparse-v1", "maze2d-umaze"),
        ("pointmaze-large-expert-v0", "pointmaze-large"),
    ],
)
def test_names_find_their_reference(name, key):
    assert reference_by_name(name) is references()[key]


@pytest.mark.parametrize("name", ["hoppers-v2", "pen-human-v1", "", "medium-hopper"])
def test_other_names_have_no_reference(name):
    assert reference_by_name(name) is None


@pytest.mark.parametrize(
    ("env_id", "key"),
    [("Hopper-v4", "hopper"), ("Hopper-v5", "hopper"), ("Ant-v4", "ant"), ("PointMaze_UMaze-v3", "pointmaze-umaze")],
)
def test_environments_find_their_reference_in_any_version(env_id, key):
    assert reference_by_env(env_id) is references()[key]


@pytest.mark.parametrize("env_id", ["PointMaze_UMazeDense-v3", "AntMaze_UMaze-v5", "CartPole-v1", "Hopper"])
def test_other_environments_have_no_reference(env_id):
    assert reference_by_env(env_id) is None
