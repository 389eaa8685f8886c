"""Display of a sweep: progress bars or lines, estimated time, and tables of finished, missing and failed jobs."""

import statistics
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from jacrec.evaluation.markdown import terminal_table
from jacrec.studies.executors import Failed, Finished
from jacrec.studies.jobs import Job
from jacrec.studies.ledger import Failure, read_failure
from jacrec.studies.sweep import Plan


class TimeEstimator:
    """Estimates the time of the remaining jobs from finished ones of the same task and name, the same name or the same kind."""

    def __init__(self, plan: Plan):
        self.times: dict[tuple[str, ...], list[float]] = defaultdict(list)
        for job in plan.jobs:
            if job.id in plan.done and (seconds := job.seconds()):
                self.add(job, seconds)

    def add(self, job: Job, seconds: float) -> None:
        """Add a finished job."""
        for key in _keys(job):
            self.times[key].append(seconds)

    def left(self, jobs: Iterable[Job]) -> tuple[float, int]:
        """Estimated seconds of one worker for these jobs, and how many of the jobs could not be estimated."""
        seconds, unknown = 0.0, 0
        for job in jobs:
            key = next((k for k in _keys(job) if self.times.get(k)), None)
            if key is None:
                unknown += 1
            else:
                seconds += statistics.median(self.times[key])
        return seconds, unknown

    def sentence(self, jobs: Iterable[Job], slots: int) -> str:
        """ "about 2 h 10 min", or that the time is unknown."""
        jobs = list(jobs)
        seconds, unknown = self.left(jobs)
        if not jobs or unknown == len(jobs):
            return "nothing left" if not jobs else "time unknown: no similar job has finished yet"
        text = f"about {duration(seconds / max(1, slots))}"
        return text if not unknown else f"{text} and {unknown} jobs of unknown length"


def _keys(job: Job) -> list[tuple[str, ...]]:
    return [(job.kind, job.name, job.task), (job.kind, job.name), (job.kind,)]


def duration(seconds: float) -> str:
    """ "48 s", "3 min", "2 h 5 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


class LineWatcher:
    """Prints one line per finished or failed job, for logs and pipes."""

    def __init__(self, plan: Plan, slots: int, console: Console):
        self.console, self.slots, self.estimator = console, slots, TimeEstimator(plan)
        self.left = {job.id: job for job in plan.todo}
        self.total = len(plan.done) + len(self.left)

    def __enter__(self) -> "LineWatcher":
        return self

    def __exit__(self, *_: Any) -> None: ...

    def started(self, job: Job) -> None: ...

    def progress(self, id: str, share: float) -> None: ...

    def finished(self, job: Job, message: Finished) -> None:
        self.left.pop(job.id, None)
        self.estimator.add(job, message.seconds)
        rest = self.estimator.sentence(self.left.values(), self.slots)
        self.say(f"{self._count()} {job.id}  {message.note}  {duration(message.seconds)}  (worker {message.worker}; {rest})")

    def failed(self, job: Job, message: Failed, again: bool) -> None:
        what = "failed, will be retried" if again else "FAILED"
        self.say(f"{self._count()} {job.id}  {what}: {message.error}")

    def tick(self) -> None: ...

    def say(self, text: str) -> None:
        """Print a line verbatim."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _count(self) -> str:
        return f"[{self.total - len(self.left)}/{self.total}]"


class BarWatcher(LineWatcher):
    """The same lines, followed by progress bars of the study and of each running job."""

    def __init__(self, plan: Plan, slots: int, console: Console):
        super().__init__(plan, slots, console)
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        self.bars = Progress(*columns, TextColumn("{task.fields[note]}"), console=console, transient=True)
        self.tasks: dict[str, TaskID] = {}
        self.whole = self.bars.add_task("study", total=self.total, completed=self.total - len(self.left), note="")
        self.updated = 0.0

    def __enter__(self) -> "BarWatcher":
        self.bars.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.bars.stop()

    def started(self, job: Job) -> None:
        self.tasks[job.id] = self.bars.add_task(job.id, total=1.0, note="")

    def progress(self, id: str, share: float) -> None:
        if id in self.tasks:
            self.bars.update(self.tasks[id], completed=share)

    def finished(self, job: Job, message: Finished) -> None:
        self._remove(job)
        super().finished(job, message)
        self.bars.update(self.whole, completed=self.total - len(self.left))

    def failed(self, job: Job, message: Failed, again: bool) -> None:
        self._remove(job)
        super().failed(job, message, again)

    def tick(self) -> None:
        if time.monotonic() - self.updated > 2.0:
            self.updated = time.monotonic()
            self.bars.update(self.whole, note=self.estimator.sentence(self.left.values(), self.slots))

    def _remove(self, job: Job) -> None:
        if job.id in self.tasks:
            self.bars.remove_task(self.tasks.pop(job.id))


def make_watcher(plan: Plan, slots: int, console: Console) -> LineWatcher:
    """A watcher with bars on a terminal, and with lines only elsewhere."""
    return (BarWatcher if console.is_terminal else LineWatcher)(plan, slots, console)


@dataclass
class _Count:
    done: int = 0
    all: int = 0
    failed: int = 0

    def __str__(self) -> str:
        return f"{self.done}/{self.all}" + (f" ({self.failed} failed)" if self.failed else "")


def progress_table(plan: Plan) -> Table:
    """Number of finished jobs, by task and by result."""
    counts: dict[str, dict[str, _Count]] = defaultdict(lambda: defaultdict(_Count))
    for job in plan.jobs:
        prefix = {"model": "model ", "rehearse": "rehearsal ", "tune": "tuning "}.get(job.kind, "")
        count = counts[job.task]["trained" if job.kind == "train" else prefix + job.name]
        count.all += 1
        count.done += job.id in plan.done
        count.failed += job.id not in plan.done and read_failure(job) is not None
    names = list(dict.fromkeys(name for row in counts.values() for name in row))
    rows = [[task, *(str(row[name]) if name in row else "–" for name in names)] for task, row in counts.items()]
    return terminal_table(["task", *names], rows)


def failure_table(failed: dict[str, Failure], waiting: dict[str, list[str]]) -> Table:
    """Failed jobs with their errors, and the jobs that wait for them."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column("job", overflow="fold")
    table.add_column("attempts", justify="right")
    table.add_column("why", overflow="fold")
    for id, failure in failed.items():
        table.add_row(id, str(failure.attempts), failure.error)
    for id, needs in waiting.items():
        table.add_row(id, "–", f"waiting for {', '.join(needs)}")
    return table
