"""Evaluation of a run: all contestants on the same seeds, recorded in evaluation.json."""

import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from jacrec.envs.batch import BatchedEnv
from jacrec.evaluation.config import EvalConfig
from jacrec.evaluation.contestant import digests, environment_record, open_env, play_contestant, with_sampling
from jacrec.evaluation.probes import jacobian_growth
from jacrec.evaluation.records import record_differences
from jacrec.evaluation.rehearsal import BASE, chosen_controller, make_rehearsal, read_rehearsal
from jacrec.evaluation.versions import machine, versions
from jacrec.experimental.config import current_settings, read_mpc_config
from jacrec.models.dynamics.flow import without_solver
from jacrec.training.run import Run, load_run, torch_threads
from jacrec.util.files import user_path, write_json

FILE = "evaluation.json"
GROWTH_STATES = 64


def evaluate(
    run: Run | str | Path,
    config: EvalConfig,
    *,
    out: str | Path | None = None,
    again: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Play all contestants and record the results in `out`/evaluation.json; the record.

    Finished contestants are not played again, so an interrupted evaluation is resumed. The same settings give the same
    returns. With `config.rehearse`, the rehearsal in `out` is read (or made first), and mpc plays with the chosen controller;
    if the rehearsal chose the base policy, mpc's episodes are copies of the base policy's.

    Args:
        out: folder of the record (default: the run's folder).
        again: discard an existing evaluation in `out`.
        quiet: show no progress.

    Raises:
        ValueError: `out` holds an evaluation or rehearsal of other networks or settings; the environment is unknown; its
            dimensions differ from the policy's.
        FileNotFoundError: no trained run at that path.
    """
    run = run if isinstance(run, Run) else load_run(run)
    folder = user_path(out) if out is not None else run.path
    run = with_sampling(run, config.dynamics)
    env = open_env(run, config)
    columns = (TextColumn("{task.description:>9}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    shown = Progress(*columns, TimeRemainingColumn(), disable=quiet)
    with contextlib.closing(env), torch_threads(config.threads), shown as progress:
        rehearsal = _rehearsed(run, config, folder, progress) if config.rehearse else None
        fresh = _new_record(run, config, env, rehearsal)
        record = fresh if again else _previous(folder / FILE, fresh)
        config = played_config(config, record)
        for name in config.order:
            task = progress.add_task(name, total=1.0)
            if name not in record["contestants"]:
                began = time.perf_counter()
                if name == "mpc" and rehearsal is not None and rehearsal["choice"] == BASE:
                    played, growth = record["contestants"]["base"], None
                else:
                    played, growth = _contestant(name, run, config, env, lambda x, t=task: progress.update(t, completed=x))
                record["contestants"][name] = played | {"wall_seconds": time.perf_counter() - began}
                record["growth"] = growth or record["growth"]
                write_json(folder / FILE, record)
            progress.update(task, completed=1.0)
    return record


def read_evaluation(folder: str | Path) -> dict[str, Any]:
    """The record that `evaluate` wrote to a folder.

    Raises:
        FileNotFoundError: no evaluation there.
    """
    path = user_path(folder) / FILE
    if not path.is_file():
        raise FileNotFoundError(f"no evaluation at {path}; make one with `jacrec eval {folder}`")
    return json.loads(path.read_text(encoding="utf-8"))


def played_config(config: EvalConfig, record: dict[str, Any]) -> EvalConfig:
    """The settings that an evaluation was played with, including the controller chosen by its rehearsal, if any."""
    return replace(config, rehearse=False, mpc=read_mpc_config(record["settings"]["mpc"]))


def acts_as_base(record: dict[str, Any]) -> bool:
    """Whether the rehearsal chose the base policy, so that contestant mpc acts as the base policy."""
    return _choice(record) == BASE


def _rehearsed(run: Run, config: EvalConfig, folder: Path, progress: Progress) -> dict[str, Any]:
    """The rehearsal in the folder; if there is none, a default one is made."""
    found = read_rehearsal(run, folder, config)
    if found is not None:
        return found
    task = progress.add_task("rehearsal", total=1.0)
    return make_rehearsal(run, folder, play=config, progress=lambda x: progress.update(task, completed=x))


def _contestant(
    name: str, run: Run, config: EvalConfig, env: BatchedEnv, progress: Callable[[float], None]
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    if name != "base":
        return play_contestant(run, config.controller(name), config, env, progress=progress), None
    visited = _StateRecorder(config.probe_every)
    played = play_contestant(run, None, config, env, watch=visited.watch, progress=progress)
    growth = jacobian_growth(
        run.policy, run.world, visited.states(GROWTH_STATES), horizon=config.growth_horizon, particles=4, seed=config.seed
    )
    return played, growth


class _StateRecorder:
    """Records some of the states visited."""

    def __init__(self, every: int):
        self.every, self.ticks = every, 0
        self.rows: list[np.ndarray] = []

    def watch(self, observation: np.ndarray, action: np.ndarray, step: np.ndarray, running: np.ndarray) -> None:
        if self.ticks % self.every == 0:
            self.rows.append(observation[running])
        self.ticks += 1

    def states(self, n: int) -> np.ndarray:
        """At most n recorded states, evenly spaced, (n, d)."""
        rows = np.concatenate(self.rows)
        return rows[np.unique(np.linspace(0, len(rows) - 1, n).astype(int))]


def _new_record(run: Run, config: EvalConfig, env: BatchedEnv, rehearsal: dict[str, Any] | None) -> dict[str, Any]:
    controller = config.mpc if rehearsal is None else chosen_controller(rehearsal) or config.mpc
    return {
        "settings": asdict(config) | {"mpc": asdict(controller)},
        "rehearsal": rehearsal,
        "networks": digests(run),
        "environment": environment_record(env),
        "versions": versions(),
        "machine": machine(),
        "growth": None,
        "contestants": {},
    }


def _previous(path: Path, fresh: dict[str, Any]) -> dict[str, Any]:
    """The record in `path`, to be continued with the settings of `fresh`; `fresh` if there is none."""
    if not path.is_file():
        return fresh
    old = json.loads(path.read_text(encoding="utf-8"))
    ours = json.loads(json.dumps(fresh))
    # settings that did not exist when the old evaluation was played had their defaults
    defaults = json.loads(json.dumps(asdict(EvalConfig())))
    mpc = current_settings(old["settings"]["mpc"], f"{path}: mpc")
    sampler = without_solver(old["settings"].get("dynamics") or {}, f"{path}: dynamics")
    old["settings"] = defaults | old["settings"] | {"mpc": defaults["mpc"] | mpc, "dynamics": defaults["dynamics"] | sampler}
    different = record_differences(old, ours, ignored=("contestants",))
    if _choice(old) != _choice(ours):
        different.append(f"rehearsal.choice: {_choice(old)} there, {_choice(ours)} here")
    if different:
        raise ValueError(
            f"{path}: expected no evaluation or one with these settings, got one that differs in {'; '.join(different)}. "
            "Write to another folder (--out), or replace it (--again)"
        )
    return old | {"settings": ours["settings"], "rehearsal": ours["rehearsal"]}


def _choice(record: dict[str, Any]) -> str | None:
    return (record.get("rehearsal") or {}).get("choice")
