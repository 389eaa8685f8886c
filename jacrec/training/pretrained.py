"""Trained runs that ship with the package, a folder each, their networks in float16.

`unpack` makes a run's folder of one, and every command that takes a run's folder does so for `pretrained/NAME` where there is no such
folder yet. `pack` adds another.
"""

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from jacrec.models.io import load_module_and_notes, save_module
from jacrec.training.folder import NETWORKS, read_record
from jacrec.util.errors import expect_one_of
from jacrec.util.files import user_path

SHIPPED = Path(__file__).with_name("shipped")
FOLDER = "pretrained"
SETTINGS = "config.yaml"
TUNING = ("tuned.yaml", "tuning.json")


@dataclass(frozen=True)
class Pretrained:
    """A run that ships with the package."""

    name: str
    data: str
    """name of the data set that it was trained on"""
    env_id: str
    made_by: str
    """how the data were made"""
    updates: int
    """ReBRAC updates of policy and critic"""
    size: int
    """bytes"""


def pretrained_runs() -> list[Pretrained]:
    """What ships with the package, by name."""
    found = []
    for folder in sorted(path.parent for path in SHIPPED.glob(f"*/{SETTINGS}")):
        record = read_record(folder)
        data, size = record["data"], sum(path.stat().st_size for path in folder.iterdir())
        updates = record["settings"]["rebrac"]["updates"]
        found.append(Pretrained(folder.name, data["name"], data["env_id"], data["source"], updates, size))
    return found


def unpack(name: str, out: str | Path) -> Path:
    """Make the folder `out` of a run that ships with the package; it is whole or not there.

    Raises:
        ValueError: no such run, or `out` exists.
    """
    expect_one_of("name", name, [run.name for run in pretrained_runs()])
    out = user_path(out)
    if out.exists():
        raise ValueError(f"{out}: expected no file or folder there, got one; unpack elsewhere with --out, or delete it")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
        made = Path(scratch) / "run"
        _copy(SHIPPED / name, made, half=False)
        os.replace(made, out)
    return out


def unpacked(path: Path) -> Path:
    """The run's folder itself; `pretrained/NAME` is unpacked first if it does not exist and ships with the package.

    Raises:
        FileNotFoundError: it does not exist, and no run of that name ships.
    """
    if path.parts != (FOLDER, path.name) or path.exists():
        return path
    if not (SHIPPED / path.name / SETTINGS).is_file():
        names = ", ".join(f"{FOLDER}/{run.name}" for run in pretrained_runs())
        raise FileNotFoundError(f"{path}: expected a run's folder or one of {names}, got neither; see `jacrec models list`")
    return unpack(path.name, path)


def pack(run: str | Path, name: str) -> Path:
    """Put a finished run among those that ship: networks in float16, settings, and its tuning if there is one.

    The tuning has to be one of the unpacked run: rounding changes the networks.
    """
    run, folder = user_path(run), SHIPPED / name
    shutil.rmtree(folder, ignore_errors=True)
    _copy(run, folder, half=True)
    return folder


def _copy(run: Path, out: Path, *, half: bool) -> None:
    """Copy a run's networks, settings and tuning, in float16 or float32."""
    out.mkdir(parents=True)
    for part in (part for parts in NETWORKS.values() for part in parts):
        module, notes = load_module_and_notes(run / f"{part}.safetensors")
        save_module(module.half() if half else module.float(), out / f"{part}.safetensors", notes=notes or None)
    for file in (SETTINGS, *TUNING):
        if (run / file).is_file():
            shutil.copyfile(run / file, out / file)
