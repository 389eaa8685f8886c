"""OGBench's single-task data sets: its files, relabelled with the rewards and masks of one task of the environment.

A file NAME.npz has observations, actions and terminals; `terminals` is 1 in a trajectory's last row, an observation without an
action of its own. Rewards and masks come from the environment's goal, by OGBench's own code: the mask is 0 where the goal is
reached, and the trajectory goes on. NAME-val.npz holds more trajectories, on which the errors of models are measured; without
this file, a share of the data is held out instead (`held_out`).
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from jacrec.data.readers.arrays import from_flat
from jacrec.data.readers.npz import open_npz
from jacrec.data.transitions import Bound, DatasetInfo, Transitions, with_bounds
from jacrec.envs.ogbench import ogbench, single_task
from jacrec.envs.physics import make_env
from jacrec.util.files import user_path

URL = "https://rail.eecs.berkeley.edu/datasets/ogbench"
FOLDER = "~/.ogbench/data"
"""where OGBench keeps its files"""
MAGIC = b"PK\x03\x04"


def ogbench_file(name: str) -> Path:
    """The file of a single-task data set, whether it exists or not."""
    return user_path(FOLDER) / f"{single_task(name).dataset}.npz"


def validation_file(path: Path) -> Path:
    """The file of the trajectories that are kept for measuring errors, beside that of the data."""
    return path.with_name(f"{path.stem}-val.npz")


def read_ogbench(name: str, *, action_low: Bound | None = None, action_high: Bound | None = None) -> Transitions:
    """Read a data set such as cube-single-play-singletask-v0 from OGBench's folder, with its `validation` if that is there.

    Raises:
        FileNotFoundError: its file is not there.
        ValueError: `ogbench` is not installed, has no such environment, or the file is damaged.
    """
    path, env_id = ogbench_file(name), single_task(name).env_id
    if not path.is_file():
        raise FileNotFoundError(
            f"{name}: expected OGBench's file {path}, got none; `jacrec data get {name}` downloads it from {URL}"
        )
    info = with_bounds(DatasetInfo(name, env_id, source=f"OGBench: {path.name}"), action_low, action_high)
    data, further = _read(path, info), validation_file(path)
    return replace(data, validation=_read(further, info)) if further.is_file() else data


def _read(path: Path, info: DatasetInfo) -> Transitions:
    with open_npz(path):  # OGBench leaves a file open that it cannot read
        pass
    utils, relabel = ogbench("ogbench.utils"), ogbench("ogbench.relabel_utils")
    env_id = info.env_id
    assert env_id is not None
    env = make_env(env_id)
    try:
        arrays: dict[str, Any] = utils.load_dataset(str(path), add_info=True)
        relabel.relabel_dataset(env_id, env.unwrapped, arrays)
    except Exception as error:  # a truncated or another archive makes numpy and OGBench raise anything
        raise ValueError(
            f"{path}: expected OGBench's arrays for {env_id}, cannot read them ({type(error).__name__}: {error}); "
            f"`jacrec data get {info.name} --overwrite` downloads them again"
        ) from error
    finally:
        env.close()
    rewards, terminal, last = (np.asarray(arrays[key]) for key in ("rewards", "masks", "terminals"))
    return from_flat(
        arrays["observations"], arrays["actions"], rewards, terminal == 0, last == 1, info, arrays["next_observations"]
    )
