"""Files in D4RL's flat layout: HDF5 (hopper_medium_replay-v2.hdf5 and similar) or .npz with the same keys.

Keys: observations (n, d), actions (n, m), rewards (n,), terminals (n,), timeouts (n,), with all rows in the order of
collection, and optionally next_observations (n, d). infos and metadata are not read. Arrays of OGBench's single tasks are
read too: `masks` instead of timeouts, 0 at the goal, where the trajectory goes on, and terminals 1 at its last row.

Differences from the usual reader, which takes the next row's observation as the successor of every row it keeps:

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

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np

from jacrec.data.d4rl_files import d4rl_file
from jacrec.data.known_envs import recorded_env_id
from jacrec.data.readers.arrays import UNMARKED_SHARE, from_flat
from jacrec.data.readers.checks import as_column, as_finite, as_flags
from jacrec.data.readers.hdf5 import Numbers, numbers, open_hdf5, text_attributes
from jacrec.data.readers.npz import array_of, open_npz, texts_of
from jacrec.data.readers.repair import Repairs
from jacrec.data.references import reference_by_env, reference_by_name
from jacrec.data.transitions import Bound, DatasetInfo, Transitions, with_bounds
from jacrec.util.caller import warn_caller
from jacrec.util.files import user_path

HDF5_SUFFIXES = (".hdf5", ".h5")
FLAT_SUFFIXES = (*HDF5_SUFFIXES, ".npz")
Source = Numbers | np.ndarray
Find = Callable[[str], Source | None]
KEYS = ("observations", "actions", "rewards", "terminals", "timeouts")
OGBENCH_KEYS = ("observations", "actions", "rewards", "terminals", "masks")
RAW_OGBENCH = (
    "if it is OGBench's own file, which has no rewards, choose a single task by its name, as cube-single-play-singletask-v0: "
    "the file is then looked up in ~/.ogbench/data, and its rows get the task's rewards"
)
ATTRIBUTES = ("env_id", "source")
REACH = 1.0
"""metres, more than an ant can move in a 0.1 s step; reported for umaze: at most 0.37 within an episode, at least 2.5 between
episodes"""


def read_d4rl(
    path: str | Path,
    *,
    env_id: str | None = None,
    action_low: Bound | None = None,
    action_high: Bound | None = None,
    repair: bool = False,
) -> Transitions:
    """Read a file in D4RL's layout. `env_id` overrides the environment given by the file's attributes or name.

    Without `action_low` and `action_high` the actions have to lie in [-1, 1], see `jacrec.data.from_arrays`.

    Args:
        repair: drop last rows of episodes that contain numbers that are not finite, and clip actions up to 0.1 beyond ±1. A
            warning says how often. Otherwise these are errors.

    Raises:
        FileNotFoundError: no such file.
        OSError: the system does not let us read it.
        ValueError: unknown suffix, a damaged or locked file, contents that lie in other files, missing keys, no marked
            episode end, or contents that `jacrec.data.readers.arrays.from_flat` rejects. The message or its note names the
            file.
    """
    path = user_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a D4RL-layout .hdf5 or .npz file")
    with open_flat(path) as (find, attributes):
        try:
            return _transitions(path, find, attributes, env_id, (action_low, action_high), Repairs() if repair else None)
        except ValueError as error:
            if str(path) not in str(error):  # errors about rows name the data set
                error.add_note(f"in the file {path}")
            raise


def _transitions(
    path: Path,
    find: Find,
    attributes: Mapping[str, str],
    env_id: str | None,
    bounds: tuple[Bound | None, Bound | None],
    repairs: Repairs | None,
) -> Transitions:
    """The file's transitions; `find` gives the source at a key, or None."""
    arrays = {key: source for key in (*KEYS, "next_observations") if (source := find(key)) is not None}
    masks = None if "timeouts" in arrays else find("masks")
    if masks is not None:
        arrays["masks"] = masks
        _expect_no_spare_rows(path, find)
    keys = KEYS if masks is None else OGBENCH_KEYS
    missing = [key for key in keys if key not in arrays]
    if missing:
        raise ValueError(
            f"{path}: expected the keys {', '.join(keys)}, got {', '.join(sorted(arrays)) or 'none'} without {', '.join(missing)}; "
            + (
                RAW_OGBENCH
                if missing == ["rewards", "timeouts"]
                else "if its arrays have other names, say which is which in a mapping (--mapping FILE); if it lacks timeouts, add "
                "them: they mark the ends of episodes"
            )
        )
    _check_rows(path, arrays)
    info = with_bounds(_info(path, attributes, env_id), *bounds)
    first, second = (as_flags(as_column(arrays[key], str(path), key), str(path), key) for key in keys[3:])
    if masks is not None:
        terminal, last = ~second, first
    else:
        terminal, last = first, first | second
    if len(last) and not last.any():
        raise ValueError(
            f"{path}: expected {'terminals' if masks is not None else 'terminals or timeouts'} to mark the last row of each "
            f"episode, got none marked in {len(last)} rows; mark them, including the last row of the file if its episode was "
            "truncated there"
        )
    if masks is None and (info.env_id or "").startswith("jacrec/antmaze-"):
        terminal, last = _antmaze_ends(info.name, arrays["observations"], find("infos/goal"), terminal, second)
    rewards = as_column(arrays["rewards"], str(path), "rewards")
    states, actions, following = arrays["observations"], arrays["actions"], arrays.get("next_observations")
    if repairs is not None:
        (states, actions, following), rewards, terminal, last = repairs.rows(
            [states, actions, following], rewards, terminal, last
        )
    found = from_flat(states, actions, rewards, terminal, last, info, following, repairs)
    if repairs is not None:
        repairs.report(info.name)
    return found


def _expect_no_spare_rows(path: Path, find: Find) -> None:
    """Raise ValueError for OGBench's compact form, in which the last row of a trajectory is an observation alone."""
    if find("valids") is not None:
        raise ValueError(
            f"{path}: valids: expected OGBench's regular arrays, got its compact ones, whose trajectories end with an "
            "observation without an action; load them with compact_dataset=False"
        )


def _check_rows(path: Path, arrays: Mapping[str, Source]) -> None:
    """Raise ValueError unless all sources have the same number of rows: before any is read, as a damaged one may be huge."""
    (n, _), *_ = Counter(source.shape[:1] for source in arrays.values()).most_common(1)
    if n == (0,):
        raise ValueError(f"{path}: expected transitions, got none")
    for key, source in arrays.items():
        if source.shape[:1] != n or not n:
            expected = f"{n[0]} rows as in most arrays" if n else "rows"
            raise ValueError(f"{path}: {key}: expected {expected}, got shape {source.shape}")


def _antmaze_ends(
    name: str, observations: Source, goals: Source | None, terminal: np.ndarray, timeout: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(terminal, last) of a D4RL AntMaze file; see the module docstring."""
    n = len(terminal)
    if len(observations.shape) != 2:
        return terminal, timeout  # from_flat raises the error
    position = as_finite(observations[:, :2], 0, name, "observations")
    jumped = np.ones(n, bool)  # the next row is out of reach
    jumped[:-1] = np.linalg.norm(np.diff(position, axis=0), axis=1) > REACH
    new_episode = jumped.copy()  # ... or has another goal
    if goals is not None:
        if len(goals.shape) != 2 or len(goals) != n:
            raise ValueError(f"{name}: infos/goal: expected shape ({n}, width), got {goals.shape}")
        goal = goals[:]
        as_finite(goal, 0, name, "infos/goal")
        new_episode[:-1] |= (np.diff(goal, axis=0) != 0).any(1)
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
        warn_caller(f"{what} (as in files of version 0); these rows are treated as ends")
    return terminal & ~timeout, timeout | (terminal & new_episode) | (jumped & ~terminal)


def _info(path: Path, attributes: Mapping[str, str], env_id: str | None) -> DatasetInfo:
    known = d4rl_file(path.name)
    recorded = attributes.get("env_id")
    if not env_id and recorded:
        env_id = recorded_env_id(recorded, f"{path}: attribute env_id")
    env_id = env_id or (known.env_id if known else None)
    reference = (reference_by_env(env_id) if env_id else None) or (reference_by_name(path.stem) if env_id is None else None)
    source = attributes.get("source", "")
    return DatasetInfo(
        name=known.name if known else path.stem,
        env_id=env_id or (reference.env_id if reference else None),
        ref_min=reference.ref_min if reference else None,
        ref_max=reference.ref_max if reference else None,
        source=f"{path.name}: {source}" if source else path.name,
    )


def unknown_suffix(path: Path) -> str:
    """What to do with a file or folder that no reader reads."""
    got = "a folder" if path.is_dir() else f"{path.suffix!r}"
    return (
        f"{path}: expected a file ending in {', '.join(FLAT_SUFFIXES)}, or Parquet files with a mapping (--mapping), got {got}; read "
        "others yourself, and pass the arrays to jacrec.data.from_arrays"
    )


def open_flat(path: Path) -> AbstractContextManager[tuple[Find, dict[str, str]]]:
    """An HDF5 or .npz file: a function from a key to its source, or None; and the attributes.

    Raises:
        ValueError: another suffix.
    """
    if path.suffix not in FLAT_SUFFIXES:
        raise ValueError(unknown_suffix(path))
    return (_open_hdf5 if path.suffix in HDF5_SUFFIXES else _open_npz)(path)


@contextmanager
def _open_hdf5(path: Path) -> Iterator[tuple[Find, dict[str, str]]]:
    with open_hdf5(path) as file:
        yield lambda key: numbers(file, path, key), text_attributes(file, path, *ATTRIBUTES)


@contextmanager
def _open_npz(path: Path) -> Iterator[tuple[Find, dict[str, str]]]:
    with open_npz(path) as archive:
        yield lambda key: array_of(archive, path, key), texts_of(archive, path, *ATTRIBUTES)
