"""The 24 D4RL data sets used in the paper: file names, URLs, local paths and evaluation environments.

The URLs are D4RL's own (d4rl/infos.py and d4rl/gym_mujoco/__init__.py at commit 89141a6). D4RL publishes no checksums;
those listed here were reported by independent users for the file they downloaded.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePath

HOST = "http://rail.eecs.berkeley.edu/datasets/offline_rl"
KINDS = ("random", "medium", "medium-replay", "full-replay", "medium-expert", "expert")
LOCOMOTION = {"hopper": "Hopper-v4", "halfcheetah": "HalfCheetah-v4", "walker2d": "Walker2d-v4"}
ANTMAZE = {  # name: (maze, random starts, random goals) as spelled in D4RL's file names
    "antmaze-umaze-v2": ("u-maze", False, False),
    "antmaze-umaze-diverse-v2": ("u-maze", True, True),
    "antmaze-medium-play-v2": ("big-maze", True, False),
    "antmaze-medium-diverse-v2": ("big-maze", True, True),
    "antmaze-large-play-v2": ("hardest-maze", True, False),
    "antmaze-large-diverse-v2": ("hardest-maze", True, True),
}
# two independent public projects reported the same checksum of their own downloads in 2026
REPORTED = {"antmaze-umaze-v2": "5ef15257771c50ef4d23c7de001750e96c8bb5d9b6a5e4a821dcfb3065fbd130"}


@dataclass(frozen=True)
class D4RLFile:
    """One D4RL data set, stored as one file."""

    name: str
    """D4RL's name, e.g. ``hopper-medium-replay-v2``"""
    url: str
    env_id: str
    """gymnasium id of the evaluation environment: the -v4 locomotion tasks, or jacrec's port of D4RL's AntMaze"""
    sha256: str | None = None
    """checksum of the whole file, if known"""

    @property
    def file(self) -> str:
        """D4RL's file name, e.g. ``hopper_medium_replay-v2.hdf5``."""
        return PurePath(self.url).name


def _files() -> dict[str, D4RLFile]:
    files = {}
    for robot, env_id in LOCOMOTION.items():
        for kind in KINDS:
            name = f"{robot}-{kind}-v2"
            url = f"{HOST}/gym_mujoco_v2/{robot}_{kind.replace('-', '_')}-v2.hdf5"
            files[name] = D4RLFile(name, url, env_id, REPORTED.get(name))
    for name, (maze, starts, goals) in ANTMAZE.items():
        url = f"{HOST}/ant_maze_v2/Ant_maze_{maze}_noisy_multistart_{starts}_multigoal_{goals}_sparse_fixed.hdf5"
        files[name] = D4RLFile(name, url, f"jacrec/{name}", REPORTED.get(name))
    return files


D4RL_FILES = _files()
_BY_FILE = {PurePath(entry.file).stem.lower(): entry for entry in D4RL_FILES.values()}


def d4rl_file(name: str) -> D4RLFile | None:
    """Look up one of the 24 by data set name (``hopper-medium-v2``), file name or path; None if it is not one of them.

    Case is ignored, and ``_`` matches ``-`` as in D4RL's file names.
    """
    stem = re.sub(r"\.(hdf5|h5|npz)$", "", PurePath(name).name.lower())
    return _BY_FILE.get(stem) or D4RL_FILES.get(stem.replace("_", "-"))


def datasets_root() -> Path:
    """Folder of downloaded files: $JACREC_DATA, or ~/.jacrec/datasets."""
    return Path(os.environ.get("JACREC_DATA") or "~/.jacrec/datasets").expanduser()


def find_d4rl(name: str) -> Path | None:
    """Path of a data set's file on this machine, or None.

    Looks for D4RL's file name and for the data set's name, in `datasets_root()` and in D4RL's own folder
    ($D4RL_DATASET_DIR, or ~/.d4rl/datasets).
    """
    entry = D4RL_FILES.get(name)
    if entry is None:
        return None
    d4rl_root = Path(os.environ.get("D4RL_DATASET_DIR") or "~/.d4rl/datasets").expanduser()
    candidates = (root / file for root in (datasets_root(), d4rl_root) for file in (entry.file, f"{name}.hdf5"))
    return next((path for path in candidates if path.is_file()), None)


def local_d4rl() -> dict[str, Path]:
    """Name -> path for those of the 24 that are on this machine."""
    found = {name: find_d4rl(name) for name in D4RL_FILES}
    return {name: path for name, path in found.items() if path is not None}
