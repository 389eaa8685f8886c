"""Location of the data of a study's tasks."""

from pathlib import Path

from jacrec.data.d4rl_files import D4RL_FILES, datasets_root, find_d4rl
from jacrec.data.readers.d4rl import FLAT_SUFFIXES
from jacrec.data.readers.minari import dataset_path
from jacrec.data.readers.parquet import SUFFIX as PARQUET
from jacrec.studies.config import TaskSpec
from jacrec.training.config import published_name
from jacrec.util.files import user_path

SUFFIXES = (*FLAT_SUFFIXES, PARQUET)


def needs_root(spec: TaskSpec) -> bool:
    """Whether the task's data are given as a relative path."""
    return spec.data is not None and spec.data.endswith(SUFFIXES) and not user_path(spec.data).is_absolute()


def data_source(task: str, spec: TaskSpec, data_root: str | Path | None = None) -> str:
    """The Minari id or the file path of a task's data; remote Minari ids are not checked.

    If `data` is None or the name of a D4RL data set, D4RL's file is searched for under `data_root` at any depth, then where
    `jacrec data get` and D4RL store their files.

    Raises:
        FileNotFoundError: there is no such file, or no such locally made data set.
        ValueError: the task has no data and is not one of D4RL's, or `data_root` contains the file twice.
    """
    if spec.data is not None and spec.data.endswith(SUFFIXES):
        path = user_path(data_root or ".") / user_path(spec.data)
        if not path.is_file():
            raise FileNotFoundError(f"{task}: expected the data file {path}, got none; set --data-root")
        return str(path)
    name = published_name(task) if spec.data is None else spec.data
    if name in D4RL_FILES:
        return str(_d4rl_path(name, data_root))
    if name is None:
        raise ValueError(
            f"{task}: expected the name of one of D4RL's 24 data sets, or `data` (a file or Minari id), got neither"
        )
    if name.startswith("jacrec/") and not (dataset_path(name) / "data").exists():
        raise FileNotFoundError(f"{task}: expected the local data set {name}, got none; make it with `jacrec data make`")
    return name


def _d4rl_path(name: str, data_root: str | Path | None) -> Path:
    file = D4RL_FILES[name].file
    root = None if data_root is None else user_path(data_root)
    under = [] if root is None or not root.is_dir() else sorted(p for n in (file, f"{name}.hdf5") for p in root.rglob(n))
    if len(under) > 1:
        raise ValueError(f"{name}: expected a single data file, got {', '.join(map(str, under))}; choose one with `data`")
    path = under[0] if under else find_d4rl(name)
    if path is None:
        places = f"{datasets_root()}" if root is None else f"{root} (at any depth) or {datasets_root()}"
        raise FileNotFoundError(f"{name}: expected D4RL's file {file} in {places}, got none; run `jacrec data get {name}`")
    return path
