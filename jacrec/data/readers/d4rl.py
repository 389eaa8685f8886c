"""Files in D4RL's flat layout: HDF5 (hopper_medium_replay-v2.hdf5 and similar) or .npz with the same keys.

Keys: observations (n, d), actions (n, m), rewards (n,), terminals (n,), timeouts (n,), with all rows in the order of
collection, and optionally next_observations (n, d). infos and metadata are not read. Differences from the usual reader,
which takes the next row's observation as the successor of every row it keeps:

* The row after the last row of an episode belongs to another episode, and a world model would learn the jump. So
  `next_observations` are used if the file has them (D4RL's locomotion files of version 2); otherwise last rows are
  dropped. Terminal ones are kept for TD (`Transitions.for_td`), which does not use their successor.
* A locomotion row marked both terminal and timeout is terminal; D4RL's recorder never marks both.

AntMaze files of version 2 have no next_observations, and their terminals mean something else: row k has reward 1 and
terminal 1 if observation k + 1 is within 0.5 of a single evaluation goal. They were relabelled after collection (D4RL's
relabel_antmaze_rewards.py), and the ant kept walking. So timeouts, not terminals, end episodes: a terminal row masks the
TD bootstrap, as in ReBRAC's reader, and its successor is the next row. At a timeout row the relabelling used an
observation of another episode, so its terminal is ignored and TD drops the row, again as in ReBRAC's reader. One of the
six files, umaze-diverse, was recorded differently: the ant was reset on arrival. Therefore a terminal row ends its episode
after all if the next row is more than `REACH` away or has another `infos/goal`. These rules were derived from D4RL's
scripts and from users' reports and are assumed to hold for all six files, none of which was available for a check.
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
from jacrec.data.transitions import Bound, DatasetInfo, Transitions, with_bounds
from jacrec.util.files import user_path

HDF5_SUFFIXES = (".hdf5", ".h5")
FLAT_SUFFIXES = (*HDF5_SUFFIXES, ".npz")
KEYS = ("observations", "actions", "rewards", "terminals", "timeouts")
REACH = 1.0
"""metres, more than an ant can move in a 0.1 s step; reported for umaze: at most 0.37 within an episode, at least 2.5 between
episodes"""


def read_d4rl(
    path: str | Path, *, env_id: str | None = None, action_low: Bound | None = None, action_high: Bound | None = None
) -> Transitions:
    """Read a file in D4RL's layout. `env_id` overrides the environment given by the file's attributes or name.

    Without `action_low` and `action_high` the actions have to lie in [-1, 1], see `jacrec.data.from_arrays`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: unknown suffix, unreadable file, missing keys, no marked episode end, or contents that
            `jacrec.data.readers.arrays.from_flat` rejects.
    """
    path = user_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a D4RL-layout .hdf5 or .npz file")
    if path.suffix not in FLAT_SUFFIXES:
        raise ValueError(f"{path}: expected a file ending in {', '.join(FLAT_SUFFIXES)}, got {path.suffix!r}")
    with (_open_hdf5 if path.suffix in HDF5_SUFFIXES else _open_npz)(path) as (arrays, attributes):
        missing = [key for key in KEYS if key not in arrays]
        if missing:
            raise ValueError(
                f"{path}: expected the keys {', '.join(KEYS)}, got {', '.join(sorted(arrays))} without "
                f"{', '.join(missing)}; if a file lacks timeouts, add them: they mark the ends of episodes"
            )
        info = with_bounds(_info(path, attributes, env_id), action_low, action_high)
        terminal, timeout = (as_flags(np.asarray(arrays[key]).reshape(-1), str(path), key) for key in ("terminals", "timeouts"))
        if len(terminal) != len(timeout):
            raise ValueError(f"{path}: timeouts: expected {len(terminal)} values as in terminals, got {len(timeout)}")
        if len(terminal) and not (terminal.any() or timeout.any()):
            raise ValueError(
                f"{path}: expected terminals or timeouts to mark the last row of each episode, got none marked in "
                f"{len(terminal)} rows; mark them, including the last row of the file if its episode was truncated there"
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
    """(terminal, last) of a D4RL AntMaze file; see the module docstring."""
    observations, n = arrays["observations"], len(terminal)
    if len(observations) != n or len(observations.shape) != 2:
        return terminal, timeout  # from_flat raises the error
    position = as_finite(observations[:, :2], 0, name, "observations")
    jumped = np.ones(n, bool)  # the next row is out of reach
    jumped[:-1] = np.linalg.norm(np.diff(position, axis=0), axis=1) > REACH
    new_episode = jumped.copy()  # ... or has another goal
    if "infos/goal" in arrays:
        new_episode[:-1] |= (np.diff(np.asarray(arrays["infos/goal"]), axis=0) != 0).any(1)
    unmarked = np.flatnonzero(jumped & ~terminal & ~timeout)
    unmarked = unmarked[unmarked < n - 1]
    if len(unmarked):
        row = int(unmarked[0])
        what = (
            f"{name}: timeouts: expected a mark where the ant jumps more than {REACH} m, got {len(unmarked)} unmarked rows, "
            f"first at row {row}"
        )
        if len(unmarked) > max(1, UNMARKED_SHARE * n):
            raise ValueError(f"{what}; provide rows in the order of collection, with timeouts at the ends of episodes")
        warnings.warn(f"{what} (as in files of version 0); these rows are treated as ends", UserWarning, stacklevel=3)
    return terminal & ~timeout, timeout | (terminal & new_episode) | (jumped & ~terminal)


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
    """The file's data sets, read lazily, and its attributes."""
    try:
        with h5py.File(path, "r") as file:
            wanted = (*KEYS, "next_observations", "infos/goal")
            arrays = {key: file[key] for key in wanted if key in file}
            yield arrays, {key: value for key, value in file.attrs.items() if isinstance(value, str)}
    except OSError as error:
        raise ValueError(
            f"{path}: expected an HDF5 file, got an unreadable file ({error}); copy or download it again"
        ) from error


@contextmanager
def _open_npz(path: Path) -> Iterator[tuple[Mapping[str, Any], dict[str, str]]]:
    try:
        # numpy does not close a file that it opened itself and cannot read
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    # a truncated or corrupt archive raises any of these; TypeError: the file is a single array
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"{path}: expected a .npz archive, got an unreadable file ({error}); copy or create it again"
        ) from error
    attributes = {key: str(value) for key, value in arrays.items() if value.ndim == 0}
    yield {key: value for key, value in arrays.items() if value.ndim}, attributes
