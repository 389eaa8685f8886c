"""`jacrec sweep SPEC`."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from tyro.conf import Positional

from jacrec.studies.executors import Executor
from jacrec.studies.ledger import is_locked, locked, read_failure
from jacrec.studies.show import TimeEstimator, failure_table, make_watcher, progress_table
from jacrec.studies.sources import needs_root
from jacrec.studies.spec import FILE, expect_same_study, find_spec, read_spec, write_study
from jacrec.studies.sweep import KINDS, Plan, expect_data, plan, sweep
from jacrec.studies.workers import LocalExecutor
from jacrec.util.processors import processors

SHOWN = 20
"""jobs that a dry run names"""


@dataclass(frozen=True)
class Sweep:
    """Train every task of a study with every seed and let every contestant play every run; what is done is kept.

    A sweep can be interrupted or killed at any moment; the same command goes on. Failed jobs are reported at the end (exit
    code 1) and tried again by the next start.
    """

    spec: Annotated[Positional[str], tyro.conf.arg(metavar="SPEC")]
    """a study.yaml, the folder of a study begun before, or the name of a spec that comes with jacrec: table-1 to table-5,
    figure-2, figure-3, smoke"""
    out: Path | None = None
    """the study's folder: the spec's own where it lies in one, else studies/NAME"""
    data_root: Path | None = None
    """folder of the tasks' data: their relative paths start there, and D4RL's files are found there at any depth"""
    workers: int | None = None
    """processes side by side; as many as this machine's cores serve unless told"""
    retries: int = 1
    """how often a failed job is tried again in this start"""
    only: tuple[str, ...] = ()
    """patterns of the jobs to do, e.g. 'hopper-*' or '*/seed-10/plays/mpc*'; what they need is done too"""
    kinds: tuple[Literal["train", "model", "rehearse", "play"], ...] = KINDS
    """what to do now: runs, further world models, episodes; what needs a run that is not to be trained is left for later"""
    ray: bool = False
    """sweep on a Ray cluster of this machine's (extra: jacrec[cluster])"""
    ray_address: str | None = None
    """sweep on this running Ray cluster; "auto" is the one that this machine belongs to. All its machines have to see the
    study's folder and the data under the same paths"""
    gpus: float = 0.0
    """share of a GPU that Ray keeps for each job"""
    dry_run: bool = False
    """print what is missing and about how long it takes, and do nothing"""
    status: bool = False
    """print what is done and what failed, and do nothing"""


def run(args: list[str]) -> int:
    """The verb."""
    chosen = tyro.cli(Sweep, args=args, prog="jacrec sweep")
    for name, least in (("workers", 1), ("retries", 0)):
        value = getattr(chosen, name)
        if value is not None and value < least:
            raise ValueError(f"--{name}: expected at least {least}, got {value}")
    path = find_spec(chosen.spec)
    study = read_spec(path)
    begun = path.name == FILE and (path.parent / "cells").is_dir()
    folder = chosen.out or (path.parent if begun else Path("studies") / study.name)
    root = chosen.data_root or study.data_root or ("." if any(map(needs_root, study.tasks.values())) else None)
    study = replace(study, data_root=None if root is None else str(Path(root).absolute()))
    todo = plan(study, folder, only=chosen.only, kinds=chosen.kinds)
    console = Console()
    threads = max(job.threads for job in todo.jobs)
    workers = chosen.workers or max(1, processors() // threads)
    if chosen.status or chosen.dry_run:
        return _tell(todo, folder, workers, console, dry_run=chosen.dry_run)
    expect_same_study(study, folder)
    expect_data(todo)
    with locked(folder) as lock:
        # what workers of a killed sweep finished while they were waited for is not to be done again
        todo = plan(study, folder, only=chosen.only, kinds=chosen.kinds)
        write_study(study, folder)
        return _sweep(todo, _executor(chosen, workers, threads, lock), chosen.retries, console)


def _executor(chosen: Sweep, workers: int, threads: int, lock: Path) -> Executor:
    if not (chosen.ray or chosen.ray_address):
        return LocalExecutor(workers, lock, threads)
    from jacrec.studies.cluster import RayExecutor

    return RayExecutor(chosen.ray_address, workers=chosen.workers, threads=threads, gpus=chosen.gpus)


def _sweep(todo: Plan, executor: Executor, retries: int, console: Console) -> int:
    with make_watcher(todo, executor.slots, console) as watcher:
        later = len(todo.missing) - len(todo.todo)
        watcher.say(
            f"{todo.folder}: {len(todo.done)} of {len(todo.jobs)} jobs are done"
            + (f", {later} are left for a later start" if later else "")
        )
        try:
            outcome = sweep(todo, executor, watcher, retries=retries)
        finally:
            executor.close()
    if not outcome.complete:
        console.print(failure_table(outcome.failed, outcome.waiting))
        print(
            f"{len(outcome.failed)} jobs failed, {len(outcome.waiting)} wait for them; tracebacks: "
            f"{todo.folder}/cells/.../*.failed.json; to try them again: jacrec sweep {todo.folder}"
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
        print("a sweep is at work on it")
    if dry_run:
        try:
            expect_data(todo)
        except FileNotFoundError as error:
            print(error)
            return 1
    return 0
