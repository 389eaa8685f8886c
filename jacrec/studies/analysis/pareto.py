"""Gain against cost: the Pareto front, timed decisions, and the gain and cost of contestants relative to a reference."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from jacrec.evaluation.config import PlayConfig
from jacrec.evaluation.contestant import make_controller, open_env, with_dynamics, with_sampling
from jacrec.evaluation.episodes import PolicyController, play
from jacrec.evaluation.statistics import Estimate
from jacrec.studies.analysis.gains import Average, average_gain
from jacrec.studies.analysis.hierarchy import average_over_tasks
from jacrec.studies.analysis.read import Study, cell_folder
from jacrec.studies.config import DEFAULT_MODEL
from jacrec.training.run import Run, load_run, torch_threads

Name = TypeVar("Name")
WARM_UP = 30
"""untimed decisions at the start"""


@dataclass(frozen=True)
class Milliseconds:
    """Time per decision of a single environment, measured sequentially."""

    median: float
    low: float
    """20th percentile"""
    high: float
    """80th percentile"""


@dataclass(frozen=True)
class Share:
    """Gain and cost of a contestant relative to a reference contestant, the unit."""

    contestant: str
    gain: Estimate
    """average paired gain over base"""
    left: Estimate
    """average paired difference to the unit, in points"""
    of_gain: float | None
    """gain divided by the unit's gain, on the tasks played by both; None if the unit's gain is not significant"""
    beyond: Estimate | None
    """average paired difference between the gain and a given share of the unit's gain, in points; if positive, the contestant
    keeps more than that share; None if they share no training seed"""
    milliseconds: Milliseconds
    of_cost: float


def pareto_front(points: Mapping[Name, tuple[float, float]]) -> list[Name]:
    """The points (cost, gain) that no other point dominates, in order of cost."""
    found, best = [], -np.inf
    for name, (_, gain) in sorted(points.items(), key=lambda item: (item[1][0], -item[1][1])):
        if gain > best:
            found.append(name)
            best = gain
    return found


def decision_times(
    study: Study, contestants: Sequence[str], *, decisions: int = 200, turns: int = 3, threads: int | None = None
) -> dict[str, Milliseconds]:
    """Time per decision of a single environment, by contestant, measured on the study's first complete cell.

    All contestants get the same observations, recorded with the base policy in the run's environment. They take turns, so
    that fluctuations of the machine affect all of them. Contestants that rehearse or are tuned are omitted, since they have no controller
    of their own.

    Args:
        decisions: timed decisions per contestant and turn.
        threads: torch threads (default: torch's current setting).

    Raises:
        ValueError: no cell of the study contains all networks.
    """
    names = [c for c in contestants if c in study.config.contestants and not study.config.contestants[c].chooses]
    cell, run = _first_run(study, names)
    observations = _observations(run, decisions + WARM_UP, study.config.evaluation)
    with torch_threads(threads or torch.get_num_threads()):
        players = {}
        for name in names:
            spec = study.config.contestants[name]
            own = run if spec.model == DEFAULT_MODEL else with_dynamics(run, cell / "models" / spec.model)
            own = with_sampling(own, spec.dynamics)
            players[name] = make_controller(own, spec.controller, None)
        taken: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(turns):
            for name, player in players.items():
                player.new_episode()
                for i, observation in enumerate(observations):
                    started = time.perf_counter()
                    player.act(observation)
                    if i >= WARM_UP:
                        taken[name].append(1e3 * (time.perf_counter() - started))
    return {name: milliseconds(t) for name, t in taken.items()}


def milliseconds(taken: Sequence[float]) -> Milliseconds:
    """Percentiles of sequential decision times."""
    return Milliseconds(*(float(x) for x in np.percentile(taken, (50, 20, 80))))


def _first_run(study: Study, names: Sequence[str]):
    models = {study.config.contestants[c].model for c in names} - {DEFAULT_MODEL}
    for task in study.tasks:
        for seed in study.seeds:
            cell = cell_folder(study.path, task, seed)
            if all((cell / "models" / m / "dynamics.safetensors").is_file() for m in models):
                try:
                    return cell, load_run(cell / "run")
                except FileNotFoundError:
                    continue
    raise ValueError(
        f"{study.path}: expected a cell with a complete run and the models {sorted(models)}, got none; finish the study with "
        "`jacrec sweep`"
    )


def _observations(run: Run, count: int, evaluation: PlayConfig) -> list[np.ndarray]:
    """The first `count` states visited by the base policy."""
    limit, bounds = evaluation.max_episode_steps, evaluation.action_bounds
    config = PlayConfig(episodes=1, seed=0, max_episode_steps=limit, action_bounds=bounds)
    env, met = open_env(run, config, threads=1), []
    while len(met) < count:
        play(env, PolicyController(run.policy), [len(met)], watch=lambda state, *_: met.append(state[0].astype(np.float32)))
    return met[:count]


def shares(
    study: Study,
    unit: str,
    times: Mapping[str, Milliseconds],
    *,
    tasks: Sequence[str] | None = None,
    keep: float = 1.0,
    level: float = 0.95,
) -> list[Share]:
    """All contestants with a time and a gain relative to `unit`, in order of cost.

    Args:
        times: of the contestants (`decision_times`).
        tasks: tasks to average gains over (default: all with normalised scores).
        keep: the share of the unit's gain used for `Share.beyond`.

    Raises:
        ValueError: the unit has no gain or no time.
    """
    whole = average_gain(study, unit, tasks=tasks, level=level)
    if whole is None or unit not in times:
        raise ValueError(f"{unit}: expected a contestant with a paired gain and a decision time, got one without")
    found = []
    for name, ms in times.items():
        gain = average_gain(study, name, tasks=tasks, level=level)
        against = average_gain(study, name, unit, tasks=tasks, level=level)
        if gain is None:
            continue
        common = {g.task for g in gain.gains} & {g.task for g in whole.gains}
        ours, theirs = (average_over_tasks([g.runs for g in a.gains if g.task in common]).mean for a in (gain, whole))
        difference = against.estimate if against else gain.estimate
        share = ours / theirs if whole.estimate.low > 0 else None
        pairs = _beyond(gain, against, keep) if against else []
        beyond = average_over_tasks(pairs, level=level) if pairs else None
        found.append(Share(name, gain.estimate, difference, share, beyond, ms, ms.median / times[unit].median))
    return sorted(found, key=lambda s: s.milliseconds.median)


def _beyond(gain: Average, difference: Average, keep: float) -> list[list[np.ndarray]]:
    """Gain − keep · the unit's gain per episode, computed as (1 − keep) · gain + keep · difference, for the training seeds
    played by all three."""
    found = []
    for ours in gain.gains:
        theirs = next((g for g in difference.gains if g.task == ours.task), None)
        if theirs is None:
            continue
        both = dict(zip(theirs.seeds, theirs.runs, strict=True))
        pairs = [(a, both[seed]) for seed, a in zip(ours.seeds, ours.runs, strict=True) if seed in both]
        found.append([(1 - keep) * a + keep * b for a, b in pairs if len(a) == len(b)])
    return [runs for runs in found if runs]
