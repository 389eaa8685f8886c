"""Gain against cost: who is on the front, and what share of one contestant's gain is left for what share of its cost."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from jacrec.evaluation.config import PlayConfig
from jacrec.evaluation.contestant import make_controller, open_env, with_dynamics, with_settings
from jacrec.evaluation.episodes import PolicyController, play
from jacrec.evaluation.statistics import Estimate
from jacrec.studies.analysis.gains import Average, average_gain
from jacrec.studies.analysis.hierarchy import average_over_tasks
from jacrec.studies.analysis.read import Study, cell_folder
from jacrec.studies.config import DEFAULT_MODEL
from jacrec.training.run import Run, load_run, torch_threads

Name = TypeVar("Name")
WARM_UP = 30
"""decisions that are made before the clock runs"""


@dataclass(frozen=True)
class Milliseconds:
    """One environment's decisions, one after the other."""

    median: float
    low: float
    """20th percentile"""
    high: float
    """80th percentile"""


@dataclass(frozen=True)
class Share:
    """A contestant beside the one whose gain and cost are the unit."""

    contestant: str
    gain: Estimate
    """average paired gain over base"""
    left: Estimate
    """average paired difference to the unit, in points: what is lost or won against it"""
    of_gain: float | None
    """its gain over the unit's, on the tasks that both have played; None where the unit's own gain is not clear
    of zero"""
    beyond: Estimate | None
    """average paired difference of its gain and a given share of the unit's, in points: above zero, it keeps more than that
    share, whatever the unit gains; None where they share no training seed"""
    milliseconds: Milliseconds
    of_cost: float


def front(points: Mapping[Name, tuple[float, float]]) -> list[Name]:
    """Those that nobody beats: points by name as (cost, gain); in order of cost."""
    found, best = [], -np.inf
    for name, (_, gain) in sorted(points.items(), key=lambda item: (item[1][0], -item[1][1])):
        if gain > best:
            found.append(name)
            best = gain
    return found


def decision_times(
    study: Study, contestants: Sequence[str], *, decisions: int = 200, turns: int = 3, threads: int | None = None
) -> dict[str, Milliseconds]:
    """Time of one environment's decision, by contestant, on the study's first finished cell.

    Everybody answers the same observations, which the base policy has met in the run's environment; turn by turn, so that a
    machine's moods are shared. Contestants that rehearse have no decision of their own and are left out.

    Args:
        decisions: timed per contestant and turn.
        threads: of torch; none named: all that torch takes.

    Raises:
        ValueError: no cell of the study holds all networks.
    """
    names = [c for c in contestants if c in study.config.contestants and not study.config.contestants[c].rehearse]
    cell, run = _first_run(study, names)
    observations = _observations(run, decisions + WARM_UP)
    with torch_threads(threads or torch.get_num_threads()):
        players = {}
        for name in names:
            spec = study.config.contestants[name]
            own = run if spec.model == DEFAULT_MODEL else with_dynamics(run, cell / "models" / spec.model)
            own = with_settings(own, spec.dynamics)
            players[name] = make_controller(own, spec.controller, None)
        taken: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(turns):
            for name, player in players.items():
                player.new_episode()
                for i, observation in enumerate(observations):
                    begun = time.perf_counter()
                    player.act(observation)
                    if i >= WARM_UP:
                        taken[name].append(1e3 * (time.perf_counter() - begun))
    return {name: milliseconds(t) for name, t in taken.items()}


def milliseconds(taken: Sequence[float]) -> Milliseconds:
    """The percentiles of the times of decisions."""
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
        f"{study.path}: expected a cell with a whole run and the models {sorted(models)}, got none; jacrec sweep "
        "goes on with the study"
    )


def _observations(run: Run, count: int) -> list[np.ndarray]:
    """The first `count` states that the base policy meets."""
    config = PlayConfig(episodes=1, seed=0)
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
    """Everybody with a time and a gain beside `unit`, in order of cost.

    Args:
        keep: the share of the unit's gain of `Share.beyond`.
        tasks: over which gains are averaged; None: all with normalised scores.

    Raises:
        ValueError: the unit has no gain or no time.
    """
    whole = average_gain(study, unit, tasks=tasks, level=level)
    if whole is None or unit not in times:
        raise ValueError(f"{unit}: expected a contestant with a paired gain and a decision of its own, got none")
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
    """Gain − keep · the unit's gain, episode by episode, as (1 − keep) · gain + keep · the difference of the two; of the
    training seeds that all three have played."""
    found = []
    for ours in gain.gains:
        theirs = next((g for g in difference.gains if g.task == ours.task), None)
        if theirs is None:
            continue
        both = dict(zip(theirs.seeds, theirs.runs, strict=True))
        pairs = [(a, both[seed]) for seed, a in zip(ours.seeds, ours.runs, strict=True) if seed in both]
        found.append([(1 - keep) * a + keep * b for a, b in pairs if len(a) == len(b)])
    return [runs for runs in found if runs]
