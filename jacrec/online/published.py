"""Published models: one folder per version, and a small file that names the latest version.

models/000003/dynamics.safetensors, reward.safetensors   a version is never modified
models/latest.json                                       {"version": 3}: replaced when the version is complete
models/refreshes.jsonl                                   one line per refresh, including rejected ones
models/alive                                             touched periodically by the refreshing process
models/notice.json                                       {"sentence": ...}: notice for the control loop to report
refresh.json                                             settings of the refreshing process
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from torch import nn

from jacrec.models.io import save_module
from jacrec.util.content import expect_content
from jacrec.util.files import append_json_line, read_json, read_json_lines, write_json

FOLDER, LATEST, LOG, ALIVE, NOTICE = "models", "latest.json", "refreshes.jsonl", "alive", "notice.json"
SETTINGS = "refresh.json"


class Latest(TypedDict):
    """The content of latest.json."""

    version: int


class Notice(TypedDict):
    """The content of notice.json."""

    sentence: str


class Verdict(TypedDict):
    """What is read of the verdict on a refreshed model (`jacrec.online.learn.Verdict`)."""

    part: str
    judged_by: str
    before: float
    after: float
    accepted: bool
    rmse: list[float]
    offline: list[float] | None


class RefreshLine(TypedDict):
    """A line of the log of refreshes."""

    transitions: int
    offline: bool
    verdicts: list[Verdict]
    version: int


def version_folder(folder: Path, version: int) -> Path:
    """The folder of a version."""
    return folder / FOLDER / f"{version:06d}"


def latest_version(folder: Path) -> int:
    """The latest complete version; 0 if there is none."""
    try:
        path = folder / FOLDER / LATEST
        return read_json(path, Latest, f"delete {folder / FOLDER}: refreshing then starts from the run's models")["version"]
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
        return read_json(folder / FOLDER / NOTICE, Notice, "delete it")["sentence"]
    except FileNotFoundError:
        return ""


def clear_notice(folder: Path) -> None:
    """Delete the notice."""
    (folder / FOLDER / NOTICE).unlink(missing_ok=True)


def log_refresh(folder: Path, line: dict[str, Any]) -> None:
    """Append a line to the log."""
    append_json_line(folder / FOLDER / LOG, line)


def read_refreshes(folder: Path) -> list[dict[str, Any]]:
    """The lines of the log.

    Raises:
        ValueError: the log is damaged.
    """
    path = folder / FOLDER / LOG
    lines = read_json_lines(path)
    for line in lines:
        expect_content(line, RefreshLine, path, "delete the file; its table is then empty")
    return lines
