"""Files in D4RL's flat layout: HDF5 (hopper_medium_replay-v2.hdf5 and the like) or .npz with the same keys.

    read_d4rl(path, *, env_id=None) -> Transitions

Keys: observations (n, d), actions (n, m), rewards (n,), terminals (n,), timeouts (n,), all rows in the order of
collection, and optionally next_observations (n, d); infos and metadata are not read. Where this reader differs from the
customary one, which takes the next row's observation as the successor of every row that it keeps:

* On the last row of an episode the next row is the first state of another episode, and a world model would learn the
  jump. So `next_observations` are used where the file has them (D4RL's locomotion files of version 2), and otherwise such
  rows are dropped; terminal ones stay for TD (`Transitions.for_td`), which does not look at their successor.
* A locomotion row marked terminal and timeout is terminal; D4RL's recorder never marks both.

AntMaze files of version 2 have no next_observations, and their terminals mark another thing: row k has reward 1 and
terminal 1 where observation k + 1 is within 0.5 of one evaluation goal, relabelled after the collection (D4RL's
relabel_antmaze_rewards.py), while the ant went on. So terminals do not end episodes there, timeouts do: such a row masks
the bootstrap of TD, as in ReBRAC's reader, and its successor is the next row. On a row with a timeout the relabelling
looked at another episode, so its terminal is not believed and TD drops the row, again as ReBRAC's reader. One file of the
six, umaze-diverse, was recorded differently: the ant was reset when it arrived. Therefore a terminal row ends its episode
after all if the next row is further than `REACH` away or has another `infos/goal`. What was read off D4RL's scripts and
users' reports is assumed of all six files; none was at hand.
"""

import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from jacrec.data.d4rl_files import d4rl_file
from jacrec.data.readers.arrays import UNMARKED_SHARE, from_flat
from jacrec.data.readers.checks import as_finite, as_flags
from jacrec.data.references import reference_by_env, reference_by_name
from jacrec.data.transitions import DatasetInfo, Transitions

HDF5_SUFFIXES = (".hdf5", ".h5")
FLAT_SUFFIXES = (*HDF5_SUFFIXES, ".npz")
KEYS = ("observations", "actions", "rewards", "terminals", "timeouts")
REACH = 1.0
"""metres that no ant walks in a step of 0.1 s; users report at most 0.37 within an episode of umaze and at least 2.5 across"""


def read_d4rl(path: str | Path, *, env_id: str | None = None) -> Transitions:
    """Read a D4RL-layout file; `env_id` overrides the environment that the file's attributes or name tell.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another suffix, an unreadable file, missing keys, no end of an episode marked anywhere, or contents
            that `jacrec.data.readers.arrays.from_flat` refuses.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a D4RL-layout .hdf5 or .npz file")
    if path.suffix not in FLAT_SUFFIXES:
        raise ValueError(f"{path}: expected a file ending in {', '.join(FLAT_SUFFIXES)}, got {path.suffix!r}")
    with (_open_hdf5 if path.suffix in HDF5_SUFFIXES else _open_npz)(path) as (arrays, attributes):
        missing = [key for key in KEYS if key not in arrays]
        if missing:
            raise ValueError(
                f"{path}: expected the keys {', '.join(KEYS)}, got {', '.join(sorted(arrays))} without "
                f"{', '.join(missing)}; where a file has no timeouts, add them: they say where episodes end"
            )
        info = _info(path, attributes, env_id)
        terminal, timeout = (as_flags(np.asarray(arrays[key]).reshape(-1), str(path), key) for key in ("terminals", "timeouts"))
        if len(terminal) != len(timeout):
            raise ValueError(f"{path}: expected as many timeouts as terminals ({len(terminal)}), got {len(timeout)}")
        if len(terminal) and not (terminal.any() or timeout.any()):
            raise ValueError(
                f"{path}: expected terminals or timeouts that mark the last row of each episode, got none marked in "
                f"{len(terminal)} rows; mark them, the last row of the file too where its episode was cut there"
            )
        last = terminal | timeout
        if (info.env_id or "").startswith("jacrec/antmaze-"):
            terminal, last = _antmaze_ends(info.name, arrays, terminal, timeout)
        rewards = np.asarray(arrays["rewards"]).reshape(-1)
        found = arrays.get("next_observations")
        return from_flat(arrays["observations"], arrays["actions"], rewards, terminal, last, info, found)


def _antmaze_ends(
    name: str, arrays: Mapping[str, Any], terminal: np.ndarray, timeout: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(terminal, last) of a D4RL AntMaze file; see the head of this file."""
    observations, n = arrays["observations"], len(terminal)
    if len(observations) != n or len(observations.shape) != 2:
        return terminal, timeout  # refused by from_flat, which says it better
    place = as_finite(observations[:, :2], 0, name, "observations")
    gone = np.ones(n, bool)  # the next row is elsewhere
    gone[:-1] = np.linalg.norm(np.diff(place, axis=0), axis=1) > REACH
    other = gone.copy()  # ... or strives for another goal
    if "infos/goal" in arrays:
        other[:-1] |= (np.diff(np.asarray(arrays["infos/goal"]), axis=0) != 0).any(1)
    unmarked = np.flatnonzero(gone & ~terminal & ~timeout)
    unmarked = unmarked[unmarked < n - 1]
    if len(unmarked):
        row = int(unmarked[0])
        what = (
            f"{name}: the ant is more than {REACH} m further in the row after {len(unmarked)} rows that no timeout marks, the "
            f"first row {row}"
        )
        if len(unmarked) > max(1, UNMARKED_SHARE * n):
            raise ValueError(f"{what}; expected rows in the order of collection and timeouts where episodes end")
        warnings.warn(f"{what} (files of version 0 are like that): these rows are taken for ends", UserWarning, stacklevel=3)
    return terminal & ~timeout, timeout | (terminal & other) | (gone & ~terminal)


def _info(path: Path, attributes: Mapping[str, str], env_id: str | None) -> DatasetInfo:
    known = d4rl_file(path.name)
    env_id = env_id or attributes.get("env_id") or (known.env_id if known else None)
    reference = (reference_by_env(env_id) if env_id else None) or (reference_by_name(path.stem) if env_id is None else None)
    source = attributes.get("source", "")
    return DatasetInfo(
        name=known.name if known else path.stem,
        env_id=env_id or (reference.env_id if reference else None),
        ref_min=reference.ref_min if reference else None,
        ref_max=reference.ref_max if reference else None,
        source=f"{path.name}: {source}" if source else path.name,
    )


@contextmanager
def _open_hdf5(path: Path) -> Iterator[tuple[Mapping[str, Any], dict[str, str]]]:
    """The file's data sets, to be read in part, and its attributes."""
    try:
        with h5py.File(path, "r") as file:
            wanted = (*KEYS, "next_observations", "infos/goal")
            arrays = {key: file[key] for key in wanted if key in file}
            yield arrays, {key: value for key, value in file.attrs.items() if isinstance(value, str)}
    except OSError as error:
        raise ValueError(f"{path}: expected an HDF5 file, cannot read it ({error}); copy or download it again") from error


@contextmanager
def _open_npz(path: Path) -> Iterator[tuple[Mapping[str, Any], dict[str, str]]]:
    try:
        # numpy leaves a file open that it opened itself and cannot read
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    # a cut or changed archive has many errors; TypeError: the file is one array
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path}: expected a .npz file of arrays, cannot read it ({error}); copy or make it again") from error
    attributes = {key: str(value) for key, value in arrays.items() if value.ndim == 0}
    yield {key: value for key, value in arrays.items() if value.ndim}, attributes
