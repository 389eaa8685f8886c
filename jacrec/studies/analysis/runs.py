"""What the runs of a study say about their models: errors on held-out transitions, now and over training."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from jacrec.evaluation.report import read_metrics
from jacrec.studies.analysis.read import Study, is_trained
from jacrec.studies.config import DEFAULT_MODEL

KEYS = {"dynamics": ("one_step_rmse", "still_rmse"), "reward": ("reward_rmse", "reward_std")}
"""stage -> the error, and what an error without a model would be"""


@dataclass(frozen=True)
class Curve:
    """An error on held-out transitions over one model's training."""

    task: str
    seed: int
    model: str
    updates: list[int]
    rmse: list[float]
    se: list[float]
    """standard errors over the transitions"""
    reference: list[float]
    """of s' = s, or the rewards' own spread"""
    transitions: int
    state_dim: int


def run_curve(run: Path, stage: str, *, task: str = "", seed: int = 0, model: str = DEFAULT_MODEL) -> Curve | None:
    """The error of "dynamics" or "reward" over a run's training; None where none was logged."""
    key, reference = KEYS[stage]
    # a run that was continued may have logged an update twice: the later line holds
    lines = {line["update"]: line for line in read_metrics(run) if line.get("stage") == stage and key in line}
    if not lines:
        return None
    points = [lines[update] for update in sorted(lines)]
    return Curve(
        task,
        seed,
        model,
        [p["update"] for p in points],
        [p[key] for p in points],
        [p.get(f"{key}_se", 0.0) for p in points],
        [p.get(reference, float("nan")) for p in points],
        int(points[-1].get("held_out_transitions", 0)),
        int((run_record(run).get("data") or {}).get("state_dim", 0)),
    )


def curves(study: Study, stage: str) -> list[Curve]:
    """All of a study's finished trainings, further world models included."""
    found = []
    for task in study.tasks:
        for seed in study.seeds:
            cell = study.cell(task, seed)
            runs = {DEFAULT_MODEL: cell / "run"}
            if stage == "dynamics":
                runs |= {name: cell / "models" / name for name in study.config.models}
            finished = {name: path for name, path in runs.items() if is_trained(path, stage)}
            found += [run_curve(path, stage, task=task, seed=seed, model=name) for name, path in finished.items()]
    return [c for c in found if c is not None]


def run_record(run: Path) -> dict[str, Any]:
    """config.yaml of a run, {} without one."""
    file = run / "config.yaml"
    return yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}


def data_of(study: Study, task: str) -> dict[str, Any]:
    """What a task's runs were trained on, from the first run there is; the name in study.yaml alone without one."""
    for seed in study.seeds:
        record = run_record(study.cell(task, seed) / "run")
        if record:
            return record["data"] | {"path": record["settings"]["data"]}
    return {"path": study.config.tasks[task].training.data}
