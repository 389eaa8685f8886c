"""Synthetic study folders, written without training or playing anything."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import yaml

from jacrec.evaluation.rehearsal import BASE, ImaginedEpisodes, Rehearsal
from jacrec.studies.spec import read_spec
from jacrec.training.run import PARTS, STAGES

REFERENCE = (0.0, 1000.0)
VERSIONS = {"python": "3.11", "jacrec": "0.0", "torch": "2.0"}
MACHINE = {"system": "Linux test", "cores": 2}
ENVIRONMENT = {"id": "Hopper-v4", "engine": "mujoco", "step_time": 0.01, "max_episode_steps": 1000}
CONTESTANTS = {
    "h0": {"horizon": 0, "particles": 1},
    "mpc": {"horizon": 3},
    "h1": {"horizon": 1},
    "slow": {"horizon": 3, "lr": 1e-5},
    "plain": {"horizon": 3, "model": "deterministic"},
}

GAIN = {"base": 0.0, "h0": 1.0, "mpc": 4.0, "h1": 2.0, "slow": -3.0, "plain": 3.0}
TASKS = ("hopper-medium", "halfcheetah-medium-replay")
REHEARSING = {
    "h0": {"horizon": 0},
    "h0-fast": {"horizon": 0, "lr": 1e-3},
    "h3": {"horizon": 3},
    "h8": {"horizon": 8},
    "mpc": {"rehearse": ["h3", "h8"]},
    "h0-rehearsed": {"rehearse": ["h0", "h0-fast"]},
}
REAL = {"base": 0.0, "h0": 1.0, "h0-fast": 0.0, "h3": 5.0, "h8": -4.0}
IMAGINED = {"h3": 20.0, "h8": -30.0, "h0": 10.0, "h0-fast": 1.0}


def constant_gains(task: str, seed: int, contestant: str) -> float:
    """Scores that differ between tasks and seeds, with the same gains everywhere."""
    return 40.0 + 3 * (seed - 10) + 7 * task.startswith("half") + GAIN[contestant]


def write_study(
    path: Path, tasks=("hopper-medium", "halfcheetah-medium-replay"), seeds=(10, 11), contestants=None, data="{task}.hdf5"
) -> Path:
    """Write study.yaml only."""
    contestants = CONTESTANTS if contestants is None else contestants
    path.mkdir(parents=True, exist_ok=True)
    spec = {
        "name": "synthetic",
        "tasks": {task: {"data": data} for task in tasks},
        "seeds": list(seeds),
        "training": {"dynamics": {"steps": 5}},
        "models": {"deterministic": {"dynamics": {"kind": "deterministic"}}},
        "contestants": contestants,
    }
    (path / "study.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    return path


def fill(path: Path, score, *, episodes: int = 4, scored: bool = True, noise: float = 0.0) -> Path:
    """Write runs and plays of every cell of a study; score(task, seed, contestant) is the mean over episodes."""
    spec = yaml.safe_load((path / "study.yaml").read_text())
    rng = np.random.default_rng(0)
    for task in spec["tasks"]:
        for seed in spec["seeds"]:
            cell = path / "cells" / task / f"seed-{seed}"
            write_run(cell / "run", task)
            for model in spec.get("models", {}):
                write_run(cell / "models" / model, task, stages=("dynamics",))
            for name in ["base", *spec["contestants"]]:
                scores = score(task, seed, name) + noise * rng.normal(size=episodes)
                write_play(path, task, seed, name, scores, scored=scored)
    return path


def write_play(path: Path, task: str, seed: int, name: str, scores, *, scored: bool = True, **changes) -> None:
    """Write plays/<name>.json with the given scores; pass `choice` for a contestant that rehearses."""
    study = read_spec(path / "study.yaml")
    low, high = REFERENCE
    model, controller = study.model_of(name), study.controller(task, changes.get("choice", name))
    scores = [float(s) for s in scores]
    record = {
        "task": task,
        "seed": seed,
        "contestant": name,
        "settings": {"episodes": len(scores), "rows": None},
        "controller": controller and asdict(controller),
        "model": model,
        "networks": {"actor": f"a{seed}", "critic": f"c{seed}", "reward": f"r{seed}", "dynamics": f"d{seed}{model}"},
        "seeds": [42000 + i for i in range(len(scores))],
        "returns": [low + s / 100 * (high - low) for s in scores],
        "scores": scores if scored else None,
        "lengths": [1000] * len(scores),
        "terminated": [False] * len(scores),
        "decisions": 1000 * len(scores),
        "seconds": 0.1 if name == "base" else 2.0,
        "wall_seconds": 3.0,
        "thinking": None,
        "environment": ENVIRONMENT,
        "versions": VERSIONS,
        "machine": MACHINE,
        "ref_min": low,
        "ref_max": high,
    }
    folder = path / "cells" / task / f"seed-{seed}" / "plays"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(record | changes))


def write_rehearsal(path: Path, task: str, seed: int, name: str, gains: dict[str, float], **changes) -> str:
    """Write rehearsals/<name>.json with these gains over a base policy's imagined return of 100; the choice."""
    settings = read_spec(path / "study.yaml").rehearsal
    returns = {BASE: 100.0} | {candidate: 100.0 + gain for candidate, gain in gains.items()}
    imagined = {who: ImaginedEpisodes([r - 1, r + 1], [400, 400], 0) for who, r in returns.items()}
    rehearsal = Rehearsal(settings, imagined, True)
    own = {"actor": f"a{seed}", "critic": f"c{seed}", "reward": f"r{seed}", "dynamics": f"d{seed}default"}
    record = {"task": task, "seed": seed, "contestant": name, "networks": own} | rehearsal.record() | changes
    folder = path / "cells" / task / f"seed-{seed}" / "rehearsals"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(record))
    return rehearsal.choice


def write_rehearsed(path, real=lambda task, seed, name: REAL[name], imagined=lambda task, seed, name: IMAGINED[name]):
    """Write a finished study whose rehearsals imagine the given gains and choose by the regular rule."""
    write_study(path, TASKS, contestants=REHEARSING)
    for task in TASKS:
        for seed in (10, 11):
            for name in REAL:
                write_play(path, task, seed, name, 40.0 + seed + real(task, seed, name) + np.zeros(4))
            for name in ("mpc", "h0-rehearsed"):
                gains = {c: imagined(task, seed, c) for c in REHEARSING[name]["rehearse"]}
                choice = write_rehearsal(path, task, seed, name, gains)
                write_play(path, task, seed, name, 40.0 + seed + real(task, seed, choice) + np.zeros(4), choice=choice)
    return path


def write_failure(file: Path, error: str, attempts: int = 1) -> None:
    """Write a *.failed.json."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"error": error, "traceback": "...", "attempts": attempts}))


def write_run(folder: Path, task: str, stages=STAGES) -> None:
    """Write config.yaml and metrics.jsonl of a run whose errors decrease as 1/update, and empty files in place of networks."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, stage in PARTS.items():
        if stage in stages:
            (folder / f"{part}.safetensors").touch()
    record = {
        "settings": {"data": f"{task}.hdf5"},
        "data": {"name": task, "state_dim": 4, "transitions": 200, "episodes": 5, "digest": "0", "source": "numbers"},
        "versions": VERSIONS,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(record))
    lines = [
        json.dumps({"stage": stage, "update": u, "seconds": 1.0, "held_out_transitions": 1000, **_errors(stage, u)})
        for stage in stages
        if stage != "rebrac"
        for u in (20_000, 40_000, 60_000)
    ]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")


def _errors(stage: str, update: int) -> dict[str, float]:
    key, reference = {"dynamics": ("one_step_rmse", "still_rmse"), "reward": ("reward_rmse", "reward_std")}[stage]
    return {key: 1e4 / update, f"{key}_se": 100 / update, reference: 0.9}
