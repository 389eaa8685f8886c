"""Transitions from a user's own arrays against an explicit loop, and errors for inconsistent arrays."""

import tracemalloc
from collections.abc import Callable

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jacrec.data import from_arrays
from jacrec.data.readers import arrays
from jacrec.data.readers.arrays import from_episodes
from jacrec.data.readers.d4rl import read_d4rl
from jacrec.data.transitions import DatasetInfo, Transitions

LENGTHS = st.lists(st.integers(1, 7), min_size=1, max_size=6)


def random_arrays(lengths, seed: int = 0, d: int = 3, m: int = 2):
    """(observations, next_observations, actions, rewards, terminals, ends), terminal at the ends of some episodes."""
    rng, n = np.random.default_rng(seed), sum(lengths)
    ends = np.zeros(n, bool)
    ends[np.cumsum(lengths) - 1] = True
    observations, successors = rng.standard_normal((2, n, d))
    successors[:-1][~ends[:-1]] = observations[1:][~ends[:-1]]
    return observations, successors, rng.uniform(-1, 1, (n, m)), rng.standard_normal(n), ends & (rng.random(n) < 0.5), ends


@given(lengths=LENGTHS, with_next=st.booleans(), block=st.integers(1, 9), seed=st.integers(0, 99))
def test_arrays_equal_an_explicit_loop_for_any_block_size(lengths, with_next, block, seed):
    s, successors, a, r, terminals, ends = random_arrays(lengths, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrays, "BLOCK", block)
        read = from_arrays(s, a, r, terminals, ends=ends, next_observations=successors if with_next else None)
        same = from_arrays(s, a, r, terminals, lengths=lengths, next_observations=successors if with_next else None)
    n, episode, world, td = len(r), 0, [], []
    for k in range(n):
        if with_next or not ends[k]:
            world.append((s[k], a[k], r[k], successors[k] if with_next else s[k + 1], terminals[k], not ends[k], episode))
        if terminals[k] or not ends[k]:
            td.append((s[k], a[k], r[k], None if ends[k] else a[k + 1], terminals[k]))
        episode += ends[k]
    assert len(read) == len(world)
    for row, (state, action, reward, successor, terminal, followed, number) in enumerate(world):
        assert np.array_equal(read.state[row], np.float32(state))
        assert np.array_equal(read.action[row], np.float32(action))
        assert np.array_equal(read.next_state[row], np.float32(successor))
        assert read.reward[row] == np.float32(reward)
        assert (read.terminal[row], read.has_next_action[row], read.episode[row]) == (terminal, followed, number)
    kept = read.for_td()
    assert len(kept) == len(td)
    for row, (state, action, reward, following, terminal) in enumerate(td):
        assert np.array_equal(kept.state[row], np.float32(state))
        assert np.array_equal(kept.action[row], np.float32(action))
        assert np.array_equal(kept.next_action[row], np.zeros(2) if following is None else np.float32(following))
        assert (kept.reward[row], kept.terminal[row]) == (np.float32(reward), terminal)
    for name, value in vars(read).items():
        if isinstance(value, np.ndarray):
            assert np.array_equal(getattr(same, name), value), name


def test_lists_are_accepted():
    s, successors, a, r, terminals, ends = random_arrays([4, 3])
    expected = from_arrays(s, a, r, terminals, ends=ends, next_observations=successors)
    lists = from_arrays(*(x.tolist() for x in (s, a, r, terminals)), ends=ends.tolist(), next_observations=successors.tolist())
    assert all(np.array_equal(getattr(lists, k), v) for k, v in vars(expected).items() if isinstance(v, np.ndarray))


def test_terminals_end_episodes():
    s, _, a, r, _, ends = random_arrays([4, 3, 5])
    read = from_arrays(s, a, r, ends, env_id="Mine-v0", name="mine")
    assert (len(read), len(read.for_td())) == (9, 12)
    assert (read.info.name, read.info.env_id, read.info.score(1.0)) == ("mine", "Mine-v0", None)
    known = from_arrays(np.zeros((3, 11)), np.zeros((3, 3)), np.zeros(3), np.zeros(3), lengths=[3], env_id="Hopper-v4")
    assert known.info.ref_max == 3234.3


def test_the_input_is_not_modified():
    s, successors, a, r, terminals, ends = random_arrays([4, 3])
    before = [x.copy() for x in (s, successors, a, r, terminals, ends)]
    a[0], before[2][0] = 1.00001, 1.00001  # clipped in the result only
    read = from_arrays(s, a, r, terminals, ends=ends, next_observations=successors)
    read.state[:], read.action[:], read.next_state[:] = 7.0, 7.0, 7.0
    for x, y in zip((s, successors, a, r, terminals, ends), before, strict=True):
        assert np.array_equal(x, y)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ends": np.zeros(7, bool), "lengths": [7]}, "^ends, lengths: .*got both"),
        ({"ends": np.zeros(6, bool)}, r"^arrays: ends: .*\(7,\) .*got \(6,\)"),
        ({"lengths": [4, 4]}, r"^arrays: lengths: .*7 rows, got 2 summing to 8"),
        ({"lengths": [7, 0]}, r"^arrays: lengths: expected positive .*got 2 summing to 7"),
        ({"lengths": []}, r"^arrays: lengths: .*got 0 summing to 0"),
        ({"next_observations": np.zeros((7, 2))}, r"^arrays: next_observations: .*\(7, 3\), got \(7, 2\)"),
        ({"env_id": "Hopper-v4"}, r"^arrays: .*state_dim = 11, action_dim = 3 .*Hopper-v4, got 3, 2"),
    ],
)
def test_inconsistent_arrays_are_rejected(change, message):
    s, _, a, r, terminals, _ = random_arrays([4, 3])
    with pytest.raises(ValueError, match=message):
        from_arrays(s, a, r, terminals, **change)


def test_float32_overflow_is_rejected():
    s, _, a, r, terminals, ends = random_arrays([4, 3])
    s[5, 1] = 1e39
    with pytest.raises(ValueError, match=r"^arrays: observations: expected numbers that float32 can hold, got .*in row 5"):
        from_arrays(s, a, r, terminals, ends=ends)


@pytest.mark.parametrize("block", [2, 100])
def test_errors_count_rows_across_blocks(monkeypatch, block):
    monkeypatch.setattr(arrays, "BLOCK", block)
    s, successors, a, r, terminals, ends = random_arrays([4, 3])
    a[6, 1] = -2.0
    with pytest.raises(ValueError, match=r"^arrays: actions: .*\[-1, 1\], got .*in row 6"):
        from_arrays(s, a, r, terminals, ends=ends)
    a[6, 1], successors[4] = 0.0, 9.0
    with pytest.warns(UserWarning, match=r"^arrays: next_observations: 1 rows .*row 4"):
        read = from_arrays(s, a, r, terminals, ends=ends, next_observations=successors)
    assert read.episode.tolist() == [0, 0, 0, 0, 1, 2, 2]
    assert np.flatnonzero(~read.has_next_action).tolist() == [3, 4, 6]
    assert not read.next_action[4].any()


def peak_memory_ratio(read: Callable[[], Transitions]) -> float:
    """Peak memory allocated by numpy during the call, relative to the size of the returned arrays."""
    tracemalloc.start()
    data = read()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    parts = [data] if data.blind_ends is None else [data, data.blind_ends]
    return most / sum(value.nbytes for part in parts for value in vars(part).values() if isinstance(value, np.ndarray))


@pytest.mark.parametrize("with_next", [True, False])
def test_peak_memory_of_reading_is_little_more_than_the_result(tmp_path, monkeypatch, with_next):
    """Measured: 1.13 to 1.20 times the result. A float64 copy of the sources alone would take 2."""
    monkeypatch.setattr(arrays, "BLOCK", 2048)
    lengths = [200] * 500
    s, successors, a, r, terminals, ends = random_arrays(lengths, d=17, m=6)
    content = {"observations": s, "actions": a, "rewards": r, "terminals": terminals, "timeouts": ends & ~terminals}
    if with_next:
        content["next_observations"] = successors
    with h5py.File(tmp_path / "random_arrays.hdf5", "w") as file:
        for key, value in content.items():
            file.create_dataset(key, data=value, chunks=(1024, *value.shape[1:]))
    assert peak_memory_ratio(lambda: read_d4rl(tmp_path / "random_arrays.hdf5")) < 1.3
    following = successors if with_next else None
    assert peak_memory_ratio(lambda: from_arrays(s, a, r, terminals, ends=ends, next_observations=following)) < 1.3


def test_peak_memory_of_reading_episodes_is_little_more_than_the_result():
    rng = np.random.default_rng(0)
    episodes = ((rng.random((201, 17)), rng.random((200, 6)), rng.random(200), np.zeros(200, bool)) for _ in range(500))
    assert peak_memory_ratio(lambda: from_episodes(episodes, 100_000, DatasetInfo("mine"))) < 1.05


@pytest.mark.parametrize("kind", [np.int64, np.uint8, bool])
def test_discrete_actions_are_refused_unless_bounds_say_that_they_are_none(kind):
    s, _, a, r, terminals, ends = random_arrays([4, 3])
    chosen = (a > 0).astype(kind)
    with pytest.raises(ValueError, match=rf"^arrays: actions: .*got {np.dtype(kind)}, as of discrete actions"):
        from_arrays(s, chosen, r, terminals, ends=ends)
    read = from_arrays(s, chosen, r, terminals, ends=ends, action_low=0, action_high=1)
    assert set(read.action.ravel()) == {-1.0, 1.0}


def ends_after(lengths, terminal):
    """Arrays whose episodes all end in a terminal row, or all in a timeout."""
    s, _, a, r, _, ends = random_arrays(lengths)
    return s, a, r, ends & terminal, ends


@pytest.mark.parametrize("last", [5, 2])
def test_terminal_rows_at_what_looks_like_a_time_limit_are_warned_of(last):
    s, a, r, terminals, ends = ends_after([5] * 10 + [last], True)
    with pytest.warns(UserWarning, match="^arrays: terminals: expected False where a time limit .* each of 5 rows"):
        from_arrays(s, a, r, terminals, ends=ends)


@pytest.mark.parametrize(("lengths", "terminal"), [([5] * 10, False), ([5] * 9 + [4, 5], True), ([5] * 3, True)])
def test_other_ends_are_not_warned_of(lengths, terminal):
    s, a, r, terminals, ends = ends_after(lengths, terminal)
    assert len(from_arrays(s, a, r, terminals, ends=ends)) == sum(lengths) - len(lengths)
