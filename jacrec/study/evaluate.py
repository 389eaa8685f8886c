"""Evaluation of a run: contestants on the same seeds, every number kept in evaluation.json."""

import json
import os
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from jacrec.controller import MPC
from jacrec.envs.batch import BatchedEnv
from jacrec.study.config import EvalConfig
from jacrec.study.episodes import EpisodeLog, PolicyController, play
from jacrec.study.probes import ThinkingProbe, jacobian_growth
from jacrec.study.versions import machine, versions
from jacrec.training.run import Run, load_run, torch_threads

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
    """Let the contestants play; the record, which is also in `out`/evaluation.json (`out` defaults to the run's folder).

    A contestant that has finished is not played again, so an interrupted evaluation goes on where it stopped. The same
    settings give the same returns.

    Args:
        again: discard what `out` holds and play everything.
        quiet: no progress display.

    Raises:
        ValueError: `out` holds an evaluation of other networks or with other settings; no environment is known; the
            environment's dimensions are not the policy's.
        FileNotFoundError: no trained run at that path.
    """
    run = run if isinstance(run, Run) else load_run(run)
    env_id = config.env_id or run.info.env_id
    if env_id is None:
        raise ValueError(f"{run.path}: expected data that names its environment, got none; give env_id, e.g. Hopper-v4")
    folder = Path(out) if out is not None else run.path
    env = BatchedEnv(env_id, config.rows or config.episodes, physics=config.physics)
    if (env.state_dim, env.action_dim) != (run.policy.state_dim, run.policy.action_dim):
        raise ValueError(
            f"{env_id}: expected states of {run.policy.state_dim} and actions of {run.policy.action_dim} numbers, as in the "
            f"run, got {env.state_dim} and {env.action_dim}; name the right environment with env_id"
        )
    fresh = _new_record(run, config, env)
    record = fresh if again else _previous(folder / FILE, fresh)
    columns = (TextColumn("{task.description:>9}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with torch_threads(config.threads), Progress(*columns, TimeRemainingColumn(), disable=quiet) as progress:
        for name in config.order:
            task = progress.add_task(name, total=1.0)
            if name not in record["contestants"]:
                began = time.perf_counter()
                played, growth = _contestant(name, run, config, env, lambda x, t=task: progress.update(t, completed=x))
                record["contestants"][name] = played | {"wall_seconds": time.perf_counter() - began}
                record["growth"] = growth or record["growth"]
                _write(folder / FILE, record)
            progress.update(task, completed=1.0)
    env.close()
    return record


def read_evaluation(folder: str | Path) -> dict[str, Any]:
    """The record that `evaluate` left in a folder.

    Raises:
        FileNotFoundError: none there.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        raise FileNotFoundError(f"no evaluation at {path}; make one with `jacrec eval {folder}`")
    return json.loads(path.read_text(encoding="utf-8"))


def _contestant(
    name: str, run: Run, config: EvalConfig, env: BatchedEnv, progress: Callable[[float], None]
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    if name == "base":
        visited = _Visited(config.probe_every)
        log = play(env, PolicyController(run.policy), config.seeds, watch=visited.watch, progress=progress)
        growth = jacobian_growth(run.policy, run.world, visited.states(GROWTH_STATES), horizon=config.growth_horizon,
                                 particles=4, seed=config.seed)  # fmt: skip
        return _as_dict(log, run), growth
    mpc = MPC(run.policy, run.world, config.controller(name), batch=env.n)
    probe = ThinkingProbe(run.policy, run.world, mpc, config.probe_every, config.probe_particles)
    log = play(env, mpc, config.seeds, before=probe.before, watch=probe.watch, progress=progress)
    return _as_dict(log, run) | {"controller": asdict(mpc.config), "thinking": probe.summary()}, None


def _as_dict(log: EpisodeLog, run: Run) -> dict[str, Any]:
    scores = run.info.score(log.returns)
    return asdict(log) | {"scores": None if scores is None else [float(s) for s in scores]}


class _Visited:
    """Some of the states that the base policy comes through."""

    def __init__(self, every: int):
        self.every, self.ticks = every, 0
        self.rows: list[np.ndarray] = []

    def watch(self, observation: np.ndarray, action: np.ndarray, step: np.ndarray, running: np.ndarray) -> None:
        if self.ticks % self.every == 0:
            self.rows.append(observation[running])
        self.ticks += 1

    def states(self, n: int) -> np.ndarray:
        """At most n of them, evenly spaced, (n, d)."""
        rows = np.concatenate(self.rows)
        return rows[np.unique(np.linspace(0, len(rows) - 1, n).astype(int))]


def _new_record(run: Run, config: EvalConfig, env: BatchedEnv) -> dict[str, Any]:
    return {
        "settings": asdict(config),
        "networks": {name: _digest(module) for name, module in _networks(run).items()},
        "environment": {"id": env.env_id, "engine": env.engine, "step_time": env.step_time,
                        "max_episode_steps": env.max_episode_steps, **env.physics},
        "versions": versions(),
        "machine": machine(),
        "growth": None,
        "contestants": {},
    }  # fmt: skip


def _networks(run: Run) -> dict[str, Any]:
    return {"actor": run.policy, "critic": run.world.critic, "dynamics": run.world.dynamics, "reward": run.world.reward}


def _digest(module: Any) -> str:
    """A checksum of a network's numbers."""
    value = 0
    for name, tensor in sorted(module.state_dict().items()):
        value = zlib.crc32(tensor.detach().cpu().contiguous().numpy().tobytes(), zlib.crc32(name.encode(), value))
    return f"{value:08x}"


def _previous(path: Path, fresh: dict[str, Any]) -> dict[str, Any]:
    """The record in `path` if it continues `fresh`, or `fresh` where there is none."""
    if not path.is_file():
        return fresh
    old = json.loads(path.read_text(encoding="utf-8"))
    ours = json.loads(json.dumps(fresh))
    differing = [f"{part}.{key}: {old[part].get(key)} there, {value} here" for part in ("settings", "networks")
                 for key, value in ours[part].items() if key != "contestants" and old[part].get(key) != value]  # fmt: skip
    if differing:
        raise ValueError(
            f"{path}: expected no evaluation or one with these settings, got one that differs in {'; '.join(differing)}. "
            "Write to another folder (--out), or replace it (--again)"
        )
    return old | {"settings": ours["settings"]}


def _write(path: Path, record: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(record), encoding="utf-8")
    os.replace(part, path)
