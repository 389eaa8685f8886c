"""D4RL's file layouts as its recorders write them, against explicit loops: transitions and TD rows."""

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jacrec.data import describe, load
from jacrec.data.catalog import episode_table, evaluated_returns
from jacrec.data.d4rl_files import D4RL_FILES
from jacrec.data.known_envs import known_dimensions
from jacrec.data.readers.d4rl import read_d4rl
from jacrec.data.transitions import Transitions
from tests.data.test_readers import write_flat

ANTMAZES = [name for name in D4RL_FILES if name.startswith("antmaze")]
EPISODES = st.lists(
    st.tuples(st.integers(1, 6), st.booleans()),  # number of rows, whether the episode ends with a terminal or a timeout
    min_size=2,
    max_size=5,
)


def locomotion(lengths, d: int, m: int, seed: int, unfinished: int = 0) -> dict[str, np.ndarray]:
    """As collect_data.py records: every row with its successor, never both terminal and timeout, the last episode truncated."""
    rng = np.random.default_rng(seed)
    parts = []
    for T, terminal in [*lengths, *([(unfinished, None)] if unfinished else [])]:
        states = rng.standard_normal((T + 1, d))
        ends = np.arange(T) == T - 1
        parts.append((states[:-1], states[1:], ends & (terminal is True), ends & (terminal is False)))
    observations, successors, terminals, timeouts = (np.concatenate(x) for x in zip(*parts, strict=True))
    n = len(terminals)
    return {
        "observations": observations.astype(np.float32),
        "next_observations": successors.astype(np.float32),
        "actions": rng.uniform(-1, 1, (n, m)).astype(np.float32),
        "rewards": rng.standard_normal(n).astype(np.float32),
        "terminals": terminals,
        "timeouts": timeouts,
    }


def antmaze(lengths, seed: int, *, resets_at_goal: bool = False, unfinished: int = 0) -> dict[str, np.ndarray]:
    """As generate_ant_maze_datasets.py and relabel_antmaze_rewards.py record.

    The last row of an episode has the timeout. Reward and terminal of row k state whether the observation in row k + 1 is at
    the goal, across episode ends too. With `resets_at_goal`, as in umaze-diverse, they belong to the environment's own step,
    and an episode that reaches the goal ends with a terminal instead.
    """
    rng = np.random.default_rng(seed)
    spans = [*lengths, *([(unfinished, None)] if unfinished else [])]
    n = sum(T for T, _ in spans)
    # walls do not matter here: two places 8 m apart, small steps, the goal near the first
    observations = rng.uniform(-0.1, 0.1, (n, 29)).astype(np.float32)
    timeouts, terminals, goals, k = np.zeros(n, bool), np.zeros(n, np.float32), np.zeros((n, 2), np.float32), 0
    for T, arrives in spans:
        if arrives:
            observations[k + T // 2 : k + T, :2] += np.linspace(0, 0.4, T - T // 2)[:, None].astype(np.float32)
        observations[k : k + T, :2] += 8.0 * (k % 2)  # every other start is far away
        goals[k : k + T] = rng.uniform(0, 1, 2)
        if arrives is not None:
            timeouts[k + T - 1] = not (resets_at_goal and arrives)
            terminals[k + T - 1] = resets_at_goal and arrives
        k += T
    if not resets_at_goal:
        terminals[:-1] = np.linalg.norm(observations[1:, :2] - 0.5, axis=1) <= 0.5
    return {
        "observations": observations,
        "actions": rng.uniform(-1, 1, (n, 8)).astype(np.float32),
        "rewards": terminals.copy(),
        "terminals": terminals,
        "timeouts": timeouts,
        "infos/goal": goals,
    }


def expected_transitions(data, ends) -> list[tuple[int, np.ndarray]]:
    """(row, successor) of every row whose successor is in the file."""
    n, found = len(data["rewards"]), []
    for k in range(n):
        if "next_observations" in data:
            found.append((k, data["next_observations"][k]))
        elif k + 1 < n and not ends[k]:
            found.append((k, data["observations"][k + 1]))
    return found


def expected_td_rows(data) -> list[tuple[int, bool]]:
    """(row, terminal) of the rows kept by ReBRAC's reader; next actions are those of the next row."""
    n, found = len(data["rewards"]), []
    for k in range(n - 1):  # that reader uses row k + 1 and so drops the last row of the file
        if data["timeouts"][k]:
            continue
        found.append((k, bool(data["terminals"][k])))
    if data["terminals"][n - 1] and not data["timeouts"][n - 1]:
        found.append((n - 1, True))  # unlike that reader: a terminal row needs no next row
    return found


def assert_equal(data, read: Transitions, world, td) -> None:
    """The reader's rows equal those of the loops, number by number."""
    assert len(read) == len(world)
    for row, (k, successor) in enumerate(world):
        assert np.array_equal(read.state[row], data["observations"][k])
        assert np.array_equal(read.action[row], data["actions"][k])
        assert np.array_equal(read.next_state[row], successor)
        assert read.reward[row] == data["rewards"][k]
    kept = read.for_td()
    assert len(kept) == len(td)
    for row, (k, terminal) in enumerate(td):
        assert np.array_equal(kept.state[row], data["observations"][k])
        assert np.array_equal(kept.action[row], data["actions"][k])
        assert (kept.reward[row], kept.terminal[row]) == (data["rewards"][k], terminal)
        if not terminal:
            assert np.array_equal(kept.next_action[row], data["actions"][k + 1])
            assert np.array_equal(kept.next_state[row], data["observations"][k + 1])


def through_file(folder, name: str, data) -> Transitions:
    path = folder / D4RL_FILES[name].file
    path.unlink(missing_ok=True)
    write_flat(path, data)
    return load(path)


@given(lengths=EPISODES, unfinished=st.integers(0, 3), with_next=st.booleans(), seed=st.integers(0, 99))
def test_locomotion_files_equal_an_explicit_loop(tmp_path_factory, lengths, unfinished, with_next, seed):
    data = locomotion(lengths, 11, 3, seed, unfinished)
    if not with_next:
        del data["next_observations"]
    read = through_file(tmp_path_factory.getbasetemp(), "hopper-medium-v2", data)
    ends = data["terminals"] | data["timeouts"]
    assert_equal(data, read, expected_transitions(data, ends), expected_td_rows(data))
    # no successor belongs to another episode
    starts = {tuple(data["observations"][k + 1]) for k in range(len(ends) - 1) if ends[k]}
    assert not any(tuple(successor) in starts for successor in read.next_state)
    assert len(np.unique(read.episode)) <= len(lengths) + bool(unfinished)


@given(lengths=EPISODES, unfinished=st.integers(0, 3), seed=st.integers(0, 99))
def test_antmaze_files_equal_an_explicit_loop(tmp_path_factory, lengths, unfinished, seed):
    data = antmaze(lengths, seed, unfinished=unfinished)
    read = through_file(tmp_path_factory.getbasetemp(), "antmaze-umaze-v2", data)
    assert_equal(data, read, expected_transitions(data, data["timeouts"]), expected_td_rows(data))
    episode = np.concatenate(([0], np.cumsum(data["timeouts"])[:-1]))  # terminals end nothing
    assert np.array_equal(read.episode, episode[[k for k, _ in expected_transitions(data, data["timeouts"])]])


@given(lengths=EPISODES, unfinished=st.integers(0, 3), seed=st.integers(0, 99))
def test_a_reset_at_the_goal_ends_the_episode(tmp_path_factory, lengths, unfinished, seed):
    """The new goal reveals it even if the next start is close."""
    data = antmaze(lengths, seed, resets_at_goal=True, unfinished=unfinished)
    read = through_file(tmp_path_factory.getbasetemp(), "antmaze-umaze-diverse-v2", data)
    ends = data["timeouts"] | (data["terminals"] > 0)
    world, td = expected_transitions(data, ends), expected_td_rows(data)
    assert len(read) == len(world)
    assert all(np.array_equal(read.next_state[row], successor) for row, (_, successor) in enumerate(world))
    kept = read.for_td()
    assert kept.terminal.tolist() == [terminal for _, terminal in td]
    assert all(np.array_equal(kept.state[row], data["observations"][k]) for row, (k, _) in enumerate(td))


@pytest.mark.parametrize("name", D4RL_FILES)
def test_every_file_has_its_environment_and_reference(tmp_path, name):
    entry = D4RL_FILES[name]
    d, m = known_dimensions(entry.env_id) or (0, 0)
    maze = name in ANTMAZES
    data = antmaze([(3, False)] * 3, 0) if maze else locomotion([(3, True)] * 3, d, m, 0)
    read = through_file(tmp_path, name, data)
    assert (read.state_dim, read.action_dim) == (d, m)
    assert (read.info.name, read.info.env_id) == (name, entry.env_id)
    assert read.info.ref_max == {"hop": 3234.3, "hal": 12135.0, "wal": 4592.3, "ant": 1.0}[name[:3]]
    assert read.info.score(read.info.ref_max) == 100.0  # percent
    assert read.info.score(read.info.ref_min) == 0.0


def test_wrong_dimensions_are_rejected(tmp_path):
    data = locomotion([(3, True)] * 3, 12, 3, 0)
    with pytest.raises(ValueError, match=r"^hopper-expert-v2: .*state_dim = 11, action_dim = 3 .*Hopper-v4, got 12, 3"):
        through_file(tmp_path, "hopper-expert-v2", data)
    path = tmp_path / D4RL_FILES["hopper-expert-v2"].file
    assert read_d4rl(path, env_id="MyHopper-v0").state_dim == 12
    assert read_d4rl(path, env_id="MyHopper-v0").info.ref_max is None  # D4RL's references apply to D4RL's environment only


def test_an_antmaze_file_read_for_another_environment_has_no_score(tmp_path):
    data = antmaze([(3, False)] * 3, 0)
    through_file(tmp_path, "antmaze-umaze-v2", data)
    with pytest.raises(ValueError, match=r"^antmaze-umaze-v2: .*state_dim = 31, action_dim = 8 .*AntMaze_UMaze-v4, got 29, 8"):
        read_d4rl(tmp_path / D4RL_FILES["antmaze-umaze-v2"].file, env_id="AntMaze_UMaze-v4")


def test_unmarked_ends_are_split_with_a_warning(tmp_path):
    data = antmaze([(2, False), (201, False), (200, False)], 0)
    data["timeouts"][202] = False
    with pytest.warns(UserWarning, match=r"^antmaze-large-play-v2: timeouts: .*1\.0 m, got 1 unmarked rows, first at row 202"):
        read = through_file(tmp_path, "antmaze-large-play-v2", data)
    assert len(read) == 403 - 3
    assert np.abs(read.next_state - read.state).max() < 1.0
    data["observations"][::7, 0] += 20
    with pytest.raises(ValueError, match=r"^antmaze-large-play-v2: timeouts: .*order of collection"):
        through_file(tmp_path, "antmaze-large-play-v2", data)

    data = locomotion([(200, False)] * 2, 11, 3, 0)
    data["timeouts"][199] = False
    with pytest.warns(UserWarning, match=r"^hopper-medium-v2: next_observations: 1 rows .*row 199"):
        read = through_file(tmp_path, "hopper-medium-v2", data)
    assert len(read) == 400
    assert np.flatnonzero(~read.has_next_action).tolist() == [199, 399]
    assert len(read.for_td()) == 398
    order = np.random.default_rng(0).permutation(400)
    shuffled = {key: value[order] for key, value in data.items()}
    with pytest.raises(ValueError, match=r"^hopper-medium-v2: next_observations: .*order of collection"):
        through_file(tmp_path, "hopper-medium-v2", shuffled)


def test_overlong_episodes_and_missing_ends_are_rejected(tmp_path):
    data = locomotion([(10, False), (1002, True), (10, False)], 11, 3, 0)
    assert len(through_file(tmp_path, "hopper-medium-v2", data)) == 1022  # every successor is recorded and consistent
    del data["next_observations"]
    with pytest.raises(
        ValueError, match=r"^hopper-medium-v2: episode 1 \(rows 10 to 1011\): .*1001 rows .*Hopper-v4 .*got 1002"
    ):
        through_file(tmp_path, "hopper-medium-v2", data)
    data["timeouts"][500] = True
    assert len(through_file(tmp_path, "hopper-medium-v2", data)) == 1022 - 4
    data["timeouts"][:], data["terminals"][:] = False, False
    with pytest.raises(ValueError, match=r"expected terminals or timeouts .*got none marked in 1022 rows"):
        through_file(tmp_path, "hopper-medium-v2", data)
    # D4RL's AntMaze recorder writes one row more than the limit; umaze-diverse was recorded with 1000, not its 700
    rows = antmaze([(1001, False), (5, False)], 0)
    assert len(through_file(tmp_path, "antmaze-umaze-diverse-v2", rows)) == 1004


def test_a_truncated_file_is_rejected(tmp_path):
    data = locomotion([(500, True)] * 4, 11, 3, 0)
    path = tmp_path / "hopper_medium-v2.hdf5"
    write_flat(path, data)
    content = path.read_bytes()
    for share in (0.1, 0.5, 0.9):
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(ValueError, match=r"hopper_medium-v2\.hdf5: expected an HDF5 file, got an unreadable file"):
            load(path)


@pytest.mark.parametrize("damage", ["cut", "empty", "changed", "single"])
def test_a_corrupt_npz_is_rejected(tmp_path, damage):
    path = tmp_path / "hopper_medium-v2.npz"
    np.savez(path, **locomotion([(50, True)] * 4, 11, 3, 0))
    content = path.read_bytes()
    if damage == "single":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    else:
        path.write_bytes({"cut": content[:900], "empty": b"", "changed": content[:900] + b"?????" + content[905:]}[damage])
    with pytest.raises(ValueError, match=r"hopper_medium-v2\.npz: expected a \.npz archive, got an unreadable file"):
        load(path)


@pytest.mark.parametrize(("key", "value"), [("terminals", np.nan), ("timeouts", 2.0), ("terminals", 0.5)])
def test_flags_must_be_0_or_1(tmp_path, key, value):
    data = locomotion([(4, True), (3, False)], 11, 3, 0)
    data[key] = data[key].astype(np.float32)
    data[key][5] = value
    with pytest.raises(ValueError, match=rf" {key}: expected 0 or 1 .*got {value} in row 5"):
        through_file(tmp_path, "hopper-medium-v2", data)


def test_storage_types_do_not_matter(tmp_path):
    """Replay files keep rlkit's float64; flags are bytes or floats; columns are (n, 1); chunks have any shape."""
    data = locomotion([(50, True), (70, False), (30, True)], 11, 3, 0, unfinished=4)
    expected = through_file(tmp_path, "hopper-full-replay-v2", data)
    path = tmp_path / "other" / D4RL_FILES["hopper-full-replay-v2"].file
    path.parent.mkdir()
    with h5py.File(path, "w") as file:
        for key in ("observations", "next_observations", "actions"):
            file.create_dataset(key, data=data[key].astype(np.float64), compression="gzip", chunks=(7, 2))
        file["rewards"] = data["rewards"].reshape(-1, 1).astype(np.float64)
        file["terminals"] = data["terminals"].astype(np.uint8)
        file["timeouts"] = data["timeouts"].astype(np.float32).reshape(-1, 1)
    read = load(path)
    for name, value in vars(expected).items():
        if isinstance(value, np.ndarray):
            assert getattr(read, name).dtype == value.dtype
            assert np.array_equal(getattr(read, name), value), name


@given(lengths=EPISODES, resets=st.booleans(), seed=st.integers(0, 99))
def test_scores_count_up_to_the_goal(tmp_path_factory, lengths, resets, seed):
    """An ant that stays at its goal counts as one success, as in an evaluation."""
    data = antmaze(lengths, seed, resets_at_goal=resets)
    read = through_file(tmp_path_factory.getbasetemp(), "antmaze-umaze-v2", data)
    returns, lengths_, terminated = episode_table(read)
    expected = {}
    parts = [read] if read.blind_ends is None else [read, read.blind_ends]
    for part in parts:
        for number, reward, terminal in zip(part.episode, part.reward, part.terminal, strict=True):
            total, count, over = expected.get(number, (0.0, 0, False))
            expected[number] = (total + (0.0 if over else reward), count + 1, over or terminal)
    rows = [expected[number] for number in sorted(expected)]
    assert np.array_equal(evaluated_returns(read), [total for total, _, _ in rows])
    assert np.array_equal(lengths_, [count for _, count, _ in rows])
    assert np.array_equal(terminated, [over for _, _, over in rows])
    assert (evaluated_returns(read) <= 1).all()
    assert (returns >= evaluated_returns(read)).all()


def test_describe_scores_an_antmaze_file_as_an_evaluation(tmp_path):
    data = antmaze([(6, True), (6, False)] * 3, 0)
    through_file(tmp_path, "antmaze-umaze-v2", data)
    found = describe(tmp_path / D4RL_FILES["antmaze-umaze-v2"].file)
    assert found.returns.max > 1
    assert (found.scores.min, found.scores.max) == (0.0, 100.0)


def test_describe_rejects_a_file_without_successors(tmp_path):
    through_file(tmp_path, "antmaze-umaze-v2", antmaze([(1, False)] * 3, 0))
    with pytest.raises(ValueError, match=r"^antmaze-umaze-v2: .*known successor, got none"):
        describe(tmp_path / D4RL_FILES["antmaze-umaze-v2"].file)
