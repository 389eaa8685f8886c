"""Reading a study's folder: finished plays, and everything that is missing, failed or not comparable.

STUDY/study.yaml
STUDY/cells/<task>/seed-<s>/run/                    a run of `jacrec train`
STUDY/cells/<task>/seed-<s>/models/<model>/         additional world models of that run
STUDY/cells/<task>/seed-<s>/rehearsals/<contestant>.json
STUDY/cells/<task>/seed-<s>/plays/<contestant>.json
**/*.failed.json                                    {"error", "attempts", ...} of failed jobs
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NotRequired

import numpy as np

from jacrec.evaluation.records import Played, Rehearsed
from jacrec.studies.config import BASE, StudyConfig
from jacrec.studies.jobs import REMEDY
from jacrec.studies.spec import FILE, read_study_config
from jacrec.training.config import to_dict
from jacrec.training.run import PARTS
from jacrec.util.files import read_json, user_path

SHARED_NETWORKS = ("actor", "critic", "reward")  # of all contestants of a cell


class StudyPlay(Played):
    """What is read of plays/<contestant>.json."""

    environment: dict[str, Any] | None
    settings: dict[str, Any]
    choice: NotRequired[str | None]


@dataclass(frozen=True)
class Play:
    """Episodes of one contestant with one training seed on one task."""

    task: str
    seed: int
    contestant: str
    record: dict[str, Any]
    """plays/<contestant>.json"""

    @property
    def scored(self) -> bool:
        """Whether the task has reference returns and therefore normalised scores."""
        return self.record.get("scores") is not None

    def values(self, key: str) -> dict[int, float]:
        """`key` ("scores" or "returns") by environment seed."""
        return {int(s): float(v) for s, v in zip(self.record["seeds"], self.record[key], strict=True)}

    @property
    def milliseconds(self) -> float:
        """The controller's time per decision."""
        median = self.record.get("decisions_per_second")
        return 1000 / median if median else 1000 * self.record["seconds"] / max(self.record["decisions"], 1)


@dataclass(frozen=True)
class Gap:
    """A result of the study that is missing, failed or not comparable."""

    task: str
    seed: int
    what: str
    """ "run", "model NAME", "rehearsal NAME" or "play NAME" """
    state: str
    """ "failed", "missing" or "not comparable" """
    reason: str = ""


@dataclass(frozen=True, eq=False)
class Study:
    """A study as read from its folder."""

    path: Path
    config: StudyConfig
    """study.yaml"""
    plays: dict[tuple[str, int, str], Play]
    """the comparable plays, by (task, seed, contestant)"""
    gaps: list[Gap]
    """everything else"""
    rehearsals: dict[tuple[str, int, str], dict[str, Any]] = field(default_factory=dict)
    """rehearsals/<contestant>.json by (task, seed, contestant), only of the networks that played"""

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks, in order of study.yaml."""
        return list(self.config.tasks)

    @property
    def seeds(self) -> tuple[int, ...]:
        """Training seeds."""
        return self.config.seeds

    @property
    def contestants(self) -> list[str]:
        """Base first, then as in study.yaml; empty if the study only trains models."""
        return list(self.config.players)

    def cell(self, task: str, seed: int) -> Path:
        """The folder of a task and a training seed."""
        return cell_folder(self.path, task, seed)

    def of(self, task: str, contestant: str) -> dict[int, Play]:
        """The contestant's plays on a task by training seed."""
        found = ((s, self.plays.get((task, s, contestant))) for s in self.seeds)
        return {s: play for s, play in found if play is not None}

    def unit(self, task: str) -> str:
        """ "score" if every play of the task has a normalised score, else "return"."""
        plays = [p for (t, _, _), p in self.plays.items() if t == task]
        return "score" if plays and all(p.scored for p in plays) else "return"

    def runs(self, task: str, contestant: str) -> dict[int, np.ndarray]:
        """Episodes by training seed, in the task's unit."""
        return {s: np.array(list(p.values(self.unit(task) + "s").values())) for s, p in self.of(task, contestant).items()}

    @property
    def scored_tasks(self) -> list[str]:
        """Tasks with normalised scores, over which averages are taken."""
        return [task for task in self.tasks if self.unit(task) == "score"]


def is_study(path: str | Path) -> bool:
    """Whether a folder is the folder of a study."""
    return (user_path(path) / FILE).is_file()


def read_study(path: str | Path) -> Study:
    """Read the study in a folder.

    Raises:
        FileNotFoundError: no study.yaml there.
        ValueError: study.yaml is invalid.
    """
    path = user_path(path)
    study = Study(path, read_study_config(path), {}, [])
    for task in study.tasks:
        for seed in study.seeds:
            _read_cell(study, task, seed)
    return study


def cell_folder(study: Path, task: str, seed: int) -> Path:
    """STUDY/cells/<task>/seed-<s>."""
    return study / "cells" / task / f"seed-{seed}"


def is_trained(run: Path, stage: str) -> bool:
    """Whether a stage of a run has finished, i.e. its networks exist."""
    return all((run / f"{part}.safetensors").is_file() for part, own in PARTS.items() if own == stage)


def _read_cell(study: Study, task: str, seed: int) -> None:
    folder = study.cell(task, seed)
    gaps, plays = study.gaps, study.plays
    for file in sorted([*folder.glob("*.failed.json"), *folder.glob("models/**/*.failed.json")]):
        name = file.name.removesuffix(".failed.json")
        gaps.append(Gap(task, seed, "run" if file.parent == folder else f"model {name}", *_failure(file)))
    trained = {"run": (folder / "run", study.config.stages)}
    trained |= {f"model {name}": (folder / "models" / name, ("dynamics",)) for name in study.config.models}
    known = {(g.task, g.seed, g.what) for g in gaps}
    for what, (run, stages) in trained.items():
        absent = [stage for stage in stages if not is_trained(run, stage)]
        if absent and (task, seed, what) not in known:
            gaps.append(Gap(task, seed, what, "missing", f"not trained yet: {', '.join(absent)}"))
    for name in study.contestants:
        file = folder / "plays" / f"{name}.json"
        failed = folder / "plays" / f"{name}.failed.json"
        if file.is_file():
            play = _read_play(file, task, seed, name)
            if isinstance(play, Gap):
                gaps.append(play)
            else:
                plays[task, seed, name] = play
        elif failed.is_file():
            gaps.append(Gap(task, seed, f"play {name}", *_failure(failed)))
        else:
            gaps.append(Gap(task, seed, f"play {name}", "missing", "not played yet"))
    base = plays.get((task, seed, BASE))
    _read_rehearsals(study, task, seed, base)
    for name in study.contestants[1:]:
        play = plays.get((task, seed, name))
        difference = _difference(study, base, play) if base and play else ""
        if difference:
            gaps.append(Gap(task, seed, f"play {name}", "not comparable", difference))
            del plays[task, seed, name]


def _read_rehearsals(study: Study, task: str, seed: int, base: Play | None) -> None:
    folder, rehearse = study.cell(task, seed) / "rehearsals", [c for c, own in study.config.contestants.items() if own.rehearse]
    for name in rehearse:
        file, failed = folder / f"{name}.json", folder / f"{name}.failed.json"
        if file.is_file():
            try:
                record = read_json(file, Rehearsed, REMEDY)
            except ValueError as error:
                study.gaps.append(Gap(task, seed, f"rehearsal {name}", "failed", f"{file.name} cannot be read: {error}"))
                continue
            if base is not None and record["networks"] != base.record["networks"]:
                reason = "rehearsed with other networks than the base policy played with"
                study.gaps.append(Gap(task, seed, f"rehearsal {name}", "not comparable", reason))
                continue
            study.rehearsals[task, seed, name] = record
        elif failed.is_file():
            study.gaps.append(Gap(task, seed, f"rehearsal {name}", *_failure(failed)))


def _failure(file: Path) -> tuple[str, str]:
    try:
        content = read_json(file, dict, REMEDY)
    except ValueError:
        return "failed", f"{file.name} cannot be read"
    attempts = content.get("attempts")
    error = str(content.get("error") or "no message").strip().splitlines()[0]
    return "failed", error + (f" ({attempts} attempts)" if attempts and attempts != 1 else "")


def _read_play(file: Path, task: str, seed: int, name: str) -> Play | Gap:
    try:
        record = read_json(file, StudyPlay, REMEDY)
    except ValueError as error:
        return Gap(task, seed, f"play {name}", "failed", f"{file.name} cannot be read: {error}")
    returns, seeds = record["returns"], record["seeds"]
    if not returns or len(returns) != len(seeds) or not all(math.isfinite(r) for r in returns):
        return Gap(task, seed, f"play {name}", "failed", f"expected one finite return per seed, got {len(returns)} returns")
    return Play(task, seed, name, record)


def _difference(study: Study, base: Play, play: Play) -> str:
    """Why a play cannot be compared with the base policy's; empty if it can."""
    ours, theirs = play.record, base.record
    found = [
        f"{name} network"
        for name in SHARED_NETWORKS
        if (ours.get("networks") or {}).get(name) != (theirs.get("networks") or {}).get(name)
    ]
    found += ["environment"] if ours.get("environment") != theirs.get("environment") else []
    found += ["reference returns"] if (ours.get("scores") is None) != (theirs.get("scores") is None) else []
    found += ["environment seeds"] if not set(ours["seeds"]) & set(theirs["seeds"]) else []
    if found:
        return f"{', '.join(found)} different from the base policy's"
    if study.config.contestants[play.contestant].tune:
        return ""
    candidates = study.config.contestants[play.contestant].rehearse
    who = str(ours.get("choice")) if candidates else play.contestant
    if candidates and who not in (BASE, *candidates):
        return f"chose {who!r}, which is not a candidate in study.yaml"
    if who == BASE:
        return ""
    defined, played = to_dict(study.config.controller(play.task, who)), ours["controller"]
    changed = [k for k in defined if k in played and defined[k] != played[k]]
    return f"played with settings different from study.yaml's: {', '.join(changed)}" if changed else ""
