"""Readers against explicit loops on small random data with terminals and timeouts in all combinations."""

import re
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jacrec.data.readers.arrays import from_flat
from jacrec.data.readers.d4rl import read_d4rl
from jacrec.data.readers.load import load
from jacrec.data.transitions import DatasetInfo, Transitions

FLAGS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=12)


def flat_data(flags, seed: int = 0, d: int = 3, m: int = 2) -> dict[str, np.ndarray]:
    """D4RL-layout arrays of distinct numbers; successors at the ends of episodes are separate states."""
    n, rng = len(flags), np.random.default_rng(seed)
    data = {
        "observations": rng.standard_normal((n, d)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (n, m)).astype(np.float32),
        "rewards": rng.standard_normal(n).astype(np.float32),
        "terminals": np.array([terminal for terminal, _ in flags]),
        "timeouts": np.array([timeout for _, timeout in flags]),
        "next_observations": rng.standard_normal((n, d)).astype(np.float32),
    }
    for k in range(n - 1):
        if not (data["terminals"][k] or data["timeouts"][k]):
            data["next_observations"][k] = data["observations"][k + 1]
    return data


def read_flat(data: dict[str, np.ndarray], with_next: bool) -> Transitions:
    return from_flat(
        data["observations"],
        data["actions"],
        data["rewards"],
        data["terminals"],
        data["terminals"] | data["timeouts"],
        DatasetInfo("test"),
        data["next_observations"] if with_next else None,
    )


def expected_transitions(data, with_next: bool) -> list[tuple]:
    """(row, s, a, r, s', a' or None, terminal, episode) wherever the successor is known, one row at a time."""
    found, episode, n = [], 0, len(data["rewards"])
    for k in range(n):
        ends = data["terminals"][k] or data["timeouts"][k] or k == n - 1
        following = None if ends else data["observations"][k + 1]
        successor = data["next_observations"][k] if with_next else following
        next_action = None if ends else data["actions"][k + 1]
        row = (data["observations"][k], data["actions"][k], data["rewards"][k], successor, next_action)
        if successor is not None:
            found.append((*row, data["terminals"][k], episode))
        episode += ends
    return found


def expected_td_rows(data) -> list[tuple]:
    """(s, a, r, a' or None, terminal) as kept by ReBRAC's reader: no timeouts, and not the last row of the file."""
    found, n = [], len(data["rewards"])
    for k in range(n):
        if data["terminals"][k]:
            found.append((data["observations"][k], data["actions"][k], data["rewards"][k], None, True))
        elif not data["timeouts"][k] and k < n - 1:
            rows = data["observations"][k], data["actions"][k], data["rewards"][k], data["actions"][k + 1], False
            found.append(rows)
    return found


@given(flags=FLAGS, with_next=st.booleans(), seed=st.integers(0, 99))
def test_transitions_equal_an_explicit_loop(flags, with_next, seed):
    data = flat_data(flags, seed)
    read, slow = read_flat(data, with_next), expected_transitions(data, with_next)
    assert len(read) == len(slow)
    for k, (s, a, r, successor, next_action, terminal, episode) in enumerate(slow):
        assert np.array_equal(read.state[k], s)
        assert np.array_equal(read.action[k], a)
        assert read.reward[k] == r
        assert np.array_equal(read.next_state[k], successor)
        assert read.has_next_action[k] == (next_action is not None)
        if next_action is not None:
            assert np.array_equal(read.next_action[k], next_action)
        assert (read.terminal[k], read.episode[k]) == (terminal, episode)


@given(flags=FLAGS, with_next=st.booleans(), seed=st.integers(0, 99))
def test_td_rows_equal_an_explicit_loop(flags, with_next, seed):
    data = flat_data(flags, seed)
    read, slow = read_flat(data, with_next).for_td(), expected_td_rows(data)
    assert len(read) == len(slow)
    assert read.blind_ends is None
    for k, (s, a, r, next_action, terminal) in enumerate(slow):
        assert np.array_equal(read.state[k], s)
        assert np.array_equal(read.action[k], a)
        assert (read.reward[k], read.terminal[k]) == (r, terminal)
        assert np.array_equal(read.next_action[k], np.zeros(2) if next_action is None else next_action)


@given(flags=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=8, max_size=40), seed=st.integers(0, 99))
def test_split_keeps_episodes_whole_and_drops_no_rows(flags, seed):
    data = read_flat(flat_data(flags, seed), with_next=False)
    everything = data.for_td()
    episodes = set(data.episode) | (set(data.blind_ends.episode) if data.blind_ends else set())
    if len(episodes) < 2:
        with pytest.raises(ValueError, match=r"^split: .*at least two episodes, got 1"):
            data.split(0.3, seed)
        return
    train, held = data.split(0.3, seed)
    assert not set(train.for_td().episode) & set(held.for_td().episode)
    assert not set(train.episode) & set(held.episode)
    assert len(train) + len(held) == len(data)
    assert len(train.for_td()) + len(held.for_td()) == len(everything)
    rewards = np.concatenate((train.for_td().reward, held.for_td().reward))
    assert np.array_equal(np.sort(rewards), np.sort(everything.reward))
    again, _ = data.split(0.3, seed)
    assert np.array_equal(again.reward, train.reward)


def test_statistics_are_computed_in_float64_and_never_zero():
    data = flat_data([(False, False)] * 50)
    data["observations"][:, 1] = 7.0
    data["observations"][:, 2] += 1e4
    data["next_observations"][:-1] = data["observations"][1:]
    read = read_flat(data, with_next=True)
    found = read.statistics()
    state = read.state.astype(np.float64)
    delta = read.next_state.astype(np.float64) - state
    assert np.allclose(found.state_mean, state.mean(0), rtol=1e-14)
    assert np.allclose(found.delta_mean, delta.mean(0), rtol=1e-14)
    assert found.state_std[1] == 1e-6
    assert np.allclose(found.state_std[[0, 2]], state.std(0)[[0, 2]], rtol=1e-14)
    assert np.allclose(found.delta_std, delta.std(0), rtol=1e-14)
    assert found.reward_mean == pytest.approx(read.reward.astype(np.float64).mean(), rel=1e-14)


@pytest.mark.parametrize("suffix", [".hdf5", ".h5", ".npz"])
@pytest.mark.parametrize("with_next", [True, False])
def test_files_read_like_their_arrays(tmp_path, suffix, with_next):
    flags = [(False, False)] * 3 + [(True, False)] + [(False, False)] * 2 + [(False, True)] + [(False, False)]
    data = flat_data(flags, d=11, m=3)
    if not with_next:
        del data["next_observations"]
    path = tmp_path / f"hopper_medium_replay-v2{suffix}"
    write_flat(path, data)
    read = load(path)
    expected = read_flat({"next_observations": None, **data}, with_next)
    for name, value in vars(expected).items():
        if isinstance(value, np.ndarray):
            assert np.array_equal(getattr(read, name), value), name
    assert (read.info.env_id, read.info.ref_max) == ("Hopper-v4", 3234.3)
    assert read.info.score(3234.3) == pytest.approx(100.0)
    assert load(str(path), env_id="Hopper-v5").info.env_id == "Hopper-v5"


def test_environment_is_taken_from_the_attributes(tmp_path):
    path = tmp_path / "mine.hdf5"
    write_flat(path, flat_data([(False, False)] * 3 + [(False, True)], d=17, m=6))
    assert read_d4rl(path).info.env_id is None
    assert read_d4rl(path).info.score(1.0) is None
    with h5py.File(path, "a") as file:
        file.attrs["env_id"] = "HalfCheetah-v4"
    assert read_d4rl(path).info.env_id == "HalfCheetah-v4"
    assert read_d4rl(path).info.ref_max == 12135.0


def test_small_overshoot_of_actions_is_clipped():
    data = flat_data([(False, False)] * 4)
    data["actions"][2, 1] = 1.00001
    assert read_flat(data, with_next=True).action.max() == 1.0


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("actions", 1.5, r"^test: actions: .*\[-1, 1\], got .*in row 2"),
        ("actions", np.nan, r"^test: actions: .*finite .*in row 2"),
        ("observations", np.inf, r"^test: observations: .*finite .*in row 2"),
        ("rewards", -np.inf, r"^test: rewards: .*finite .*got -inf in row 2"),
        ("next_observations", np.nan, r"^test: next_observations: .*finite .*in row 2"),
    ],
)
def test_invalid_numbers_are_reported_with_their_row(key, value, message):
    data = flat_data([(False, False)] * 5)
    data[key][2] = value
    with pytest.raises(ValueError, match=message):
        read_flat(data, with_next=True)


def test_invalid_shapes_and_files_are_rejected(tmp_path):
    data = flat_data([(False, False)] * 5)
    with pytest.raises(ValueError, match=r"^test: actions: .*n = 5, got \(4, 2\)"):
        read_flat({**data, "actions": data["actions"][:4]}, with_next=True)
    with pytest.raises(ValueError, match=r"^test: next_observations: .*\(5, 3\), got \(5, 2\)"):
        read_flat({**data, "next_observations": data["next_observations"][:, :2]}, with_next=True)
    with pytest.raises(ValueError, match=r"^test: expected transitions, got none"):
        read_flat(flat_data([]) | {"terminals": np.zeros(0, bool), "timeouts": np.zeros(0, bool)}, with_next=True)
    with pytest.raises(FileNotFoundError, match=r"absent\.hdf5: no such file"):
        load(tmp_path / "absent.hdf5")
    (tmp_path / "text.hdf5").write_text("not HDF5")
    with pytest.raises(ValueError, match=r"text\.hdf5: expected an HDF5 file"):
        load(tmp_path / "text.hdf5")
    (tmp_path / "text.npz").write_text("not an archive")
    with pytest.raises(ValueError, match=r"text\.npz: expected a \.npz archive"):
        load(tmp_path / "text.npz")
    write_flat(tmp_path / "part.npz", {key: data[key] for key in ("observations", "actions", "rewards", "terminals")})
    with pytest.raises(ValueError, match=r"part\.npz: .*timeouts, got .*without timeouts"):
        load(tmp_path / "part.npz")
    (tmp_path / "data.csv").write_text("1,2")
    with pytest.raises(ValueError, match=r"data\.csv: .*\.hdf5, \.h5, \.npz, or .*got '\.csv'; read others yourself"):
        load(tmp_path / "data.csv")


def write_flat(path, data: dict[str, np.ndarray]) -> None:
    if path.suffix == ".npz":
        np.savez(path, **data)
        return
    with h5py.File(path, "w") as file:
        for key, value in data.items():
            file.create_dataset(key, data=value)
        file.create_dataset("infos/qpos", data=np.zeros((len(data["rewards"]), 2)))


@pytest.mark.parametrize("name", ["data.csv", "data.pkl", "data.npy", "folder"])
@pytest.mark.parametrize("kind", [str, Path])
def test_a_file_that_no_reader_reads_is_told_what_to_do_with(tmp_path, name, kind):
    path = tmp_path / name
    path.mkdir() if name == "folder" else path.write_text("1,2")
    with pytest.raises((ValueError, FileNotFoundError)) as refused:
        load(kind(path))
    if (name, kind) != ("folder", Path):
        assert re.search(r"expected a file ending in \.hdf5.*jacrec\.data\.from_arrays", str(refused.value))


@pytest.mark.parametrize("source", [None, 5, {"observations": []}, np.zeros(3)])
def test_what_is_no_name_of_data_is_one_sentence(source):
    with pytest.raises(ValueError, match=f"^source: expected a name or a path, got {type(source).__name__}; for arrays"):
        load(source)


def test_a_mapping_that_is_no_file_is_one_sentence(tmp_path):
    np.savez(tmp_path / "data.npz", obs=np.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"^mapping: expected a YAML file or .*, got dict; write it to a file"):
        load(tmp_path / "data.npz", mapping={"observations": "obs"})


def test_a_file_of_other_names_is_told_of_mappings(tmp_path):
    np.savez(tmp_path / "data.npz", obs=np.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"got none without observations.*in a mapping \(--mapping FILE\)"):
        load(tmp_path / "data.npz")
