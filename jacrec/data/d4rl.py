"""Files in D4RL's flat layout: HDF5 (hopper_medium_replay-v2.hdf5 and the like) or .npz with the same keys.

    read_d4rl(path, *, env_id=None) -> Transitions

Keys: observations (n, d), actions (n, m), rewards (n,), terminals (n,), timeouts (n,), all rows in the order of
collection, and optionally next_observations (n, d). Two readings differ from the customary one, which takes the next
row's observation as the successor: on the last row of an episode that is the first state of another episode, and a
world model would learn the jump. So `next_observations` are used where the file has them, and otherwise such rows are
dropped (terminal ones stay for TD, see `Transitions.for_td`). A row marked terminal and timeout is terminal.
"""

from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np

from jacrec.data.references import reference_by_env, reference_by_name
from jacrec.data.transitions import DatasetInfo, Transitions, from_flat

HDF5_SUFFIXES = (".hdf5", ".h5")
FLAT_SUFFIXES = (*HDF5_SUFFIXES, ".npz")
KEYS = ("observations", "actions", "rewards", "terminals", "timeouts")


def read_d4rl(path: str | Path, *, env_id: str | None = None) -> Transitions:
    """Read a D4RL-layout file; `env_id` overrides the environment that the file's attributes or name tell.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another suffix, an unreadable file, missing keys, or contents that `from_flat` refuses.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a D4RL-layout .hdf5 or .npz file")
    if path.suffix not in FLAT_SUFFIXES:
        raise ValueError(f"{path}: expected a file ending in {', '.join(FLAT_SUFFIXES)}, got {path.suffix!r}")
    arrays, attributes = _read_hdf5(path) if path.suffix in HDF5_SUFFIXES else _read_npz(path)
    missing = [key for key in KEYS if key not in arrays]
    if missing:
        raise ValueError(
            f"{path}: expected the keys {', '.join(KEYS)}, got {', '.join(sorted(arrays))} without "
            f"{', '.join(missing)}; where a file has no timeouts, add them: they say where episodes end"
        )
    info = _info(path, attributes, env_id)
    terminal, timeout = (np.asarray(arrays[key]).reshape(-1).astype(bool) for key in ("terminals", "timeouts"))
    if len(terminal) != len(timeout):
        raise ValueError(f"{path}: expected as many timeouts as terminals ({len(terminal)}), got {len(timeout)}")
    return from_flat(
        arrays["observations"],
        arrays["actions"],
        np.asarray(arrays["rewards"]).reshape(-1),
        terminal,
        terminal | timeout,
        info,
        arrays.get("next_observations"),
    )


def _info(path: Path, attributes: Mapping[str, str], env_id: str | None) -> DatasetInfo:
    env_id = env_id or attributes.get("env_id")
    reference = reference_by_name(path.stem) or (reference_by_env(env_id) if env_id else None)
    source = attributes.get("source", "")
    return DatasetInfo(
        name=path.stem,
        env_id=env_id or (reference.env_id if reference else None),
        ref_min=reference.ref_min if reference else None,
        ref_max=reference.ref_max if reference else None,
        source=f"{path.name}: {source}" if source else path.name,
    )


def _read_hdf5(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    try:
        with h5py.File(path, "r") as file:
            wanted = {*KEYS, "next_observations"} & set(file.keys())
            arrays = {key: np.asarray(file[key]) for key in wanted}
            attributes = {key: value for key, value in file.attrs.items() if isinstance(value, str)}
    except OSError as error:
        raise ValueError(f"{path}: expected an HDF5 file, cannot read it ({error}); copy or download it again") from error
    return arrays, attributes


def _read_npz(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: expected a .npz file of arrays, cannot read it ({error})") from error
    attributes = {key: str(value) for key, value in arrays.items() if value.ndim == 0}
    return {key: value for key, value in arrays.items() if value.ndim}, attributes
