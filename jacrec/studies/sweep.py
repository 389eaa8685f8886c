"""The sweep: every job of a study that is not done, side by side, each after what it needs.

plan(study, folder, ...) -> Plan        sweep(plan, executor, ...) -> Outcome
"""

import graphlib
import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Protocol

from jacrec.studies.config import StudyConfig
from jacrec.studies.executors import Executor, Failed, Finished, Progress
from jacrec.studies.jobs import Job, TrainJob
from jacrec.studies.ledger import Failure, Log, forget_failure, note_failure
from jacrec.studies.listing import jobs_of
from jacrec.studies.sources import data_source

KINDS = ("train", "model", "rehearse", "play")
POLL = 0.5
"""seconds between two looks at the clock while workers are silent"""


@dataclass(frozen=True)
class Plan:
    """The jobs of a study that were asked for, and which of them are done."""

    folder: Path
    jobs: tuple[Job, ...]
    done: frozenset[str]
    """ids"""
    kinds: tuple[str, ...] = KINDS
    """what is to be done: train, model, rehearse, play"""

    @property
    def missing(self) -> list[Job]:
        """The jobs without a result, in the order in which they are wanted."""
        return [job for job in self.jobs if job.id not in self.done]

    @property
    def todo(self) -> list[Job]:
        """The jobs to be done now: those missing, without the ones of other kinds than `kinds` and what needs these."""
        found: dict[str, Job] = {}
        for job in self.missing:
            if job.kind in self.kinds and all(need in self.done or need in found for need in job.needs):
                found[job.id] = job
        return list(found.values())


class Watcher(Protocol):
    """Shows a sweep."""

    def begun(self, job: Job) -> None: ...

    def progress(self, id: str, share: float) -> None: ...

    def finished(self, job: Job, message: Finished) -> None: ...

    def failed(self, job: Job, message: Failed, again: bool) -> None: ...

    def tick(self) -> None: ...


@dataclass
class Outcome:
    """What came of a start."""

    finished: list[str] = field(default_factory=list)
    failed: dict[str, Failure] = field(default_factory=dict)
    waiting: dict[str, list[str]] = field(default_factory=dict)
    """jobs that could not begin, and which of what they need is missing"""

    @property
    def complete(self) -> bool:
        return not self.failed and not self.waiting


def plan(study: StudyConfig, folder: Path, *, only: Sequence[str] = (), kinds: tuple[str, ...] = KINDS) -> Plan:
    """The jobs, all or those whose id fits one of the patterns `only` (with what they need), and which are done.

    Args:
        kinds: what is to be done; without "train", what needs a training that is not finished is left for later.

    A pattern is a shell's: hopper-*, */seed-10, */seed-1[0-4]/plays/mpc*; what it fits includes everything below.

    Raises:
        ValueError: a run folder in the study was trained with other settings; a pattern fits nothing.
    """
    jobs = jobs_of(study, folder)
    chosen = {job.id for job in jobs if not only or any(_fits(job.id, pattern) for pattern in only)}
    for pattern in only:
        if not any(_fits(job.id, pattern) for job in jobs):
            raise ValueError(f"--only {pattern!r}: expected a pattern of jobs like {jobs[-1].id}, got one that fits none")
    for job in reversed(jobs):  # what a job needs stands before it
        if job.id in chosen:
            chosen.update(job.needs)
    kept = tuple(job for job in jobs if job.id in chosen)
    return Plan(folder, kept, frozenset(job.id for job in kept if job.done()), kinds)


def expect_data(plan: Plan) -> None:
    """Raise FileNotFoundError where the data of a training that is to be done are not there."""
    missing: dict[str, str] = {}
    for job in plan.todo:
        if isinstance(job, TrainJob) and job.task not in missing:
            try:
                data_source(job.task, job.spec, job.data_root)
            except FileNotFoundError as error:
                missing[job.task] = str(error)
    if missing:
        lines = "\n  ".join(missing.values())
        raise FileNotFoundError(
            f"data of {len(missing)} task(s) are missing:\n  {lines}\nsay where they are with --data-root, make or fetch them, "
            "or sweep the other tasks alone with --only"
        )


def sweep(plan: Plan, executor: Executor, watcher: Watcher, *, retries: int = 1) -> Outcome:
    """Do what is missing; results are whole files, so this can be killed at any moment and begun again.

    A job that fails is tried `retries` times more, after the others. What needs it waits.
    """
    by_id = {job.id: job for job in plan.todo}
    order = {id: i for i, id in enumerate(by_id)}
    graph = graphlib.TopologicalSorter({job.id: [n for n in job.needs if n in by_id] for job in by_id.values()})
    graph.prepare()
    log, outcome = Log(plan.folder), Outcome()
    ready: list[tuple[int, str]] = []
    running: set[str] = set()
    tries: dict[str, int] = {}
    while True:
        for id in graph.get_ready():
            heapq.heappush(ready, (order[id], id))
        while ready and len(running) < executor.slots:
            _, id = heapq.heappop(ready)
            running.add(id)
            watcher.begun(by_id[id])
            executor.submit(by_id[id])
        if not running:
            break
        for message in executor.wait(POLL):
            job = by_id[message.id]
            if isinstance(message, Progress):
                watcher.progress(message.id, message.share)
                continue
            if isinstance(message, Finished) and not job.done():
                message = Failed(
                    job.id,
                    f"the worker finished, but its result is not at {job.path}: do all machines share this folder?",
                    "",
                    message.seconds,
                    message.worker,
                )
            running.discard(job.id)
            log.write(message)
            if isinstance(message, Finished):
                forget_failure(job)
                outcome.failed.pop(job.id, None)
                outcome.finished.append(job.id)
                graph.done(job.id)
                watcher.finished(job, message)
                continue
            outcome.failed[job.id] = note_failure(job, message)
            tries[job.id] = tries.get(job.id, 0) + 1
            again = tries[job.id] <= retries
            if again:
                heapq.heappush(ready, (len(order) + order[job.id], job.id))
            watcher.failed(job, message, again)
        watcher.tick()
    ended = {*outcome.finished, *outcome.failed}
    outcome.waiting = _waiting([job for job in by_id.values() if job.id not in ended], by_id, ended - outcome.failed.keys())
    return outcome


def _waiting(jobs: Sequence[Job], by_id: Mapping[str, Job], finished: set[str]) -> dict[str, list[str]]:
    return {job.id: [need for need in job.needs if need in by_id and need not in finished] for job in jobs}


def _fits(id: str, pattern: str) -> bool:
    return fnmatchcase(id, pattern) or fnmatchcase(id, f"{pattern}/*")
