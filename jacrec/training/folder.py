"""A run's folder: its record of settings and data, and the lock that allows one training process at a time."""

import contextlib
import json
import operator
import platform
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
import yaml

import jacrec
from jacrec.data.transitions import ARRAYS, DatasetInfo, Transitions, with_bounds
from jacrec.data.yaml_file import read_yaml
from jacrec.models.io import load_module_and_notes
from jacrec.training.config import PARTS, TrainConfig, from_dict, to_dict
from jacrec.util import locks
from jacrec.util.content import expect_content
from jacrec.util.files import user_path, write_text

REMEDY = "copy the file again, correct it, or train into another folder"
LOCK = "checkpoints/.lock"
NETWORKS = {"rebrac": ("actor", "critic"), "dynamics": ("dynamics",), "reward": ("reward",)}
"""file stems of each stage's networks"""
ELSEWHERE = "trained_elsewhere"
"""note with a policy that `train_world` was given"""


class RunData(TypedDict):
    """What a run's record says of its data, besides `DatasetInfo`."""

    name: str
    digest: str


class RunRecord(TypedDict):
    """The content of a run's config.yaml."""

    settings: dict[str, Any]
    data: RunData


def read_record(path: Path) -> dict[str, Any]:
    """A run's config.yaml: {"settings", "data", "versions"}.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged.
    """
    file = user_path(path) / "config.yaml"
    if not file.is_file():
        raise FileNotFoundError(f"{path}: expected a run, got no config.yaml; train one with `jacrec train`")
    record = read_yaml(file, REMEDY)
    expect_content(record, RunRecord, file, REMEDY)
    expect_content(record["data"], DatasetInfo, file, REMEDY)
    return record


def recorded_config(path: Path, record: dict[str, Any]) -> TrainConfig:
    """The settings in a run's record.

    Raises:
        ValueError: unknown settings, or values of the wrong type; names the file.
    """
    file = Path(path) / "config.yaml"
    expect_content(record["settings"], TrainConfig, file, REMEDY)
    try:
        return from_dict(record["settings"])
    except ValueError as error:
        raise ValueError(f"{file}: {error}; {REMEDY}") from None


def recorded_info(record: dict[str, Any]) -> DatasetInfo:
    """The data's metadata in a run's record."""
    known = {f.name for f in fields(DatasetInfo)}
    info = DatasetInfo(**{k: v for k, v in record["data"].items() if k in known})
    # an earlier version took the actions as they were
    return info if "action_low" in record["data"] else with_bounds(info, -1.0, 1.0)


def loadable(config: TrainConfig, info: DatasetInfo) -> bool:
    """Whether the data of a run can be loaded by `config.data`: they were not given to `train` as arrays."""
    return bool(config.data) and info.source != ARRAYS


def digest(data: Transitions) -> str:
    """A checksum of everything that training reads."""
    value = 0
    for part in (data,) if data.validation is None else (data, data.validation):
        for name in ("state", "action", "reward", "next_state", "next_action", "terminal", "has_next_action", "episode"):
            value = zlib.crc32(np.ascontiguousarray(getattr(part, name)).data, value)
    return f"{value:08x}"


@contextlib.contextmanager
def claimed(out: Path, config: TrainConfig, data: Transitions, *, extend: bool = False) -> Iterator[None]:
    """Hold `out` as the folder of this run, new or resumed, and keep other processes from training there.

    Settings missing in an older run's record take their defaults.

    Args:
        extend: allow more updates than recorded. The networks of a stage with more updates are deleted: its checkpoint has them.

    Raises:
        ValueError: on entry, if `out` contains something else, or another process trains there.
    """
    record = new_record(config, data)
    _expect_own(out, record, extend)  # before anything is written there
    (out / LOCK).parent.mkdir(parents=True, exist_ok=True)
    busy = ValueError(f"{out}: expected a run that is not being trained, got one that is; wait for it, or stop it")
    with locks.locked(out / LOCK, busy):
        grown = _expect_own(out, record, extend)  # another process may have been faster
        if "rebrac" in grown:
            expect_own_policy(out)
        for part in grown:  # first, so that networks never have fewer updates than recorded
            for name in NETWORKS[part]:
                (out / f"{name}.safetensors").unlink(missing_ok=True)
        if grown or not (out / "config.yaml").is_file():
            write_text(out / "config.yaml", yaml.safe_dump(record, sort_keys=False, allow_unicode=True))
        yield


def expect_own_policy(out: Path) -> None:
    """ValueError if the folder's policy was trained elsewhere, which a training would replace."""
    path = out / "actor.safetensors"
    if not path.is_file():
        return
    notes: dict[str, float] = {}
    with contextlib.suppress(ValueError):  # a damaged one is replaced
        _, notes = load_module_and_notes(path)
    if ELSEWHERE in notes:
        raise ValueError(
            f"{out}: expected a run whose policy is trained here, got one that was trained elsewhere; train its models alone "
            "(--stages dynamics reward), or choose another folder"
        )


def new_record(config: TrainConfig, data: Transitions) -> dict[str, Any]:
    """The record of a run with these settings and data."""
    return {
        "settings": to_dict(config),
        "data": {
            **json.loads(json.dumps(asdict(data.info), default=float)),
            "transitions": len(data),
            "episodes": len(np.unique(data.episode)),
            "state_dim": data.state_dim,
            "action_dim": data.action_dim,
            "digest": digest(data),
        },
        "versions": {
            "jacrec": jacrec.__version__,
            "torch": str(torch.__version__),
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }


def _expect_own(out: Path, record: dict[str, Any], extend: bool) -> list[str]:
    """Check that `out` is new, empty or this run's folder; the stages with more updates than recorded there."""
    if not (out / "config.yaml").is_file():
        ours = {out / "config.yaml.part", out / "checkpoints", out / LOCK}  # all that a kill leaves before the record
        if out.exists() and (not out.is_dir() or not ours.issuperset([*out.iterdir(), *out.glob("checkpoints/*")])):
            raise ValueError(f"{out}: expected a new or empty folder or a run, got something else; choose another folder")
        return []
    other = read_record(out)
    changed = differences(to_dict(recorded_config(out, other)), record["settings"])
    grown = [name for name in PARTS if f"{name}.updates" in changed and operator.lt(*changed[f"{name}.updates"])]
    longer = {f"{name}.updates" for name in grown}
    found = [f"{k} = {a!r} in the run, {b!r} now" for k, (a, b) in changed.items() if not (extend and k in longer)]
    there, here = other["data"], record["data"]
    if there["digest"] != here["digest"]:
        found.append(f"data: {there['name']} ({there['digest']}) in the run, {here['name']} ({here['digest']}) now")
    if found:
        how = "train the run for longer (--extend)" if longer and changed.keys() == longer else "choose another folder"
        own = "--settings " if loadable(recorded_config(out, other), recorded_info(other)) else "those of "
        raise ValueError(
            f"{out}: expected a new folder or a run with the same settings, got another run: {'; '.join(found)}; "
            f"{how}, or resume with the run's own settings: {own}{out / 'config.yaml'}"
        )
    if grown and "rebrac" in grown and record["settings"]["dynamics"]["tilt"] > 0:
        raise ValueError(
            f"{out}: expected a world model that is not tilted (dynamics.tilt = 0) to train the policy for longer, got one "
            "tilted towards the policy as it was; train a new run"
        )
    return grown


def differences(there: Mapping[str, Any], here: Mapping[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """The entries of nested mappings that differ, as {"part.key": (value there, value here)}; None where there is none."""
    found = {}
    for key in dict.fromkeys([*there, *here]):
        a, b = there.get(key), here.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found |= differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found[f"{prefix}{key}"] = a, b
    return found
