"""The 24 data sets of D4RL that the paper uses: their files, where these lie, and which environment each belongs to.

    D4RL_FILES: name -> D4RLFile
    d4rl_file(name) -> D4RLFile | None      by data set name, file name or path
    datasets_root() -> Path                 $JACREC_DATA, or ~/.jacrec/datasets
    find_d4rl(name) -> Path | None          the file on this machine, there or where D4RL itself keeps its files
    local_d4rl() -> dict[str, Path]         all of them

The addresses are those of D4RL (d4rl/infos.py and d4rl/gym_mujoco/__init__.py at commit 89141a6). D4RL publishes no
checksums; a known one here is what independent users report of the file they got.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePath

HOST = "http://rail.eecs.berkeley.edu/datasets/offline_rl"
KINDS = ("random", "medium", "medium-replay", "full-replay", "medium-expert", "expert")
LOCOMOTION = {"hopper": "Hopper-v4", "halfcheetah": "HalfCheetah-v4", "walker2d": "Walker2d-v4"}
ANTMAZE = {  # D4RL's words for the maze, for starts and goals that vary
    "antmaze-umaze-v2": ("u-maze", False, False),
    "antmaze-umaze-diverse-v2": ("u-maze", True, True),
    "antmaze-medium-play-v2": ("big-maze", True, False),
    "antmaze-medium-diverse-v2": ("big-maze", True, True),
    "antmaze-large-play-v2": ("hardest-maze", True, False),
    "antmaze-large-diverse-v2": ("hardest-maze", True, True),
}
# reported alike by two independent public projects in 2026, each of its own download
REPORTED = {"antmaze-umaze-v2": "5ef15257771c50ef4d23c7de001750e96c8bb5d9b6a5e4a821dcfb3065fbd130"}


@dataclass(frozen=True)
class D4RLFile:
    """One data set of D4RL as a file."""

    name: str
    """D4RL's name, e.g. ``hopper-medium-replay-v2``"""
    url: str
    env_id: str
    """gymnasium id of the environment that evaluates it: the -v4 of locomotion, jacrec's own of D4RL's AntMaze"""
    sha256: str | None = None
    """of the whole file, where known"""

    @property
    def file(self) -> str:
        """D4RL's name for the file, e.g. ``hopper_medium_replay-v2.hdf5``."""
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
    """Which of the 24 a data set name (``hopper-medium-v2``), file name or path is; None for others.

    Upper and lower case, and _ for - as in D4RL's file names, make no difference.
    """
    stem = re.sub(r"\.(hdf5|h5|npz)$", "", PurePath(name).name.lower())
    return _BY_FILE.get(stem) or D4RL_FILES.get(stem.replace("_", "-"))


def datasets_root() -> Path:
    """The folder of downloaded files: $JACREC_DATA, or ~/.jacrec/datasets."""
    return Path(os.environ.get("JACREC_DATA") or "~/.jacrec/datasets").expanduser()


def find_d4rl(name: str) -> Path | None:
    """The file of a data set on this machine, or None.

    Looked for under D4RL's file name and under the data set's name, in `datasets_root()` and in D4RL's own folder
    ($D4RL_DATASET_DIR, or ~/.d4rl/datasets).
    """
    entry = D4RL_FILES.get(name)
    if entry is None:
        return None
    theirs = Path(os.environ.get("D4RL_DATASET_DIR") or "~/.d4rl/datasets").expanduser()
    candidates = (root / file for root in (datasets_root(), theirs) for file in (entry.file, f"{name}.hdf5"))
    return next((path for path in candidates if path.is_file()), None)


def local_d4rl() -> dict[str, Path]:
    """Name -> file of those of the 24 that are on this machine."""
    found = {name: find_d4rl(name) for name in D4RL_FILES}
    return {name: path for name, path in found.items() if path is not None}
