"""Read and write Minari data sets on disk.

The root is $MINARI_DATASETS_PATH, or ~/.minari/datasets. Goal environments keep their dict observations on disk. In memory
their state is (observation, desired_goal), or (achieved_goal, observation, desired_goal) for Gymnasium-Robotics' AntMaze,
whose observation lacks the position. Episodes are read one at a time into float32. Data sets are written atomically.
"""

import os
import shutil
import tempfile
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from minari.data_collector.episode_buffer import EpisodeBuffer
from minari.dataset.minari_dataset import parse_dataset_id
from minari.dataset.minari_storage import MinariStorage
from minari.namespace import NAMESPACE_METADATA_FILENAME
from minari.storage.datasets_root_dir import get_dataset_path

from jacrec.data.behaviour.collect import Episode
from jacrec.data.known_envs import recorded_env_id
from jacrec.data.readers.arrays import from_episodes
from jacrec.data.readers.minari_files import (
    METADATA,
    env_id_of,
    expect_default_options,
    is_complete,
    metadata_of,
    space_of,
    stored_episodes,
)
from jacrec.data.readers.repair import Repairs
from jacrec.data.references import reference_by_env, reference_by_name
from jacrec.data.transitions import Bound, DatasetInfo, Transitions, with_bounds
from jacrec.envs.actions import ActionBox
from jacrec.envs.physics import is_goal_space, needs_achieved_goal
from jacrec.util.files import expect_room


def dataset_path(dataset_id: str) -> Path:
    """Folder of a data set, whether it exists or not.

    Raises:
        ValueError: not an id of the form ``namespace/name-v0``.
    """
    try:
        parse_dataset_id(dataset_id)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"dataset_id: expected (namespace/)name-v<number>, such as 'jacrec/hopper-medium-replay-v0', got {dataset_id!r}"
        ) from error
    return Path(get_dataset_path(dataset_id))


def local_ids() -> list[str]:
    """Ids of the complete data sets under the root, sorted."""
    root = Path(get_dataset_path())
    found = (file.parent.parent.relative_to(root) for file in root.rglob("data/metadata.json"))
    visible = (path.as_posix() for path in found if not any(part.startswith(".") for part in path.parts))
    return sorted(name for name in visible if is_complete(root / name))


def read_metadata(dataset_id: str) -> dict[str, Any]:
    """Metadata of a local data set.

    Raises:
        FileNotFoundError: no complete data set with that id on disk.
        ValueError: an entry is damaged.
    """
    path = dataset_path(dataset_id)
    if not is_complete(path):
        raise FileNotFoundError(f"{dataset_id}: expected a complete Minari data set at {path}, got none")
    return metadata_of(path)


def read_minari(
    dataset_id: str,
    *,
    env_id: str | None = None,
    action_low: Bound | None = None,
    action_high: Bound | None = None,
    repair: bool = False,
) -> Transitions:
    """Read a local Minari data set. `env_id` overrides the environment named in its metadata.

    The actions are mapped to [-1, 1] from the bounds of its action space, which `action_low` and `action_high` override.

    An episode stores T + 1 observations, so every successor is known. A termination inside an episode (in goal environments
    that continue) masks the bootstrap of its row without splitting the episode; a truncation does neither.

    Args:
        repair: skip empty episodes; drop last steps without a successor or with numbers that are not finite (a terminal one
            is kept for a critic, which does not use its successor); clip actions up to 0.1 beyond ±1. A warning says how
            often. Otherwise these are errors.

    Raises:
        FileNotFoundError: no complete data set with that id on disk.
        ValueError: observations that are not vectors (or goal dicts of vectors), actions without finite bounds, or
            inconsistent or damaged contents. The message or its note names the file.
    """
    path, metadata = dataset_path(dataset_id), read_metadata(dataset_id)
    file = path / METADATA
    space = space_of(metadata, "observation_space", file)
    if not is_goal_space(space) and not (isinstance(space, gymnasium.spaces.Box) and len(space.shape) == 1):
        raise ValueError(f"{dataset_id}: expected vector observations or a goal environment's dict of vectors, got {space}")
    # without it, Minari would build the environment that the file names
    actions = space_of(metadata, "action_space", file)
    recorded = env_id_of(metadata, file)
    if env_id is None and recorded is not None:
        env_id = recorded_env_id(recorded, f"{file}: env_spec")
        expect_default_options(metadata, env_id, file)
    info = with_bounds(dataset_info(dataset_id, metadata, env_id), action_low, action_high)
    if info.action_box is None:
        remedy = "state the bounds of its actions: action_low, action_high (--action-low, --action-high)"
        box = ActionBox.of(actions, dataset_id, remedy)
        info = with_bounds(info, box.low, box.high)
    front = ("achieved_goal",) if needs_achieved_goal(recorded or env_id) else ()
    keys = (*front, "observation", "desired_goal") if is_goal_space(space) else ()
    repairs = Repairs() if repair else None
    try:
        with closing(stored_episodes(path, metadata, keys)) as episodes:  # an error would keep the file open
            found = from_episodes(episodes, metadata["total_steps"], info, repairs)
    except ValueError as error:
        if str(path) not in str(error):  # errors about rows name the data set
            error.add_note(f"in the folder {path}")
        raise
    if repairs is not None:
        repairs.report(dataset_id)
    return found


def dataset_info(dataset_id: str, metadata: dict[str, Any], env_id: str | None) -> DatasetInfo:
    """`DatasetInfo` from metadata, with D4RL's references if the metadata contain none."""
    reference = reference_by_env(env_id) if env_id else reference_by_name(dataset_id.rpartition("/")[2])
    ref_min, ref_max = metadata.get("ref_min_score"), metadata.get("ref_max_score")
    if (ref_min is None or ref_max is None) and reference is not None:
        ref_min, ref_max = reference.ref_min, reference.ref_max
    return DatasetInfo(
        name=dataset_id,
        env_id=env_id,
        ref_min=ref_min,
        ref_max=ref_max,
        source=metadata.get("description") or f"Minari data set {dataset_id}",
        physics=metadata.get("jacrec", {}).get("physics", {}),
    )


def write_minari(
    dataset_id: str,
    episodes: list[Episode],
    *,
    env: gymnasium.Env,
    action_space: gymnasium.Space | None = None,
    metadata: dict[str, Any],
    overwrite: bool = False,
) -> Path:
    """Write episodes of flat states as a Minari data set and return its folder.

    The data set is built in a hidden folder and moved into place in one step, so an interruption never leaves a partial
    data set under its id. A folder without complete metadata, left by another interrupted writer, is replaced.

    Args:
        env: the unwrapped gymnasium environment whose spaces and spec are stored with the data.
        action_space: the space that the actions are in, if a wrapper changes the environment's own.

    Raises:
        FileExistsError: the data set exists and `overwrite` is False.
        OSError: the disk has no room for the data set.
        ValueError: episodes whose shapes do not match the spaces, or non-finite numbers.
    """
    path = dataset_path(dataset_id)
    refuse_to_replace(dataset_id, overwrite)
    buffers = [_buffer(f"{dataset_id}: episode {i}", episode, env) for i, episode in enumerate(episodes)]
    if not buffers:
        raise ValueError(f"{dataset_id}: expected episodes, got none")
    root = Path(get_dataset_path())
    _remove_stale(root)
    staging = Path(tempfile.mkdtemp(prefix=f".making-{os.getpid()}-", dir=root))
    try:
        expect_room(staging, sum(map(_bytes_on_disk, episodes)) + 1_000_000)  # HDF5 may crash on a full disk
        storage = MinariStorage.new(
            staging / "set",
            observation_space=env.observation_space,
            action_space=action_space or env.action_space,
            env_spec=gymnasium.spec(env.spec.id) if env.spec else None,
        )
        storage.update_metadata({"dataset_id": dataset_id, "minari_version": version("minari"), **metadata})
        storage.update_episodes(buffers)
        (staging / "complete").mkdir()
        (staging / "set").rename(staging / "complete" / "data")
        _make_namespace(root, dataset_id)
        if path.exists():
            path.rename(staging / "old")
        (staging / "complete").rename(path)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return path


def _bytes_on_disk(episode: Episode) -> int:
    """An upper bound: the observations of goal environments hold the achieved goal twice; a group and its arrays take 16 kB."""
    arrays = 2 * episode.observations.nbytes + episode.actions.nbytes + episode.rewards.nbytes + 2 * len(episode)
    return arrays + 16_384


def refuse_to_replace(dataset_id: str, overwrite: bool) -> None:
    """Raise FileExistsError if a complete data set with that id exists and `overwrite` is False."""
    path = dataset_path(dataset_id)
    if not overwrite and is_complete(path):
        raise FileExistsError(f"{dataset_id}: already exists at {path}; pass overwrite=True (--overwrite) to replace it")


def _buffer(where: str, episode: Episode, env: gymnasium.Env) -> EpisodeBuffer:
    """Convert an episode to Minari's type and validate it: Minari stores wrong shapes without an error."""
    space: Any = env.observation_space
    T, goal = len(episode), is_goal_space(space)
    with_position = goal and env.spec is not None and needs_achieved_goal(env.spec.id)
    keys = (*(("achieved_goal",) if with_position else ()), "observation", "desired_goal")
    width = sum(space[key].shape[0] for key in keys) if goal else space.shape[0]
    expected = {
        "observations": (T + 1, width),
        "actions": (T, *(env.action_space.shape or ())),
        "rewards": (T,),
    }
    for name, shape in expected.items():
        value = getattr(episode, name)
        if value.shape != shape or T == 0:
            raise ValueError(f"{where}: {name}: expected shape {shape} and at least one step, got {value.shape}")
        if not np.isfinite(value).all():
            row = int(np.argmin(np.isfinite(value).reshape(len(value), -1).all(1)))
            raise ValueError(f"{where}: {name}: expected finite numbers, got {value[row]} at step {row}")
    observations: Any = episode.observations
    if goal:
        parts = np.split(episode.observations, np.cumsum([space[key].shape[0] for key in keys])[:-1], axis=1)
        reached = space["achieved_goal"].shape[0]
        observations = {"achieved_goal": episode.observations[:, :reached], **dict(zip(keys, parts, strict=True))}
    terminations, truncations = np.zeros(T, bool), np.zeros(T, bool)
    (terminations if episode.terminated else truncations)[-1] = True
    if episode.terminals is not None:
        terminations |= episode.terminals
    return EpisodeBuffer(
        observations=observations,
        actions=episode.actions,  # pyright: ignore[reportArgumentType]  numpy is what the storage takes
        rewards=episode.rewards,  # pyright: ignore[reportArgumentType]
        terminations=terminations,  # pyright: ignore[reportArgumentType]
        truncations=truncations,  # pyright: ignore[reportArgumentType]
    )


def _make_namespace(root: Path, dataset_id: str) -> None:
    """Create the folders above the data set, each with Minari's namespace marker file."""
    folder = root
    for part in dataset_id.split("/")[:-1]:
        folder = folder / part
        folder.mkdir(exist_ok=True)
        marker = folder / NAMESPACE_METADATA_FILENAME
        if not marker.exists():
            marker.write_text("{}")


def _remove_stale(root: Path) -> None:
    """Remove the staging folders of writers that were killed."""
    for folder in root.glob(".making-*"):
        pid = folder.name.split("-")[1]
        if pid.isdigit() and not _is_running(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
