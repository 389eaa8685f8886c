"""What offline data are here, and what is in them.

list_datasets() -> list[DatasetSummary]
describe(source, *, env_id=None) -> DatasetDescription
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jacrec.data.readers.load import load
from jacrec.data.readers.minari import dataset_info, dataset_path, local_ids, read_metadata
from jacrec.data.transitions import DatasetInfo, Transitions


@dataclass(frozen=True)
class DatasetSummary:
    """A local Minari data set, as its metadata tell."""

    dataset_id: str
    env_id: str | None
    kind: str | None
    """random, medium, ...; None for sets that jacrec did not make"""
    episodes: int
    steps: int
    megabytes: float
    path: Path


@dataclass(frozen=True)
class Spread:
    """Mean, standard deviation and range over episodes."""

    mean: float
    std: float
    min: float
    max: float

    @classmethod
    def of(cls, values: np.ndarray) -> "Spread":
        """The spread of (n,) numbers."""
        return cls(float(values.mean()), float(values.std()), float(values.min()), float(values.max()))


@dataclass(frozen=True)
class DatasetDescription:
    """A data set, read and counted.

    In flat files without next observations the last row of a timed-out episode is not known, and its reward not counted.
    """

    info: DatasetInfo
    episodes: int
    steps: int
    """transitions with a known successor"""
    state_dim: int
    action_dim: int
    returns: Spread
    scores: Spread | None
    """normalised, in percent, up to an episode's first terminal row, where an evaluation ends; None without references"""
    lengths: Spread
    """steps per episode"""
    termination_share: float
    """episodes with a terminal row, which ends them except in AntMaze, 0 to 1"""
    made_by: dict[str, Any] = field(default_factory=dict)
    """jacrec's own record: kind, seed, version, physics, policies; empty for other data"""


def list_datasets() -> list[DatasetSummary]:
    """Every complete Minari data set under the local root, sorted by id; reads metadata only."""
    return [_summary(dataset_id) for dataset_id in local_ids()]


def describe(source: str | Path, *, env_id: str | None = None) -> DatasetDescription:
    """Read a data set (anything `load` takes, nothing is downloaded) and count.

    Raises:
        FileNotFoundError, ValueError: as `load`.
    """
    data = load(source, env_id=env_id, download=False)
    returns, lengths, terminated = episode_table(data)
    if not len(returns):
        raise ValueError(f"{data.info.name}: expected rows with a known successor, got none: every episode has a single row")
    scores = data.info.score(evaluated_returns(data))
    made_by = read_metadata(data.info.name).get("jacrec", {}) if data.info.physics else {}
    return DatasetDescription(
        info=data.info,
        episodes=len(returns),
        steps=len(data),
        state_dim=data.state_dim,
        action_dim=data.action_dim,
        returns=Spread.of(returns),
        scores=None if scores is None else Spread.of(scores),
        lengths=Spread.of(lengths),
        termination_share=float(terminated.mean()),
        made_by=made_by,
    )


def episode_table(data: Transitions) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per episode: undiscounted return, number of steps, whether it holds a terminal row; (episodes,) each."""
    episode, reward, terminal = _steps(data)
    return np.bincount(episode, reward), np.bincount(episode).astype(np.float64), np.bincount(episode, terminal) > 0


def evaluated_returns(data: Transitions) -> np.ndarray:
    """(episodes,) returns as an evaluation would count them: up to the first terminal row.

    Another number than the return only where data go on after a terminal row, as D4RL's AntMaze does at its goal.
    """
    episode, reward, terminal = _steps(data)
    ended = np.cumsum(terminal) - terminal  # terminal rows before each row, of all episodes
    first = np.diff(episode, prepend=-1) > 0
    before = ended - np.repeat(ended[first], np.bincount(episode))
    return np.bincount(episode, np.where(before == 0, reward, 0.0))


def _steps(data: Transitions) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(episode counted from 0, reward float64, terminal int) of every row, blind ends in their places."""
    parts = [data] if data.blind_ends is None else [data, data.blind_ends]
    episode = np.concatenate([part.episode for part in parts])
    order = np.argsort(episode, kind="stable")
    _, episode = np.unique(episode[order], return_inverse=True)
    reward = np.concatenate([part.reward for part in parts]).astype(np.float64)[order]
    return episode, reward, np.concatenate([part.terminal for part in parts])[order].astype(np.int64)


def _summary(dataset_id: str) -> DatasetSummary:
    metadata, path = read_metadata(dataset_id), dataset_path(dataset_id)
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return DatasetSummary(
        dataset_id,
        dataset_info(dataset_id, metadata).env_id,
        metadata.get("jacrec", {}).get("kind"),
        metadata["total_episodes"],
        metadata["total_steps"],
        size / 1e6,
        path,
    )
