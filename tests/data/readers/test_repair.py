"""Slight faults of other recorders: errors that name them, mended on request."""

import json

import gymnasium
import h5py
import numpy as np
import pytest

from jacrec.data import list_datasets, load
from jacrec.data.readers.minari import read_minari
from jacrec.training.config import TrainConfig
from jacrec.training.run import load_transitions
from tests.data.readers.sources import assert_reads_as, make, plain_rows

LAST = {0: 3, 1: 5, 2: 2}
"""last step of each episode of `make`'s set"""


@pytest.fixture
def case(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    return make("minari", tmp_path, tmp_path)


def change(case, episode: int, **changes) -> None:
    """Replace arrays of an episode by what a function makes of them."""
    with h5py.File(case.path, "r+") as file:
        group = file[f"episode_{episode}"]
        for key, function in changes.items():
            value = function(group[key][()])
            del group[key]
            group[key] = value


def put(row, number):
    """A function that puts a number into a row of an array."""

    def changed(value):
        value[row] = number
        return value

    return changed


def refused(case, pattern: str) -> None:
    with pytest.raises(ValueError, match=pattern) as caught:
        load(case.source, download=False)
    text = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", ())])
    assert "--repair" in text
    assert str(case.path.parent.parent) in text


def repaired(case, pattern: str):
    with pytest.warns(UserWarning, match=rf"^test/vectors-v0: repaired: {pattern}$"):
        return load(case.source, download=False, repair=True)


@pytest.mark.parametrize("width", [(0, 2), (0,)])
def test_an_empty_episode(case, width):
    everything = plain_rows(case)
    empty = {key: lambda x: np.zeros(0) for key in ("rewards", "terminations")}
    change(case, 1, observations=lambda x: x[:1], actions=lambda x: np.zeros(width), **empty)
    metadata = json.loads(case.metadata.read_text())
    case.metadata.write_text(json.dumps(metadata | {"total_steps": 7}))
    refused(case, "^test/vectors-v0: episode 1: expected at least one step, got none")
    assert_reads_as(repaired(case, "1 empty episodes skipped, first episode 1"), [r for r in everything if r[-1] != 1])


@pytest.mark.parametrize("episode", LAST)
def test_as_many_observations_as_actions(case, episode):
    """The last step has no successor; a terminal one still serves a critic."""
    everything = plain_rows(case)
    actions = load(case.source, download=False).action
    change(case, episode, observations=lambda x: x[:-1])
    T = LAST[episode] + 1
    refused(case, rf"^test/vectors-v0: episode {episode}: observations: .*\({T + 1}, 'd'\) .*got \({T}, 3\)")
    read = repaired(case, f"1 last steps dropped in 1 episodes, first in {episode}")
    ends = [k for k, row in enumerate(everything) if row[-1] == episode][-1]
    kept = [k for k in range(len(everything)) if k != ends]
    assert np.array_equal(read.state, np.stack([everything[k][0] for k in kept]))
    assert np.array_equal(read.next_state, np.stack([everything[k][3] for k in kept]))
    before = kept.index(ends - 1)
    assert read.has_next_action[before]
    assert np.array_equal(read.next_action[before], actions[ends])
    terminal = episode != 0
    assert len(read.for_td()) == len(td_rows(everything))
    if not terminal:
        assert read.blind_ends is None
        return
    assert np.array_equal(read.blind_ends.state, everything[ends][0][None])
    assert np.array_equal(read.blind_ends.action, actions[ends][None])
    assert (read.blind_ends.reward[0], read.blind_ends.episode[0]) == (everything[ends][2], episode)
    assert read.for_td().terminal.sum() == 2


def td_rows(rows: list[tuple]) -> list[tuple]:
    """The rows that a critic may use: terminal ones, and those followed by another."""
    return [row for row in rows if row[4] or row[5]]


@pytest.mark.parametrize("key", ["actions", "rewards"])
def test_a_last_step_that_is_not_finite(case, key):
    everything = plain_rows(case)
    change(case, 1, **{key: put(LAST[1], np.nan)})
    refused(case, rf"^test/vectors-v0: episode 1: {key}: expected finite numbers, got .*nan.* in row 5")
    read = repaired(case, "1 last steps dropped in 1 episodes, first in 1")
    kept = [k for k in range(len(everything)) if k != 9]
    assert np.array_equal(read.state, np.stack([everything[k][0] for k in kept]))
    assert read.blind_ends is None
    assert read.has_next_action[8] == (key == "rewards")  # the action of the dropped step is known


def test_a_last_observation_that_is_not_finite(case):
    change(case, 1, observations=put(6, np.nan))
    refused(case, r"^test/vectors-v0: episode 1: observations: .* in row 6")
    read = repaired(case, "1 last steps dropped in 1 episodes, first in 1")
    assert (len(read), len(read.blind_ends)) == (12, 1)
    change(case, 1, observations=put(5, np.nan))
    assert len(repaired(case, "2 last steps dropped in 1 episodes, first in 1")) == 11


def test_numbers_that_are_not_finite_elsewhere_remain_errors(case):
    change(case, 1, rewards=put(2, np.nan))
    refused(case, r"^test/vectors-v0: episode 1: rewards: .*got nan in row 2")
    with pytest.raises(ValueError, match=r"^test/vectors-v0: episode 1: rewards: .*got nan in row 2"):
        load(case.source, download=False, repair=True)


def test_actions_slightly_out_of_bounds(case):
    change(case, 2, actions=put((1, 0), -1.03))
    refused(case, r"^test/vectors-v0: episode 2: actions: .* in row 1")
    read = repaired(case, "actions of 1 steps clipped by at most 0.03")
    assert read.action[11, 0] == -1.0
    change(case, 2, actions=put((1, 0), -1.2))
    with pytest.raises(ValueError, match=r"^test/vectors-v0: episode 2: actions: .* in row 1"):
        load(case.source, download=False, repair=True)


@pytest.mark.parametrize("kind", ["hdf5", "successors", "npz"])
def test_flat_files_are_repaired_too(tmp_path, kind):
    case = make(kind, tmp_path, tmp_path)
    with h5py.File(case.path, "r") if kind != "npz" else np.load(case.path) as file:
        content = {key: file[key][()] for key in file}
    content["rewards"][13], content["actions"][7, 1] = np.nan, 1.05
    if kind == "npz":
        np.savez(case.path, **content)
    else:
        with h5py.File(case.path, "r+") as file:
            file["rewards"][...], file["actions"][...] = content["rewards"], content["actions"]
    with pytest.raises(ValueError, match=r"rewards: .*got nan in row 13"):
        load(case.path)
    with pytest.warns(
        UserWarning, match="1 last steps dropped in 1 episodes, first in 1; actions of 1 steps clipped by .* 0.05"
    ):
        read = load(case.path, repair=True)
    rows = np.delete(np.arange(24), 13)
    ends = [5, 12, 23]
    kept = rows if kind == "successors" else np.setdiff1d(rows, ends)
    assert np.array_equal(read.state, content["observations"][kept])
    assert np.array_equal(read.has_next_action, ~np.isin(kept, ends))


def test_training_settings_say_so(case):
    change(case, 1, rewards=put(LAST[1], np.nan))
    with pytest.raises(ValueError, match="got nan in row 5"):
        load_transitions(TrainConfig(data=case.source))
    with pytest.warns(UserWarning, match="repaired"):
        assert len(load_transitions(TrainConfig(data=case.source, repair=True))) == 12


def test_a_minari_set_imports_no_environment(case, tmp_path, monkeypatch):
    """Neither by its name nor, where it states no spaces, by building it."""
    (tmp_path / "stranger.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    metadata = json.loads(case.metadata.read_text())
    spec = gymnasium.envs.registration.EnvSpec("Mine-v0", entry_point="stranger:Env").to_json()
    for key in ("observation_space", "action_space"):
        for data_format in ("hdf5", "arrow"):
            stripped = {k: v for k, v in metadata.items() if k != key}
            case.metadata.write_text(json.dumps(stripped | {"env_spec": spec, "data_format": data_format}))
            with pytest.raises(ValueError, match=rf"metadata\.json: {key}: expected a space .*got None"):
                read_minari(case.source)
    case.metadata.write_text(json.dumps(metadata | {"env_spec": json.dumps({"id": "stranger:Env-v0"})}))
    with pytest.raises(ValueError, match=r"metadata\.json: env_spec: expected .*registered .*got 'stranger:Env-v0'"):
        read_minari(case.source)
    assert read_minari(case.source, env_id="Mine-v0").info.env_id == "Mine-v0"


def test_a_damaged_set_does_not_hide_the_others(case, tmp_path):
    make("goals", tmp_path, tmp_path)
    content = json.loads(case.metadata.read_text())
    case.metadata.write_text(json.dumps(content | {"env_spec": "{"}))
    with pytest.warns(UserWarning, match=r"vectors-v0/data/metadata\.json: env_spec: expected the JSON of an environment"):
        assert [found.dataset_id for found in list_datasets()] == ["test/goals-v0"]
