"""Terminal rows inside a trajectory that goes on, as at the goals of OGBench's single tasks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jacrec.data import describe, from_arrays, load
from jacrec.data.catalog import episode_table


def walks(lengths, seed: int = 0, d: int = 3):
    """(observations, next_observations, actions, rewards, terminals, ends): small steps, far-away starts, terminals anywhere."""
    rng, n = np.random.default_rng(seed), sum(lengths)
    states = np.concatenate([10 * k + np.cumsum(0.1 * rng.standard_normal((T + 1, d)), 0) for k, T in enumerate(lengths)])
    first = np.concatenate([np.arange(T + 1) < T for T in lengths])
    ends = np.zeros(n, bool)
    ends[np.cumsum(lengths) - 1] = True
    successors = np.concatenate([np.arange(T + 1) > 0 for T in lengths])
    actions = rng.uniform(-1, 1, (n, 2))
    return states[first], states[successors], actions, rng.standard_normal(n), rng.random(n) < 0.2, ends


@given(
    lengths=st.lists(st.integers(2, 9), min_size=1, max_size=6),
    say=st.sampled_from(["ends", "lengths"]),
    with_next=st.booleans(),
    seed=st.integers(0, 99),
)
def test_ends_and_lengths_have_the_last_word(lengths, say, with_next, seed):
    s, successors, a, r, terminals, ends = walks(lengths, seed)
    options = {"ends": ends} if say == "ends" else {"lengths": lengths}
    read = from_arrays(s, a, r, terminals, **options, next_observations=successors if with_next else None)
    episode = np.repeat(np.arange(len(lengths)), lengths)
    kept = np.ones(len(r), bool) if with_next else ~ends
    assert np.array_equal(read.state, np.float32(s[kept]))
    assert np.array_equal(read.next_state, np.float32(successors[kept]))
    assert np.array_equal(read.terminal, terminals[kept])
    assert np.array_equal(read.episode, episode[kept])
    assert np.array_equal(read.has_next_action, ~ends[kept])
    assert np.array_equal(read.next_action[read.has_next_action], np.float32(a[1:][~ends[:-1]]))
    assert len(read.for_td()) == (terminals | ~ends).sum()
    assert len(episode_table(read)[0]) == len(np.unique(episode[kept | terminals]))


def test_ten_trajectories_are_ten_episodes():
    s, successors, a, r, _, ends = walks([100] * 10)
    terminals = np.zeros(1000, bool)
    terminals[50::50] = True
    for following in (successors, None):
        read = from_arrays(s, a, r, terminals, ends=ends, next_observations=following)
        assert len(np.unique(read.episode)) == 10
        assert len(read) == (1000 if following is not None else 990)


def test_a_recorded_successor_shows_that_a_terminal_ends_its_episode():
    """D4RL's locomotion files give timeouts for `ends`; their terminal rows are followed by another start."""
    s, successors, a, r, _, ends = walks([5, 7, 6])
    fallen = np.arange(18) == 4
    read = from_arrays(s, a, r, fallen, ends=ends & ~fallen, next_observations=successors)
    assert read.episode.tolist() == [0] * 5 + [1] * 7 + [2] * 6
    assert np.flatnonzero(~read.has_next_action).tolist() == [4, 11, 17]


def test_resets_that_ends_omits_are_refused():
    s, _, a, r, _, ends = walks([50, 70, 60])
    fallen = ends & (np.arange(180) < 179)
    with pytest.raises(ValueError, match=r"^arrays: ends: expected .*got none on 2 terminal rows .*after row 49; .*timeouts"):
        from_arrays(s, a, r, fallen, ends=ends & ~fallen)
    assert len(from_arrays(s, a, r, fallen, ends=ends)) == 177
    # whoever gives lengths knows them
    assert len(from_arrays(s, a, r, fallen, lengths=[180])) == 179


def test_without_ends_terminals_end_episodes():
    s, _, a, r, _, ends = walks([5, 7, 6])
    assert len(from_arrays(s, a, r, ends)) == 15


def single_task(tmp_path, **changes):
    """Arrays as OGBench's make_env_and_datasets returns them for a single task, in a file."""
    s, successors, a, r, at_goal, ends = walks([50] * 4)
    content = {
        "observations": np.float32(s),
        "next_observations": np.float32(successors),
        "actions": np.float32(a),
        "rewards": np.float32(r),
        "terminals": np.float32(ends),
        "masks": np.float32(~at_goal),
    } | changes
    path = tmp_path / "cube-single-play-v0.npz"
    np.savez(path, **{key: value for key, value in content.items() if value is not None})
    return path, at_goal


def test_arrays_of_a_single_task_are_read(tmp_path):
    path, at_goal = single_task(tmp_path)
    read = load(path)
    assert np.array_equal(read.terminal, at_goal)
    assert np.array_equal(read.episode, np.repeat(np.arange(4), 50))
    assert describe(path).episodes == 4


def test_other_files_of_ogbench_are_told_apart(tmp_path):
    path, _ = single_task(tmp_path, rewards=None, masks=None, next_observations=None, qpos=np.zeros((200, 5)))
    with pytest.raises(ValueError, match=r"cube-single-play-v0\.npz: .*without rewards, timeouts; .*OGBench.*singletask"):
        load(path)
    path, _ = single_task(tmp_path, next_observations=None, valids=np.ones(200))
    with pytest.raises(ValueError, match=r"cube-single-play-v0\.npz: valids: .*compact_dataset=False"):
        load(path)
    path, _ = single_task(tmp_path, masks=np.full(200, 0.5))
    with pytest.raises(ValueError, match=r"masks: expected 0 or 1 .*got 0\.5 in row 0"):
        load(path)
