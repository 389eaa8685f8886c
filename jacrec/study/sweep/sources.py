"""Where the data of a study's tasks lie.

data_source(task, spec, data_root) -> str           a Minari id or the path of a file
"""

from pathlib import Path

from jacrec.data.d4rl import FLAT_SUFFIXES
from jacrec.data.minari import dataset_path
from jacrec.study.sweep.config import TaskSpec
from jacrec.training.config import published_name

MAZES = {"u": "umaze", "big": "medium", "hardest": "large"}


def data_source(task: str, spec: TaskSpec, data_root: str | Path | None = None) -> str:
    """The Minari id or the path of a task's data; Minari's own ids are not looked for, its server may have them.

    Raises:
        FileNotFoundError: no such file, or no such data set made here.
    """
    root = Path(data_root or ".")
    if spec.data is None:
        return str(_d4rl_file(task, root))
    if spec.data.endswith(FLAT_SUFFIXES):
        path = root / spec.data
        if not path.is_file():
            raise FileNotFoundError(f"{task}: expected its data at {path}")
        return str(path)
    if spec.data.startswith("jacrec/") and not (dataset_path(spec.data) / "data").exists():
        raise FileNotFoundError(f"{task}: expected the data set {spec.data}, made with `jacrec data make`")
    return spec.data


def d4rl_file_name(task: str) -> str:
    """What D4RL calls the file of one of its 24 data sets, version 2."""
    name = published_name(task)
    if name is None:
        raise ValueError(
            f"{task}: expected one of D4RL's 24 data sets, or `data` that names a file or a Minari id, got neither"
        )
    if not name.startswith("antmaze"):
        stem, version = name.rsplit("-", 1)
        return f"{stem.replace('-', '_')}-{version}.hdf5"
    size, *kind = name.removeprefix("antmaze-").removesuffix("-v2").split("-")
    maze = next(file for file, known in MAZES.items() if known == size)
    goals = kind == ["diverse"]
    return f"Ant_maze_{maze}-maze_noisy_multistart_{goals or maze != 'u'}_multigoal_{goals}_sparse_fixed.hdf5"


def _d4rl_file(task: str, root: Path) -> Path:
    """The file under `root` that D4RL's name, or the data set's own, fits."""
    expected = d4rl_file_name(task)
    name = published_name(task)
    names = {expected, expected.replace("_fixed", ""), f"{name}.hdf5", f"{task}.hdf5"}
    found = sorted(path for path in root.rglob("*.hdf5") if path.name in names) if root.is_dir() else []
    if not found:
        raise FileNotFoundError(f"{task}: expected D4RL's {expected} (or {name}.hdf5) in {root} or a folder in it")
    if len(found) > 1:
        raise ValueError(f"{task}: expected one file of its data, got {', '.join(map(str, found))}; name one with `data`")
    return found[0]
