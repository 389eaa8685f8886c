"""Sweeps: run all missing jobs of a study concurrently, in order of their dependencies."""

import graphlib
import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Protocol

from jacrec.studies.config import StudyConfig
from jacrec.studies.executors import Executor, Failed, Finished, Progress
from jacrec.studies.job_graph import study_jobs
from jacrec.studies.jobs import Job, TrainJob
from jacrec.studies.ledger import Failure, Log, clear_failure, record_failure
from jacrec.studies.sources import data_source

KINDS = ("train", "model", "rehearse", "tune", "play")
POLL = 0.5
"""maximum seconds to wait for a message before the display is updated"""


@dataclass(frozen=True)
class Plan:
    """The selected jobs of a study."""

    folder: Path
    jobs: tuple[Job, ...]
    done: frozenset[str]
    """ids of the jobs with a result"""
    kinds: tuple[str, ...] = KINDS
    """kinds of jobs to run: train, model, rehearse, tune, play"""

    @property
    def missing(self) -> list[Job]:
        """The jobs without a result, in order of priority."""
        return [job for job in self.jobs if job.id not in self.done]

    @property
    def todo(self) -> list[Job]:
        """The missing jobs that can run now, excluding other kinds than `kinds` and the jobs that depend on them."""
        found: dict[str, Job] = {}
        for job in self.missing:
            if job.kind in self.kinds and all(need in self.done or need in found for need in job.needs):
                found[job.id] = job
        return list(found.values())


class Watcher(Protocol):
    """Displays the progress of a sweep."""

    def started(self, job: Job) -> None: ...

    def progress(self, id: str, share: float) -> None: ...

    def finished(self, job: Job, message: Finished) -> None: ...

    def failed(self, job: Job, message: Failed, again: bool) -> None: ...

    def tick(self) -> None: ...


@dataclass
class Outcome:
    """Result of a sweep, by job id."""

    finished: list[str] = field(default_factory=list)
    failed: dict[str, Failure] = field(default_factory=dict)
    waiting: dict[str, list[str]] = field(default_factory=dict)
    """jobs that could not start, with their missing dependencies"""

    @property
    def complete(self) -> bool:
        """Whether all jobs have finished."""
        return not self.failed and not self.waiting


def plan(study: StudyConfig, folder: Path, *, only: Sequence[str] = (), kinds: tuple[str, ...] = KINDS) -> Plan:
    """Select the jobs of a study and find out which are done.

    Args:
        only: shell patterns of job ids, such as hopper-*, */seed-10 or */seed-1[0-4]/plays/mpc*; a pattern also selects
            everything below its matches and all dependencies. Default: all jobs.
        kinds: kinds of jobs to run; without "train", jobs that need an unfinished training are skipped.

    Raises:
        ValueError: a run folder of the study was trained with other settings; a pattern matches nothing.
    """
    jobs = study_jobs(study, folder)
    chosen = {job.id for job in jobs if not only or any(_matches(job.id, pattern) for pattern in only)}
    for pattern in only:
        if not any(_matches(job.id, pattern) for job in jobs):
            raise ValueError(
                f"--only {pattern!r}: expected a pattern of job ids such as {jobs[-1].id}, got one without a match"
            )
    for job in reversed(jobs):  # dependencies within a cell precede the job
        if job.id in chosen:
            chosen.update(job.needs)
    kept = tuple(job for job in jobs if job.id in chosen)
    return Plan(folder, kept, frozenset(job.id for job in kept if job.done()), kinds)


def expect_data(plan: Plan) -> None:
    """Raise FileNotFoundError if the data of a training to be run are missing."""
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
            f"data of {len(missing)} task(s) are missing:\n  {lines}\nset --data-root, make or download the data, or select "
            "the other tasks with --only"
        )


def sweep(
    plan: Plan,
    executor: Executor,
    watcher: Watcher,
    *,
    retries: int = 1,
    on_finished: Callable[[Job], None] | None = None,
) -> Outcome:
    """Run the missing jobs. Results are written atomically, so a sweep can be killed at any moment and resumed.

    A failed job is retried up to `retries` times, after all other jobs; the jobs that depend on it wait. `on_finished` is called
    with each job that has a new result.
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
            watcher.started(by_id[id])
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
                    f"the worker finished, but there is no result at {job.path}: do all machines share this folder?",
                    "",
                    message.seconds,
                    message.worker,
                )
            running.discard(job.id)
            log.write(message)
            if isinstance(message, Finished):
                clear_failure(job)
                outcome.failed.pop(job.id, None)
                outcome.finished.append(job.id)
                graph.done(job.id)
                watcher.finished(job, message)
                if on_finished is not None:
                    on_finished(job)
                continue
            outcome.failed[job.id] = record_failure(job, message)
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


def _matches(id: str, pattern: str) -> bool:
    return fnmatchcase(id, pattern) or fnmatchcase(id, f"{pattern}/*")
