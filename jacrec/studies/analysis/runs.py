"""Model errors of a study's runs on held-out transitions over training, and the data of the runs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jacrec.studies.analysis.read import Study, is_trained
from jacrec.studies.config import DEFAULT_MODEL
from jacrec.training.folder import read_record
from jacrec.training.loop import read_metrics

KEYS = {"dynamics": ("one_step_rmse", "still_rmse"), "reward": ("reward_rmse", "reward_std")}
"""stage -> keys of the error and of the reference error without a model"""


@dataclass(frozen=True)
class Curve:
    """The error of one model on held-out transitions over training."""

    task: str
    seed: int
    model: str
    updates: list[int]
    rmse: list[float]
    se: list[float]
    """standard errors over the transitions"""
    reference: list[float]
    """error of s' = s, or standard deviation of the rewards"""
    transitions: int
    state_dim: int


def run_curve(run: Path, stage: str, *, task: str = "", seed: int = 0, model: str = DEFAULT_MODEL) -> Curve | None:
    """The error of stage "dynamics" or "reward" over a run's training; None if none was logged."""
    key, reference = KEYS[stage]
    # a resumed run may have logged an update twice: the later line is valid
    metrics = read_metrics(run / "metrics.jsonl")
    lines = {line["update"]: line for line in metrics if line.get("stage") == stage and key in line}
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
    """The curves of all finished trainings of a study, including additional world models."""
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
    """config.yaml of a run; {} if there is none.

    Raises:
        ValueError: it is damaged.
    """
    return read_record(run) if (run / "config.yaml").is_file() else {}


def data_of(study: Study, task: str) -> dict[str, Any]:
    """The data that a task's runs were trained on, from the first run found; only "path", from study.yaml, if there is none."""
    for seed in study.seeds:
        record = run_record(study.cell(task, seed) / "run")
        if record:
            return record["data"] | {"path": record["settings"]["data"]}
    return {"path": study.config.tasks[task].training.data}
