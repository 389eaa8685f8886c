"""Evaluation of a run: all contestants on the same seeds, recorded in evaluation.json."""

import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from jacrec.control.config import MPCConfig
from jacrec.envs.batch import BatchedEnv
from jacrec.evaluation.config import EvalConfig
from jacrec.evaluation.contestant import (
    digests,
    environment_record,
    expect_value_scale,
    open_env,
    play_contestant,
    with_sampling,
)
from jacrec.evaluation.probes import jacobian_growth
from jacrec.evaluation.records import only_one, read_evaluation_record, record_differences
from jacrec.evaluation.rehearsal import BASE, chosen_controller, make_rehearsal, read_rehearsal
from jacrec.evaluation.tuning import read_tuned
from jacrec.evaluation.versions import machine, versions
from jacrec.experimental.config import current_settings, read_mpc_config
from jacrec.models.dynamics.flow import without_solver
from jacrec.planners import PlannerConfig
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
    on_record: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Play all contestants and record the results in `out`/evaluation.json; the record.

    Finished contestants are not played again, so an interrupted evaluation is resumed. The same settings give the same
    returns. With `config.rehearse`, the rehearsal in `out`, else the run's, is read (or made first), and mpc plays with the chosen controller;
    with `config.tuned`, the tuning in `out` is read, and mpc and h0 play with its choices. Episodes of a contestant for which
    the base policy was chosen are copies of the base policy's.

    Args:
        out: folder of the record (default: the run's folder).
        again: discard an existing evaluation in `out`.
        quiet: show no progress.
        on_record: called with the record after each contestant.

    Raises:
        ValueError: `out` holds an evaluation or rehearsal of other networks or settings; the environment is unknown; its
            dimensions differ from the policy's; another process evaluates into `out`.
        FileNotFoundError: no trained run at that path.
    """
    run = run if isinstance(run, Run) else load_run(run)
    folder = user_path(out) if out is not None else run.path
    run = with_sampling(run, config.dynamics)
    expect_value_scale(run, [config.controller(name) for name in config.order if name != "base"])
    env = open_env(run, config)
    columns = (TextColumn("{task.description:>9}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    shown = Progress(*columns, TimeRemainingColumn(), disable=quiet)
    with contextlib.closing(env), only_one(folder, "evaluation"), torch_threads(config.threads), shown as progress:
        if not again:
            _expect_same_kind(run, config, folder / FILE)  # before anything is rehearsed
        rehearsal = _rehearsed(run, config, folder, progress) if config.rehearse else None
        tuning = read_tuned(run, folder, config, environment_record(env)) if config.tuned else None
        fresh = _new_record(run, config, env, rehearsal, tuning)
        record = fresh if again else _previous(folder / FILE, fresh)
        controllers = _controllers(played_config(config, record), tuning)
        for name in config.order:
            task = progress.add_task(name, total=1.0)
            if name not in record["contestants"]:
                began = time.perf_counter()
                if name in played_by_base(record):
                    played, growth = record["contestants"]["base"], None
                else:
                    update = partial(progress.update, task)
                    played, growth = _contestant(name, run, controllers[name], config, env, lambda x, u=update: u(completed=x))
                record["contestants"][name] = played | {"wall_seconds": time.perf_counter() - began}
                record["growth"] = growth or record["growth"]
                write_json(folder / FILE, record)
            progress.update(task, completed=1.0)
            if on_record is not None:
                on_record(record)
    return record


def read_evaluation(folder: str | Path, remedy: str = "make one with `jacrec eval`") -> dict[str, Any]:
    """The record that `evaluate` wrote to a folder; remedy: what to do where there is none.

    Raises:
        FileNotFoundError: no evaluation there.
        ValueError: it is damaged.
    """
    path = user_path(folder) / FILE
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: expected an evaluation, got no {FILE}; {remedy}")
    return read_evaluation_record(path)


def played_config(config: EvalConfig, record: dict[str, Any]) -> EvalConfig:
    """The settings that an evaluation was played with, including the controller chosen by its rehearsal or tuning, if any."""
    return replace(config, rehearse=False, tuned=False, mpc=read_mpc_config(record["settings"]["mpc"]))


def acts_as_base(record: dict[str, Any]) -> bool:
    """Whether the rehearsal or the tuning chose the base policy for contestant mpc."""
    return "mpc" in played_by_base(record)


def played_by_base(record: dict[str, Any]) -> set[str]:
    """The contestants for which rehearsal or tuning chose the base policy: their episodes are copies of its own."""
    tuned = {family for family, own in (record.get("tuning") or {}).items() if own["name"] == BASE}
    return tuned | ({"mpc"} if _choice(record) == BASE else set())


def _expect_same_kind(run: Run, config: EvalConfig, path: Path) -> None:
    """ValueError if the evaluation in `path` is one with rehearsal and this one is without, or the other way round."""
    if not path.is_file():
        return
    kinds = {True: "after a rehearsal", False: "without a rehearsal"}
    there = read_evaluation_record(path).get("rehearsal") is not None
    if there != config.rehearse:
        other = run.path / ("rehearsed" if config.rehearse else "plain")
        raise ValueError(
            f"{path}: expected an evaluation played {kinds[config.rehearse]}, got one played {kinds[there]}. Keep both by writing "
            f"to another folder (--out {other}), or replace it (--again)"
        )


def _rehearsed(run: Run, config: EvalConfig, folder: Path, progress: Progress) -> dict[str, Any]:
    """The rehearsal in the folder, else that of the run; if there is none, a default one is made."""
    found = read_rehearsal(run, folder, config) or read_rehearsal(run, run.path, config)
    if found is not None:
        return found
    task = progress.add_task("rehearsal", total=1.0)
    return make_rehearsal(run, folder, play=config, progress=lambda x: progress.update(task, completed=x))


def _controllers(config: EvalConfig, tuning: dict[str, Any] | None) -> dict[str, MPCConfig | PlannerConfig | None]:
    """The settings of every contestant, None for the base policy."""
    found = {name: None if name == "base" else config.controller(name) for name in config.order}
    tuned = {family: read_mpc_config(own["controller"]) for family, own in (tuning or {}).items()}
    return found | {name: own for name, own in tuned.items() if name in found}


def _contestant(
    name: str,
    run: Run,
    controller: MPCConfig | PlannerConfig | None,
    config: EvalConfig,
    env: BatchedEnv,
    progress: Callable[[float], None],
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    if name != "base":
        return play_contestant(run, controller, config, env, progress=progress), None
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


def _new_record(
    run: Run, config: EvalConfig, env: BatchedEnv, rehearsal: dict[str, Any] | None, tuning: dict[str, Any] | None
) -> dict[str, Any]:
    controller = config.mpc if rehearsal is None else chosen_controller(rehearsal) or config.mpc
    if tuning is not None and "mpc" in tuning:
        controller = read_mpc_config(tuning["mpc"]["controller"])
    return {
        "settings": asdict(config) | {"mpc": asdict(controller)},
        "rehearsal": rehearsal,
        "tuning": tuning,
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
    old = read_evaluation_record(path)
    ours = json.loads(json.dumps(fresh))
    # settings that did not exist when the old evaluation was played had their defaults
    defaults = json.loads(json.dumps(asdict(EvalConfig())))
    mpc = current_settings(old["settings"]["mpc"], f"{path}: mpc")
    sampler = without_solver(old["settings"].get("dynamics") or {}, f"{path}: dynamics")
    old["settings"] = defaults | old["settings"] | {"mpc": defaults["mpc"] | mpc, "dynamics": defaults["dynamics"] | sampler}
    different = record_differences(old, ours, ignored=("contestants",))
    if _choice(old) != _choice(ours):
        different.append(f"rehearsal.choice: {_choice(old)} there, {_choice(ours)} here")
    if (old.get("tuning") or None) != ours["tuning"]:
        different.append("tuning: another choice there")
    if different:
        raise ValueError(
            f"{path}: expected no evaluation or one with these settings, got one that differs in {'; '.join(different)}. "
            "Write to another folder (--out), or replace it (--again)"
        )
    return old | {"settings": ours["settings"], "rehearsal": ours["rehearsal"]}


def _choice(record: dict[str, Any]) -> str | None:
    return (record.get("rehearsal") or {}).get("choice")
