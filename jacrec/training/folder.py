"""A run's folder: its record of settings and data, and the lock that allows one training process at a time."""

import json
import platform
import zlib
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

import jacrec
from jacrec.data.transitions import Transitions
from jacrec.training.config import TrainConfig, to_dict
from jacrec.util import locks
from jacrec.util.files import user_path, write_text


def read_record(path: Path) -> dict[str, Any]:
    """A run's config.yaml: {"settings", "data", "versions"}.

    Raises:
        FileNotFoundError: there is none.
    """
    file = user_path(path) / "config.yaml"
    if not file.is_file():
        raise FileNotFoundError(f"{path}: expected a run, got no config.yaml; train one with `jacrec train`")
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def digest(data: Transitions) -> str:
    """A checksum of everything that training reads."""
    value = 0
    for name in ("state", "action", "reward", "next_state", "next_action", "terminal", "has_next_action", "episode"):
        value = zlib.crc32(np.ascontiguousarray(getattr(data, name)).data, value)
    return f"{value:08x}"


def claim(out: Path, config: TrainConfig, data: Transitions) -> None:
    """Create `out` as this run's folder, or verify that it is. Settings missing in an older run's record take their defaults.

    Raises:
        ValueError: `out` contains something else.
    """
    record = {
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
    if (out / "config.yaml").is_file():
        other = read_record(out)
        differences = _differences(_with_defaults(other["settings"], to_dict(TrainConfig())), record["settings"])
        if other["data"]["digest"] != record["data"]["digest"]:
            differences.append(
                f"data: {other['data']['name']} ({other['data']['digest']}) in the run, "
                f"{data.info.name} ({record['data']['digest']}) now"
            )
        if differences:
            raise ValueError(
                f"{out}: expected a new folder or a run with the same settings, got another run: {'; '.join(differences)}; "
                f"choose another folder, or resume with the run's own settings: --settings {out / 'config.yaml'}"
            )
        return
    part = out / "config.yaml.part"  # all that a kill at this point leaves behind
    if out.exists() and (not out.is_dir() or any(path != part for path in out.iterdir())):
        raise ValueError(f"{out}: expected a new or empty folder or a run, got something else; choose another folder")
    write_text(out / "config.yaml", yaml.safe_dump(record, sort_keys=False, allow_unicode=True))


def _differences(recorded: dict, current: dict, prefix: str = "") -> list[str]:
    found = []
    for key in dict.fromkeys([*recorded, *current]):
        a, b = recorded.get(key), current.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += _differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key} = {a!r} in the run, {b!r} now")
    return found


def _with_defaults(settings: dict, defaults: dict) -> dict:
    """`settings`, with missing entries taken from `defaults`."""
    nested = {
        k: _with_defaults(v, defaults[k])
        for k, v in settings.items()
        if isinstance(v, dict) and isinstance(defaults.get(k), dict)
    }
    return defaults | settings | nested


def locked(out: Path) -> AbstractContextManager[None]:
    """Keep a second process from training in the folder.

    Raises:
        ValueError: on entry, if one does.
    """
    folder = out / "checkpoints"
    folder.mkdir(exist_ok=True)
    busy = ValueError(f"{out}: expected a run that is not being trained, got one that is; wait for it, or stop it")
    return locks.locked(folder / ".lock", busy)
