"""Small valid data sets of every kind that the readers know, and what a plain loop reads from their files."""

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import gymnasium
import h5py
import numpy as np
from minari.data_collector.episode_buffer import EpisodeBuffer
from minari.dataset.minari_storage import MinariStorage

from jacrec.data.transitions import Transitions

ENDS = (5, 13, 23)
"""last rows of the three episodes of a file"""
ROWS = 24
ANTMAZE = "Ant_maze_u-maze_noisy_multistart_False_multigoal_False_sparse_fixed.hdf5"
FILES = {"hdf5": "mine.hdf5", "successors": "mine.h5", "antmaze": ANTMAZE, "npz": "mine.npz", "ogbench": "mine.npz"}
SETS = {"minari": "test/vectors-v0", "goals": "test/goals-v0"}
KINDS = (*FILES, *SETS)
SPACE = gymnasium.spaces


@dataclass(frozen=True)
class Case:
    """A data set on disk."""

    kind: str
    path: Path
    """the file with the arrays"""
    metadata: Path | None
    source: str | Path
    """what `load` takes"""


def arrays(kind: str) -> dict[str, np.ndarray]:
    """The content of a valid file."""
    rng, (d, m) = np.random.default_rng(len(kind)), (29, 8) if kind == "antmaze" else (3, 2)
    states = rng.uniform(-0.1, 0.1, (ROWS, d)).astype(np.float32)
    ends = np.isin(np.arange(ROWS), ENDS)
    content = {
        "observations": states,
        "actions": rng.uniform(-1, 1, (ROWS, m)).astype(np.float32),
        "rewards": rng.standard_normal(ROWS).astype(np.float32),
        "terminals": ends & (np.arange(ROWS) < 8),
        "timeouts": ends & (np.arange(ROWS) > 8),
    }
    successors = np.concatenate((states[1:], states[:1]))
    successors[ends] += 5.0
    if kind == "antmaze":
        content["terminals"] = rng.random(ROWS) < 0.3
        content["infos/goal"] = np.repeat(rng.standard_normal((3, 2)), np.diff((-1, *ENDS)), 0)
    if kind in ("successors", "ogbench"):
        content["next_observations"] = successors
    if kind == "ogbench":
        content |= {"terminals": ends.astype(np.float32), "masks": (rng.random(ROWS) < 0.7).astype(np.float32)}
        del content["timeouts"]
    return content


def make(kind: str, folder: Path, minari_root: Path) -> Case:
    """Write a valid data set: a file in `folder`, or a Minari set under the root."""
    if kind in FILES:
        path = folder / FILES[kind]
        if path.suffix == ".npz":
            np.savez(path, **arrays(kind))
        else:
            with h5py.File(path, "w") as file:
                for key, value in arrays(kind).items():
                    file.create_dataset(key, data=value, chunks=value.shape if key == "rewards" else None)
        return Case(kind, path, None, path)
    data = minari_root / SETS[kind] / "data"
    data.mkdir(parents=True)

    def box(width: int) -> gymnasium.spaces.Box:
        return SPACE.Box(-np.inf, np.inf, (width,), np.float64)

    goal = {"observation": box(3), "achieved_goal": box(2), "desired_goal": box(2)}
    storage = MinariStorage.new(data, SPACE.Dict(goal) if kind == "goals" else box(3), SPACE.Box(-1, 1, (2,)))
    storage.update_metadata({"dataset_id": SETS[kind]})
    rng = np.random.default_rng(1)
    for T in (4, 6, 3):
        widths = {key: space.shape[0] for key, space in goal.items()}
        observations = {key: rng.standard_normal((T + 1, width)) for key, width in widths.items()}
        marks = np.arange(T) == T - 1
        storage.update_episodes(
            [
                EpisodeBuffer(
                    observations=observations if kind == "goals" else observations["observation"],
                    actions=rng.uniform(-1, 1, (T, 2)),
                    rewards=rng.standard_normal(T),
                    terminations=marks & (T != 4),
                    truncations=marks & (T == 4),
                )
            ]
        )
    return Case(kind, data / "main_data.hdf5", data / "metadata.json", SETS[kind])


def plain_rows(case: Case) -> list[tuple]:
    """(s, a, r, s', terminal, followed, episode) of every row with a known successor, read and built one by one."""
    if case.kind in SETS:
        return _minari_rows(case)
    wanted = ("observations", "actions", "rewards", "terminals", "timeouts", "next_observations", "masks", "infos/goal")
    if case.path.suffix == ".npz":
        with np.load(case.path) as file:
            data = {key: file[key] for key in wanted if key in file.files}
    else:
        data = {}
        with h5py.File(case.path) as file:
            for key in wanted:
                with suppress(KeyError):  # `in` fails where reading does not
                    data[key] = file[key][()]
    n, found, episode = len(data["observations"]), [], 0
    states, rewards = np.float32(data["observations"]), np.float32(data["rewards"]).reshape(n)
    actions, flags = np.clip(np.float32(data["actions"]), -1, 1), data["terminals"].reshape(n) != 0
    recorded = np.float32(data["next_observations"]) if "next_observations" in data else None
    for k in range(n):
        if "timeouts" not in data:
            terminal, ends = data["masks"].reshape(n)[k] == 0, flags[k]
        else:
            timeout = data["timeouts"].reshape(n)[k] != 0
            terminal, ends = flags[k], flags[k] or timeout
            if case.kind == "antmaze":
                jumped = k == n - 1 or np.linalg.norm(states[k + 1, :2] - states[k, :2]) > 1.0
                other = "infos/goal" in data and k < n - 1 and (data["infos/goal"][k] != data["infos/goal"][k + 1]).any()
                terminal, ends = terminal and not timeout, timeout or jumped or (terminal and other)
        ends = ends or k == n - 1
        if recorded is not None and not ends:
            gap = np.abs(recorded[k] - states[k + 1])
            ends = bool((gap > 1e-3 * (1 + np.abs(states[k + 1]))).any())
        if recorded is not None or not ends:
            successor = states[k + 1] if recorded is None else recorded[k]
            found.append((states[k], actions[k], rewards[k], successor, terminal, not ends, episode))
        episode += ends
    return found


def _minari_rows(case: Case) -> list[tuple]:
    found = []
    total = json.loads(case.metadata.read_text())["total_episodes"]
    with h5py.File(case.path) as file:
        for number in range(total):
            group = file[f"episode_{number}"]
            states = group["observations"]
            if case.kind == "goals":
                states = np.concatenate((states["observation"][()], states["desired_goal"][()]), 1)
            states, actions = np.float32(states[()]), np.clip(np.float32(group["actions"][()]), -1, 1)
            T = len(actions)
            rewards, flags = np.float32(group["rewards"][()]).reshape(T), group["terminations"][()].reshape(T) != 0
            found += [(states[t], actions[t], rewards[t], states[t + 1], flags[t], t < T - 1, number) for t in range(T)]
    return found


def assert_reads_as(read: Transitions, rows: list[tuple]) -> None:
    """The transitions are these rows, number by number."""
    assert len(read) == len(rows)
    columns = (read.state, read.action, read.reward, read.next_state, read.terminal, read.has_next_action, read.episode)
    for k, row in enumerate(rows):
        for column, value in zip(columns, row, strict=True):
            assert np.array_equal(column[k], value), (k, column[k], value)
    for k in np.flatnonzero(read.has_next_action[:-1]):
        if read.episode[k + 1] == read.episode[k]:
            assert np.array_equal(read.next_action[k], read.action[k + 1])
