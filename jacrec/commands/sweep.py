"""`jacrec sweep SPEC`: train and evaluate a study."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from tyro.conf import Positional

from jacrec.commands.tracking import Kinds, send_job
from jacrec.evaluation.markdown import terminal
from jacrec.studies.executors import Executor
from jacrec.studies.jobs import TrainJob
from jacrec.studies.ledger import is_locked, locked, read_failure
from jacrec.studies.made import STEPS, make_missing, with_made_data
from jacrec.studies.show import TimeEstimator, failure_table, make_watcher, progress_table
from jacrec.studies.sources import needs_root
from jacrec.studies.spec import FILE, expect_same_study, find_spec, read_spec, write_study
from jacrec.studies.sweep import KINDS, Plan, expect_data, plan, sweep
from jacrec.studies.workers import LocalExecutor
from jacrec.training.trackers import expect_usable
from jacrec.util.files import user_path
from jacrec.util.processors import processors

SHOWN = 20
"""jobs that --dry-run lists at most"""


@dataclass(frozen=True)
class Sweep:
    """Train every task of a study with every seed and evaluate every contestant on every run.

    A sweep can be interrupted or killed at any moment; the same command resumes it. Failed jobs are reported at the end (exit
    code 1) and retried by the next sweep.
    """

    spec: Annotated[Positional[str], tyro.conf.arg(metavar="SPEC")]
    """a study.yaml, the folder of an earlier sweep, or a built-in spec: table-1 to table-5, figure-2, figure-3, smoke"""
    out: Path | None = None
    """the study's folder; None: that of the spec if it is an earlier sweep's, else studies/NAME"""
    data_root: Path | None = None
    """folder of the tasks' data: relative paths start here, and D4RL's files are found below it at any depth"""
    made: bool = False
    """use data made here instead of D4RL's, as by `jacrec data make --behaviour sac`: the same kinds, not the same data. Sets that
    are missing are made first; default folder: studies/NAME-made"""
    made_steps: int = STEPS
    """transitions of each set that --made makes"""
    workers: int | None = None
    """parallel processes; None: as many as fit this machine's cores"""
    retries: int = 1
    """how often a failed job is retried"""
    only: tuple[str, ...] = ()
    """patterns of the jobs to run, e.g. 'hopper-*' or '*/seed-10/plays/mpc*'; their prerequisites run too"""
    kinds: tuple[Literal["train", "model", "rehearse", "tune", "play"], ...] = KINDS
    """kinds of jobs to run now; jobs whose prerequisites are excluded are left for later"""
    ray: bool = False
    """start a Ray cluster on this machine and sweep on it (extra: jacrec[cluster])"""
    ray_address: str | None = None
    """sweep on this running Ray cluster; "auto": the one that this machine belongs to. All its machines must see the study's
    folder and the data under the same paths"""
    gpus: float = 0.0
    """share of a GPU that Ray reserves for each job"""
    log: Kinds = ()
    dry_run: bool = False
    """list the missing jobs and estimate their duration, without running them"""
    status: bool = False
    """show finished and failed jobs, without running any"""


COMMAND = Sweep


def run(args: list[str]) -> int:
    """Run the verb."""
    chosen = tyro.cli(COMMAND, args=args, prog="jacrec sweep")
    for name, least in (("workers", 1), ("retries", 0), ("made_steps", 1)):
        value = getattr(chosen, name)
        if value is not None and value < least:
            raise ValueError(f"--{name}: expected at least {least}, got {value}")
    path = find_spec(chosen.spec)
    original = read_spec(path)
    study = with_made_data(original) if chosen.made else original
    resumed = path.name == FILE and (path.parent / "cells").is_dir()
    folder = chosen.out or (path.parent if resumed else Path("studies") / study.name)
    root = chosen.data_root or study.data_root or ("." if any(map(needs_root, study.tasks.values())) else None)
    study = replace(study, data_root=None if root is None else str(user_path(root).absolute()))
    todo = plan(study, folder, only=chosen.only, kinds=chosen.kinds)
    console = terminal()
    threads = max(job.threads for job in todo.jobs)
    workers = chosen.workers or max(1, processors() // threads)
    for kind in chosen.log:
        expect_usable(kind)
    if chosen.status or chosen.dry_run:
        return _tell(todo, folder, workers, console, dry_run=chosen.dry_run)
    expect_same_study(study, folder)
    if not chosen.made:
        expect_data(todo)
    with locked(folder) as lock:
        if chosen.made:
            tasks = {job.task for job in todo.todo if isinstance(job, TrainJob)}
            make_missing(original, tasks, chosen.made_steps, console.print)
            expect_data(todo)
        # workers of a killed sweep may have finished jobs while this one waited for them
        todo = plan(study, folder, only=chosen.only, kinds=chosen.kinds)
        write_study(study, folder)
        for job in todo.jobs if chosen.log else ():
            if job.id in todo.done:
                send_job(chosen.log, folder, job)
        return _sweep(todo, _executor(chosen, workers, threads, lock), chosen.retries, console, chosen.log)


def _executor(chosen: Sweep, workers: int, threads: int, lock: Path) -> Executor:
    if not (chosen.ray or chosen.ray_address):
        return LocalExecutor(workers, lock, threads)
    from jacrec.studies.cluster import RayExecutor

    return RayExecutor(chosen.ray_address, workers=chosen.workers, threads=threads, gpus=chosen.gpus)


def _sweep(todo: Plan, executor: Executor, retries: int, console: Console, log: Sequence[str]) -> int:
    with make_watcher(todo, executor.slots, console) as watcher:
        later = len(todo.missing) - len(todo.todo)
        watcher.say(
            f"{todo.folder}: {len(todo.done)} of {len(todo.jobs)} jobs are done"
            + (f", {later} are left for later" if later else "")
        )
        try:
            outcome = sweep(todo, executor, watcher, retries=retries, on_finished=lambda job: send_job(log, todo.folder, job))
        finally:
            executor.close()
    if not outcome.complete:
        console.print(failure_table(outcome.failed, outcome.waiting))
        print(
            f"{len(outcome.failed)} jobs failed, {len(outcome.waiting)} depend on them; tracebacks: "
            f"{todo.folder}/cells/.../*.failed.json; to retry: jacrec sweep {todo.folder}"
        )
        return 1
    print(f"study: {todo.folder}\nnext: jacrec report {todo.folder}")
    return 0


def _tell(todo: Plan, folder: Path, workers: int, console: Console, *, dry_run: bool) -> int:
    if dry_run:
        for job in todo.todo[:SHOWN]:
            print(job.id)
        if len(todo.todo) > SHOWN:
            print(f"... and {len(todo.todo) - SHOWN} more")
    console.print(progress_table(todo))
    failed = {job.id: failure for job in todo.missing if (failure := read_failure(job)) is not None}
    if failed:
        console.print(failure_table(failed, {}))
    rest = TimeEstimator(todo).sentence(todo.todo, workers)
    print(f"{folder}: {len(todo.done)} of {len(todo.jobs)} jobs are done, {len(failed)} failed; with {workers} workers: {rest}")
    if is_locked(folder):
        print("a sweep of this study is running")
    if dry_run:
        try:
            expect_data(todo)
        except FileNotFoundError as error:
            print(error)
            return 1
    return 0
