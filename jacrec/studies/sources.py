"""Where the data of a study's tasks lie.

data_source(task, spec, data_root) -> str           a Minari id or the path of a file
needs_root(spec) -> bool
"""

from pathlib import Path

from jacrec.data.d4rl_files import D4RL_FILES, datasets_root, find_d4rl
from jacrec.data.readers.d4rl import FLAT_SUFFIXES
from jacrec.data.readers.minari import dataset_path
from jacrec.studies.config import TaskSpec
from jacrec.training.config import published_name


def needs_root(spec: TaskSpec) -> bool:
    """Whether the task's data are a path that means something only with the folder it starts from."""
    return spec.data is not None and spec.data.endswith(FLAT_SUFFIXES) and not Path(spec.data).is_absolute()


def data_source(task: str, spec: TaskSpec, data_root: str | Path | None = None) -> str:
    """The Minari id or the path of a task's data; Minari's own ids are not looked for, its server may have them.

    A task without `data`, or with one of D4RL's names there, has D4RL's file: under `data_root` at any depth, or where
    `jacrec data get` and D4RL keep theirs.

    Raises:
        FileNotFoundError: no such file, or no such data set made here.
        ValueError: the task names no data and is none of D4RL's, or `data_root` holds the file twice.
    """
    if spec.data is not None and spec.data.endswith(FLAT_SUFFIXES):
        path = Path(data_root or ".") / spec.data
        if not path.is_file():
            raise FileNotFoundError(f"{task}: expected its data at {path}")
        return str(path)
    name = published_name(task) if spec.data is None else spec.data
    if name in D4RL_FILES:
        return str(_d4rl_path(name, data_root))
    if name is None:
        raise ValueError(f"{task}: expected one of D4RL's 24 data sets, or `data` (a file or a Minari id), got neither")
    if name.startswith("jacrec/") and not (dataset_path(name) / "data").exists():
        raise FileNotFoundError(f"{task}: expected the data set {name}, made with `jacrec data make`")
    return name


def _d4rl_path(name: str, data_root: str | Path | None) -> Path:
    file = D4RL_FILES[name].file
    root = None if data_root is None else Path(data_root)
    under = [] if root is None or not root.is_dir() else sorted(p for n in (file, f"{name}.hdf5") for p in root.rglob(n))
    if len(under) > 1:
        raise ValueError(f"{name}: expected one file of its data, got {', '.join(map(str, under))}; name one with `data`")
    path = under[0] if under else find_d4rl(name)
    if path is None:
        places = f"{datasets_root()}" if root is None else f"{root} (at any depth) or {datasets_root()}"
        raise FileNotFoundError(f"{name}: expected D4RL's file {file} in {places}; `jacrec data get {name}`")
    return path
