"""Published models: one folder per version, and a small file that names the latest version.

models/000003/dynamics.safetensors, reward.safetensors   a version is never modified
models/latest.json                                       {"version": 3}: replaced when the version is complete
models/refreshes.jsonl                                   one line per refresh, including rejected ones
models/alive                                             touched periodically by the refreshing process
models/notice.json                                       {"sentence": ...}: notice for the control loop to report
refresh.json                                             settings of the refreshing process
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from jacrec.models.io import save_module
from jacrec.util.files import append_json_line, read_json_lines, write_json

FOLDER, LATEST, LOG, ALIVE, NOTICE = "models", "latest.json", "refreshes.jsonl", "alive", "notice.json"
SETTINGS = "refresh.json"


def version_folder(folder: Path, version: int) -> Path:
    """The folder of a version."""
    return folder / FOLDER / f"{version:06d}"


def latest_version(folder: Path) -> int:
    """The latest complete version; 0 if there is none."""
    try:
        return int(json.loads((folder / FOLDER / LATEST).read_text(encoding="utf-8"))["version"])
    except FileNotFoundError:
        return 0


def publish(folder: Path, version: int, parts: Mapping[str, nn.Module], keep: int) -> None:
    """Make `parts` the latest version, atomically, and delete versions older than the newest `keep`."""
    for name, module in parts.items():
        save_module(module, version_folder(folder, version) / f"{name}.safetensors")
    write_json(folder / FOLDER / LATEST, {"version": version})
    for old in range(version - keep, 0, -1):
        if not version_folder(folder, old).is_dir():
            break
        shutil.rmtree(version_folder(folder, old))


def write_notice(folder: Path, sentence: str) -> None:
    """Write a notice for the control loop to report, replacing an earlier one."""
    write_json(folder / FOLDER / NOTICE, {"sentence": sentence})


def read_notice(folder: Path) -> str:
    """The notice; empty if there is none."""
    try:
        return json.loads((folder / FOLDER / NOTICE).read_text(encoding="utf-8"))["sentence"]
    except FileNotFoundError:
        return ""


def clear_notice(folder: Path) -> None:
    """Delete the notice."""
    (folder / FOLDER / NOTICE).unlink(missing_ok=True)


def log_refresh(folder: Path, line: dict[str, Any]) -> None:
    """Append a line to the log."""
    append_json_line(folder / FOLDER / LOG, line)


def read_refreshes(folder: Path) -> list[dict[str, Any]]:
    """The lines of the log."""
    return read_json_lines(folder / FOLDER / LOG)
