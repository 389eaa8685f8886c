"""Paired gains: differences of two contestants on the same training seeds and environment seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from jacrec.evaluation.statistics import Estimate
from jacrec.studies.analysis.hierarchy import (
    average_over_tasks,
    hierarchical_mean,
    interquartile_mean_of_runs,
    probability_of_improvement,
    t_over_seeds,
    t_over_tasks,
)
from jacrec.studies.analysis.read import Study
from jacrec.studies.config import BASE

HARM = -1.0
"""threshold, in points of normalised score, below which a loss counts as harm"""


@dataclass(frozen=True)
class Gain:
    """A paired difference on one task."""

    task: str
    contestant: str
    against: str
    unit: str
    """ "score" or "return" """
    seeds: tuple[int, ...]
    """training seeds played by both"""
    runs: tuple[np.ndarray, ...]
    """per training seed, the differences of episodes with the same environment seed"""
    estimate: Estimate
    """hierarchical bootstrap; std and n over training seeds"""
    t: Estimate
    """Student's t over the seeds' means"""

    @property
    def episodes(self) -> int:
        """Number of episode pairs over all seeds."""
        return sum(len(x) for x in self.runs)


@dataclass(frozen=True)
class Average:
    """The paired difference averaged over tasks with normalised scores, with equal weights."""

    contestant: str
    against: str
    gains: tuple[Gain, ...]
    """one per task played by both"""
    absent: tuple[str, ...]
    """scored tasks not included"""
    estimate: Estimate
    t: Estimate

    @property
    def worst(self) -> Gain:
        """The task with the lowest mean gain."""
        return min(self.gains, key=lambda g: g.estimate.mean)

    @property
    def harmed(self) -> list[Gain]:
        """Tasks significantly worse than `HARM`: the whole interval lies below it."""
        return [g for g in self.gains if g.estimate.high < HARM]

    @property
    def undecided(self) -> list[Gain]:
        """Tasks whose interval contains `HARM`."""
        return [g for g in self.gains if g.estimate.low < HARM <= g.estimate.high]

    @property
    def harmless(self) -> list[Gain]:
        """Tasks that are not worse than `HARM`: the whole interval lies above it."""
        return [g for g in self.gains if g.estimate.low >= HARM]

    @property
    def seeds(self) -> int:
        """The smallest number of training seeds per task."""
        return min(len(g.seeds) for g in self.gains)


@dataclass(frozen=True)
class Aggregate:
    """One contestant over all scored tasks it has played."""

    contestant: str
    tasks: tuple[str, ...]
    runs: int
    mean: Estimate
    iqm: Estimate
    improvement: Estimate | None
    """probability that a run scores above a run of the base policy; None for the base policy"""


@cache
def paired(study: Study, task: str, contestant: str, against: str, *, level: float = 0.95) -> Gain | None:
    """contestant − against on one task; None if they share no training seed."""
    unit = study.unit(task)
    pairs = _pairs(study, task, contestant, against, unit + "s")
    if not pairs:
        return None
    seeds, differences = tuple(pairs), tuple(a - b for a, b in pairs.values())
    return Gain(
        task,
        contestant,
        against,
        unit,
        seeds,
        differences,
        hierarchical_mean(differences, level=level),
        t_over_seeds(differences, level=level),
    )


def average_gain(
    study: Study, contestant: str, against: str = BASE, *, tasks: Sequence[str] | None = None, level: float = 0.95
) -> Average | None:
    """contestant − against averaged over the scored tasks; None if there are none.

    Args:
        tasks: tasks to average over (default: all with normalised scores).
    """
    wanted = [t for t in (study.scored_tasks if tasks is None else tasks) if study.unit(t) == "score"]
    found = {task: paired(study, task, contestant, against, level=level) for task in wanted}
    gains = tuple(g for g in found.values() if g is not None)
    if not gains:
        return None
    runs = [g.runs for g in gains]
    return Average(
        contestant,
        against,
        gains,
        tuple(t for t, g in found.items() if g is None),
        average_over_tasks(runs, level=level),
        t_over_tasks(runs, level=level),
    )


def aggregate(study: Study, contestant: str, *, level: float = 0.95) -> Aggregate | None:
    """Mean and interquartile mean over the scored tasks, and the probability of improvement over base; None without tasks."""
    tasks = [t for t in study.scored_tasks if study.of(t, contestant)]
    if not tasks:
        return None
    runs = [list(study.runs(t, contestant).values()) for t in tasks]
    return Aggregate(
        contestant,
        tuple(tasks),
        sum(map(len, runs)),
        average_over_tasks(runs, level=level),
        interquartile_mean_of_runs(runs, level=level),
        _improvement(study, contestant, tasks, level),
    )


def _improvement(study: Study, contestant: str, tasks: list[str], level: float) -> Estimate | None:
    if contestant == BASE:
        return None
    ours, theirs = [], []
    for task in tasks:
        if pairs := _pairs(study, task, contestant, BASE, "scores").values():
            ours.append([a for a, _ in pairs])
            theirs.append([b for _, b in pairs])
    return probability_of_improvement(ours, theirs, level=level) if ours else None


def _pairs(study: Study, task: str, contestant: str, against: str, key: str) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """By shared training seed, the values of both contestants' episodes with the same environment seeds."""
    ours, theirs = study.of(task, contestant), study.of(task, against)
    pairs = {}
    for seed in sorted(ours.keys() & theirs.keys()):
        a, b = ours[seed].values(key), theirs[seed].values(key)
        if shared := sorted(a.keys() & b.keys()):
            pairs[seed] = np.array([a[s] for s in shared]), np.array([b[s] for s in shared])
    return pairs


def cost(study: Study, contestant: str) -> tuple[float, float, float] | None:
    """Milliseconds per decision of the controller: median, minimum and maximum over the plays; None without plays."""
    times = [p.milliseconds for (_, _, name), p in study.plays.items() if name == contestant]
    return (float(np.median(times)), min(times), max(times)) if times else None
