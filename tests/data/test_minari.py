"""Minari data sets of vectors and of goal dicts against an explicit loop, and inconsistent data sets."""

import json

import gymnasium
import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from minari.data_collector.episode_buffer import EpisodeBuffer
from minari.dataset.minari_storage import MinariStorage

from jacrec.data import load
from jacrec.data.behaviour.collect import Episode
from jacrec.data.readers.minari import dataset_path, read_minari, write_minari
from jacrec.envs.physics import goal_in_state, make_env
from jacrec.training.config import TrainConfig, published_name

SPECS = {  # kind of data set: environment, and the widths of its observation, position and goal
    "locomotion": ("Hopper-v5", 11, 0, 0),
    "pointmaze": ("PointMaze_UMaze-v3", 4, 2, 2),
    "antmaze": ("AntMaze_UMaze-v4", 27, 2, 2),
}
ACTIONS = {"locomotion": 3, "pointmaze": 2, "antmaze": 8}
STEPS = st.lists(st.lists(st.sampled_from("...tx"), min_size=1, max_size=6), min_size=1, max_size=4)


@pytest.fixture(autouse=True, scope="module")
def root(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(tmp_path_factory.mktemp("minari")))
        yield


def write(dataset_id: str, kind: str, episodes: list[dict], env_spec: bool = True) -> None:
    """Write episodes with Minari's own writer, which does not check shapes."""
    path = dataset_path(dataset_id)
    path.mkdir(parents=True, exist_ok=True)
    env_id, width, reached, goal = SPECS[kind]

    def box(d: int) -> gymnasium.spaces.Box:
        return gymnasium.spaces.Box(-np.inf, np.inf, (d,), np.float64)

    space = (
        box(width)
        if not goal
        else gymnasium.spaces.Dict({"observation": box(width), "achieved_goal": box(reached), "desired_goal": box(goal)})
    )
    if kind == "locomotion":
        gymnasium.spec(env_id)
    else:
        make_env(env_id).close()  # registers the id
    storage = MinariStorage.new(
        path / "data", space, gymnasium.spaces.Box(-1, 1, (ACTIONS[kind],)), gymnasium.spec(env_id) if env_spec else None
    )
    storage.update_metadata({"dataset_id": dataset_id})
    storage.update_episodes([EpisodeBuffer(**episode) for episode in episodes])


def episode_of(kind: str, marks: str, rng: np.random.Generator) -> dict:
    """Marks: t for a termination, x for a truncation, at any step; goal environments continue after both."""
    T, (_, width, reached, goal) = len(marks), SPECS[kind]
    observations = rng.standard_normal((T + 1, width))
    if goal:
        position = observations[:, :reached] if kind == "pointmaze" else rng.standard_normal((T + 1, reached))
        desired = rng.standard_normal((T + 1, goal))
        observations = {"observation": observations, "achieved_goal": position, "desired_goal": desired}
    return {
        "observations": observations,
        "actions": rng.uniform(-1, 1, (T, ACTIONS[kind])),
        "rewards": rng.standard_normal(T),
        "terminations": np.array([mark == "t" for mark in marks]),
        "truncations": np.array([mark == "x" for mark in marks]),
    }


def expected_rows(kind: str, episodes: list[dict]) -> list[tuple]:
    """(s, a, r, s', a' or None, terminal, episode) for every step, one at a time."""
    found = []
    for number, e in enumerate(episodes):
        for t in range(len(e["rewards"])):
            o, pair = e["observations"], []
            for k in (t, t + 1):
                if kind == "locomotion":
                    pair.append(o[k])
                elif kind == "pointmaze":
                    pair.append([*o["observation"][k], *o["desired_goal"][k]])
                else:
                    pair.append([*o["achieved_goal"][k], *o["observation"][k], *o["desired_goal"][k]])
            following = e["actions"][t + 1] if t + 1 < len(e["rewards"]) else None
            found.append((pair[0], e["actions"][t], e["rewards"][t], pair[1], following, e["terminations"][t], number))
    return found


@pytest.mark.parametrize("kind", SPECS)
def test_data_sets_equal_an_explicit_loop(kind):
    count = iter(range(10_000))

    @settings(max_examples=30)  # each example writes a data set
    @given(marks=STEPS, seed=st.integers(0, 99))
    def compare(marks, seed):
        rng = np.random.default_rng(seed)
        episodes = [episode_of(kind, "".join(part), rng) for part in marks]
        name = f"test/{kind}{next(count)}-v0"
        write(name, kind, episodes)
        read, rows = load(name, download=False), expected_rows(kind, episodes)
        assert len(read) == len(rows)
        assert read.blind_ends is None
        for k, (s, a, r, successor, following, terminal, number) in enumerate(rows):
            assert np.array_equal(read.state[k], np.float32(s))
            assert np.array_equal(read.next_state[k], np.float32(successor))
            assert np.array_equal(read.action[k], np.float32(a))
            assert read.reward[k] == np.float32(r)
            assert read.has_next_action[k] == (following is not None)
            assert np.array_equal(read.next_action[k], np.zeros(len(a)) if following is None else np.float32(following))
            assert (read.terminal[k], read.episode[k]) == (terminal, number)
        kept = read.for_td()
        td = [row for row in rows if row[5] or row[4] is not None]
        assert np.array_equal(kept.reward, np.float32([row[2] for row in td]))
        assert np.array_equal(kept.terminal, np.array([row[5] for row in td], bool))

    compare()


@pytest.mark.parametrize("env_id", ["PointMaze_UMaze-v3", "AntMaze_UMaze-v4", "AntMaze_UMaze-v5"])
def test_a_goal_environment_and_its_data_share_their_state(env_id):
    env = make_env(env_id)
    state, _ = env.reset(seed=0)
    core = env.unwrapped
    assert state.shape == env.observation_space.shape
    raw = env.env.reset(seed=0)[0]  # the environment inside the flattening wrapper
    assert np.array_equal(state, goal_in_state(raw, with_position=env_id.startswith("Ant")))
    assert np.array_equal(state[:2], raw["achieved_goal"])  # the position is in the state in either case
    assert np.array_equal(state[-2:], raw["desired_goal"])
    assert core is env.unwrapped
    env.close()


@pytest.mark.parametrize("env_id", ["PointMaze_UMaze-v3", "AntMaze_UMaze-v4"])
def test_states_with_goals_round_trip_through_disk(env_id):
    env, rng = make_env(env_id), np.random.default_rng(0)
    d, m = env.observation_space.shape[0], env.action_space.shape[0]
    episodes = [
        Episode(rng.standard_normal((5, d)), rng.uniform(-1, 1, (4, m)).astype(np.float32), rng.standard_normal(4), False)
        for _ in range(2)
    ]
    name = f"test/{env_id.lower().replace('_', '-').rsplit('-', 1)[0]}-v0"
    write_minari(name, episodes, env=env.unwrapped, metadata={})
    env.close()
    read = load(name, download=False)
    assert np.array_equal(read.state, np.float32(np.concatenate([e.observations[:-1] for e in episodes])))
    assert np.array_equal(read.next_state, np.float32(np.concatenate([e.observations[1:] for e in episodes])))
    with h5py.File(dataset_path(name) / "data" / "main_data.hdf5") as file:
        stored = file["episode_0/observations"]
        assert np.array_equal(stored["achieved_goal"], episodes[0].observations[:, :2])
        assert np.array_equal(stored["desired_goal"], episodes[0].observations[:, -2:])


def test_minaris_antmaze_is_not_scored_as_d4rls():
    name = "D4RL/antmaze/umaze-v1"
    write(name, "antmaze", [episode_of("antmaze", "..t.", np.random.default_rng(0))] * 2)
    read = load(name, download=False)
    assert (read.info.env_id, read.state_dim) == ("AntMaze_UMaze-v4", 31)
    assert (
        read.info.score(1.0) is None
    )  # episodes continue past the goal and returns count visits, so D4RL's references do not apply
    assert TrainConfig.for_dataset(name).rebrac.reward_scale == 100.0
    with pytest.raises(
        ValueError, match=r"^D4RL/antmaze/umaze-v1: .*state_dim = 29, action_dim = 8 .*jacrec/antmaze-umaze-v2, got 31, 8"
    ):
        load(name, env_id="jacrec/antmaze-umaze-v2", download=False)


def test_scores_depend_on_the_environment_not_the_name():
    write("me/antmaze-umaze-v1", "antmaze", [episode_of("antmaze", "..t.", np.random.default_rng(0))])
    assert load("me/antmaze-umaze-v1", download=False).info.score(1.0) is None


@pytest.mark.parametrize("task", ["umaze", "umaze-diverse", "medium-play", "medium-diverse", "large-play", "large-diverse"])
@pytest.mark.parametrize("name", ["antmaze-{}-v2", "D4RL/antmaze/{}-v1", "folder/antmaze-{}-v2.hdf5"])
def test_antmaze_is_recognised_under_every_name(task, name):
    assert published_name(name.format(task)) == f"antmaze-{task}-v2"
    rebrac = TrainConfig.for_dataset(name.format(task)).rebrac
    assert (rebrac.reward_scale, rebrac.discount, rebrac.batch_size) == (100.0, 0.999, 256)


def corrupted(change) -> str:
    """The id of a data set whose second episode was changed after writing."""
    name = f"test/corrupted{next(COUNT)}-v0"
    rng = np.random.default_rng(0)
    write(name, "locomotion", [episode_of("locomotion", "....", rng), episode_of("locomotion", "...t", rng)])
    with h5py.File(dataset_path(name) / "data" / "main_data.hdf5", "a") as file:
        change(file["episode_1"])
    return name


COUNT = iter(range(1000))


def test_inconsistent_episodes_are_rejected():
    def short(group):
        values = group["observations"][:3]
        del group["observations"]
        group["observations"] = values

    with pytest.raises(ValueError, match=r"episode 1: observations: .*\(5, 'd'\) .*got \(3, 11\)"):
        read_minari(corrupted(short))

    def narrow(group):
        values = group["observations"][:, :7]
        del group["observations"]
        group["observations"] = values

    with pytest.raises(ValueError, match=r"episode 1: .*state_dim = 11, action_dim = 3 .*got 7, 3"):
        read_minari(corrupted(narrow))

    def infinite(group):
        group["rewards"][2] = np.inf

    with pytest.raises(ValueError, match=r"episode 1: rewards: .*finite .*got inf in row 2"):
        read_minari(corrupted(infinite))

    def far(group):
        group["actions"][3] = 1.5

    with pytest.raises(ValueError, match=r"episode 1: actions: .*\[-1, 1\], got .*in row 3"):
        read_minari(corrupted(far))


@pytest.mark.parametrize(("recorded", "message"), [(7, "expected 7 steps .*got at least 8"), (9, "expected 9 steps .*got 8")])
def test_wrong_step_counts_in_the_metadata_are_rejected(recorded, message):
    name = corrupted(lambda group: None)
    path = dataset_path(name) / "data" / "metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"total_steps": recorded}))
    with pytest.raises(ValueError, match=message):
        read_minari(name)


def test_other_observation_spaces_are_rejected():
    name = "test/pictures-v0"
    path = dataset_path(name)
    path.mkdir(parents=True)
    space = gymnasium.spaces.Box(0, 1, (4, 4), np.float64)
    storage = MinariStorage.new(path / "data", space, gymnasium.spaces.Box(-1, 1, (2,)))
    storage.update_metadata({"dataset_id": name})
    zeros = np.zeros(3)
    storage.update_episodes(
        [
            EpisodeBuffer(
                observations=np.zeros((4, 4, 4)),
                actions=np.zeros((3, 2)),
                rewards=zeros,
                terminations=zeros > 1,
                truncations=zeros > 1,
            )
        ]
    )
    with pytest.raises(ValueError, match=r"^test/pictures-v0: .*vector observations .*got Box"):
        read_minari(name)
