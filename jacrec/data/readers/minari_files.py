"""The files of a Minari data set: metadata and stored episodes, checked, as both may be damaged or made by a stranger."""

import json
import math
from collections.abc import Generator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from minari.dataset.minari_storage import METADATA_FILE_NAME, MinariStorage
from minari.serialization import deserialize_space

from jacrec.data.readers.checks import as_array, as_column
from jacrec.data.readers.hdf5 import Numbers, numbers, open_hdf5
from jacrec.util.caller import warn_caller

AGAIN = "copy or download the data set again"
METADATA = Path("data") / METADATA_FILE_NAME
"""file of a data set's metadata in its folder"""
HDF5_FILE = "main_data.hdf5"
"""file with all episodes of a data set in Minari's HDF5 format"""
TYPES: dict[str, tuple[type, ...]] = {
    "dataset_id": (str,),
    "total_steps": (int,),
    "total_episodes": (int,),
    "data_format": (str,),
    "observation_space": (str,),
    "action_space": (str,),
    "env_spec": (str,),
    "description": (str,),
    "ref_min_score": (int, float, type(None)),
    "ref_max_score": (int, float, type(None)),
    "jacrec": (dict,),
}
Stored = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def is_complete(path: Path) -> bool:
    """Whether the folder contains a finished data set. Minari writes the step count last, and downloads file by file."""
    try:
        metadata = MinariStorage.read_raw_metadata(path / "data")
    except (ValueError, OSError, RecursionError):
        return False
    if not isinstance(metadata, dict):
        return False
    has_data = metadata.get("data_format") != "hdf5" or (path / "data" / HDF5_FILE).is_file()
    steps = metadata.get("total_steps", 0)
    return has_data and bool(metadata.get("dataset_id")) and isinstance(steps, int) and steps > 0


def metadata_of(path: Path) -> dict[str, Any]:
    """The metadata of the complete data set in a folder.

    Raises:
        ValueError: an entry that jacrec uses has another type than Minari writes.
    """
    metadata, file = MinariStorage.read_raw_metadata(path / "data"), path / METADATA
    for key, types in TYPES.items():
        value = metadata.get(key)
        fits = key not in metadata or isinstance(value, types)
        if not fits or (isinstance(value, float) and not math.isfinite(value)):
            raise ValueError(f"{file}: {key}: expected {' or '.join(t.__name__ for t in types)}, got {value!r}; {AGAIN}")
    return metadata


def env_id_of(metadata: dict[str, Any], file: Path) -> str | None:
    """The id of the environment that recorded the data; None if the metadata do not name it.

    Raises:
        ValueError: the entry is damaged.
    """
    if "env_spec" not in metadata:
        return None
    try:
        env_id = json.loads(metadata["env_spec"])["id"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{file}: env_spec: expected the JSON of an environment, got {metadata['env_spec']!r}; {AGAIN}"
        ) from error
    if not isinstance(env_id, str):
        raise ValueError(f"{file}: env_spec: expected the id of an environment, got {env_id!r}; {AGAIN}")
    return env_id


def expect_default_options(metadata: dict[str, Any], env_id: str, file: Path) -> None:
    """Warn if one of gymnasium's MuJoCo environments was recorded with options: it is evaluated without them."""
    spec = gymnasium.registry.get(env_id)
    if spec is None or not str(spec.entry_point).startswith("gymnasium.envs.mujoco"):
        return
    options = json.loads(metadata["env_spec"]).get("kwargs")
    other = (
        {name: value for name, value in options.items() if spec.kwargs.get(name) != value} if isinstance(options, dict) else {}
    )
    if other:
        named = ", ".join(f"{name}={value!r}" for name, value in other.items())
        warn_caller(
            f"{file}: env_spec: the data were recorded in {env_id} with {named}, which a policy is evaluated without; if this "
            "matters, register an environment with these options and name it: --env-id (env_id in Python)"
        )


def space_of(metadata: dict[str, Any], key: str, file: Path) -> gymnasium.Space:
    """The data set's observation or action space. It is never taken from the environment, which a file may make us import.

    Raises:
        ValueError: it is missing or damaged.
    """
    try:
        return deserialize_space(metadata[key])
    except Exception as error:  # Minari's own reader raises anything
        raise ValueError(
            f"{file}: {key}: expected a space as Minari 0.5 stores it, got {metadata.get(key)!r} "
            f"({type(error).__name__}: {error}); {AGAIN}"
        ) from error


def stored_episodes(path: Path, metadata: dict[str, Any], keys: tuple[str, ...]) -> Generator[Stored, None, None]:
    """(states (T + 1, d), actions (T, m), rewards (T,), terminations (T,)) of every episode, in order.

    A state joins the observations at `keys` of a dict space; without `keys`, it is the observation.

    Raises:
        ValueError: damaged contents; the message names file and episode.
    """
    total = metadata.get("total_episodes", 0)
    if metadata.get("data_format") == "hdf5":
        yield from _hdf5_episodes(path / "data" / HDF5_FILE, total, metadata["total_steps"], keys)
        return
    try:
        for k, episode in enumerate(MinariStorage.read(path / "data").get_episodes(range(total))):
            parts = [episode["observations"][key] for key in keys] or [episode["observations"]]
            actions, rewards, terminations = (
                as_array(episode[key], str(path), f"episode {k}: {key}") for key in ("actions", "rewards", "terminations")
            )
            yield _joined(parts, f"{path}: episode {k}: observations"), actions, rewards, terminations
    except Exception as error:  # Minari's own reader raises anything
        if isinstance(error, ValueError) and str(path) in str(error):
            raise
        raise ValueError(
            f"{path / 'data'}: expected episodes that Minari can read, got {type(error).__name__}: {error}; {AGAIN}"
        ) from error


def _hdf5_episodes(path: Path, total: int, most: int, keys: tuple[str, ...]) -> Generator[Stored, None, None]:
    with open_hdf5(path) as file:

        def source(key: str) -> Numbers:
            found = numbers(file, path, key)
            if found is None:
                raise ValueError(f"{path}: {key}: expected an array, got none; {AGAIN}")
            if not found.shape:
                raise ValueError(f"{path}: {key}: expected an array of rows, got a single number; {AGAIN}")
            return found

        for k in range(total):
            name = f"episode_{k}"
            parts = [source(f"{name}/observations/{key}") for key in keys] or [source(f"{name}/observations")]
            actions = source(f"{name}/actions")
            columns = {key: source(f"{name}/{key}") for key in ("rewards", "terminations")}
            # before any is read: a damaged one may be huge
            for found in (*parts, actions, *columns.values()):
                if len(found) > most + 1:
                    raise ValueError(f"{found.where}: expected at most {most} steps, got {len(found)}; {AGAIN}")
            state = _joined([part[:] for part in parts], f"{path}: {name}/observations")
            rewards, terminations = (as_column(found, str(path), f"{name}/{key}") for key, found in columns.items())
            yield state, actions[:], rewards, terminations


def _joined(parts: list[np.ndarray], where: str) -> np.ndarray:
    """The state of a goal environment, (T + 1, d); see `jacrec.envs.physics.goal_in_state`."""
    if len(parts) == 1:
        return parts[0]
    if any(part.ndim != 2 or len(part) != len(parts[0]) for part in parts):
        raise ValueError(f"{where}: expected arrays of as many rows each, got shapes {', '.join(str(x.shape) for x in parts)}")
    return np.concatenate(parts, axis=1)
