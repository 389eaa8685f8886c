"""Published models: every version a folder of its own, and one small file that says which is the latest.

models/000003/dynamics.safetensors, reward.safetensors   a version is never changed
models/latest.json                                       {"version": 3}: replaced when the version is complete
models/refreshes.jsonl                                   one line per refresh, refused ones too
models/alive                                             touched by the refreshing process while it lives
models/notice.json                                       {"sentence": ...}: what the control loop is to say for it
refresh.json                                             its settings
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from jacrec.models.io import save_module
from jacrec.util.files import write_json

FOLDER, LATEST, LOG, ALIVE, NOTICE = "models", "latest.json", "refreshes.jsonl", "alive", "notice.json"
SETTINGS = "refresh.json"


def version_folder(folder: Path, version: int) -> Path:
    """Where a version's files are."""
    return folder / FOLDER / f"{version:06d}"


def latest_version(folder: Path) -> int:
    """The latest complete version; 0: none, the run's own models."""
    try:
        return int(json.loads((folder / FOLDER / LATEST).read_text(encoding="utf-8"))["version"])
    except FileNotFoundError:
        return 0


def publish(folder: Path, version: int, parts: Mapping[str, nn.Module], keep: int) -> None:
    """Make `parts` the latest version; a kill at any moment leaves the version before it or this one."""
    for name, module in parts.items():
        save_module(module, version_folder(folder, version) / f"{name}.safetensors")
    write_json(folder / FOLDER / LATEST, {"version": version})
    for old in range(version - keep, 0, -1):
        if not version_folder(folder, old).is_dir():
            break
        shutil.rmtree(version_folder(folder, old))


def leave_notice(folder: Path, sentence: str) -> None:
    """Have the control loop say this, in place of what was left there before."""
    write_json(folder / FOLDER / NOTICE, {"sentence": sentence})


def read_notice(folder: Path) -> str:
    """The sentence left there; empty: none."""
    try:
        return json.loads((folder / FOLDER / NOTICE).read_text(encoding="utf-8"))["sentence"]
    except FileNotFoundError:
        return ""


def forget_notice(folder: Path) -> None:
    """Take away what was left there."""
    (folder / FOLDER / NOTICE).unlink(missing_ok=True)


def log_refresh(folder: Path, line: dict[str, Any]) -> None:
    """Append a line to the log; one that was cut short before it is closed, so as not to take this one along."""
    path = folder / FOLDER / LOG
    torn = path.is_file() and not path.read_bytes().endswith(b"\n")
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" * torn + json.dumps(line) + "\n")


def refreshes(folder: Path) -> list[dict[str, Any]]:
    """The log's lines; one cut short by a kill is left out."""
    path, lines = folder / FOLDER / LOG, []
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines
