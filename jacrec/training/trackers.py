"""Numbers for TensorBoard, Weights & Biases, Trackio or CSV, beside the JSON files in which every command records its results.

What a tracker shows is a copy of such a record. TensorBoard's and CSV's files are written anew from it each time a command
starts; Weights & Biases and Trackio keep runs of their own, which are continued.
"""

import csv
import io
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypedDict
from uuid import uuid4

from jacrec.util.errors import expect_one_of
from jacrec.util.files import naming, read_json, user_path, write_json, write_text

MODULES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb", "trackio": "trackio", "csv": "csv"}
"""kinds of trackers, with what they import"""
FOLDER = "tracking"
PROJECT = "jacrec"
STATE = "run.json"


class Point(NamedTuple):
    """Numbers at one step of a part, such as one line of metrics of a training stage."""

    part: str
    step: int
    values: Mapping[str, Any]
    """entries that are no numbers are left out"""


class Tracker(Protocol):
    """Writes points; each part's in the order of its steps."""

    def write(self, part: str, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class ServiceRun(TypedDict):
    """What is known of a run of Weights & Biases or Trackio: run.json."""

    id: str
    steps: dict[str, int]


class Tracking:
    """Sends points to trackers: a context manager, which closes them.

    Nothing is imported or written before the first point. A point that was sent is not sent again, so that a whole record can
    be sent whenever it has grown. Safe to call from several threads.

    Args:
        kinds: among tensorboard, wandb, trackio, csv.
        folder: the folder of the results; files go to its subfolder tracking/JOB.
        job: what is tracked: "train", "eval", …
        name: name of the run for Weights & Biases and Trackio; default: the last parts of the path, and the job.
        group: its group there; default: the folder's name.
        again: start new runs there instead of continuing those of an earlier process.

    Raises:
        ValueError: a library is not installed, or Weights & Biases has no login.
    """

    def __init__(
        self,
        kinds: Sequence[str],
        folder: str | Path,
        job: str,
        *,
        name: str | None = None,
        group: str | None = None,
        again: bool = False,
    ):
        for kind in kinds:
            expect_usable(kind)
        folder = user_path(folder).absolute()
        self.kinds, self.folder, self.job = tuple(dict.fromkeys(kinds)), folder / FOLDER / job, job
        self.name, self.group = name or "-".join((*folder.parts[-2:], job)), group or folder.name
        self.again, self.trackers = again, list[Tracker]()
        self._sent: set[tuple[str, int]] = set()
        self._lock = threading.Lock()

    def __enter__(self) -> "Tracking":
        return self

    def __exit__(self, *_: object) -> None:
        for tracker in self.trackers:
            tracker.close()

    def send(self, points: Iterable[Point]) -> None:
        """Send those points that were not sent before."""
        if not self.kinds:
            return
        with self._lock:
            for part, step, values in points:
                if (part, step) in self._sent:
                    continue
                self._sent.add((part, step))
                numbers = {key: float(x) for key, x in values.items() if isinstance(x, int | float)}
                if not self.trackers:
                    self.trackers = [CLASSES[kind](self) for kind in self.kinds]
                for tracker in self.trackers:
                    tracker.write(part, step, numbers)


def expect_usable(kind: str) -> None:
    """Raise ValueError if a kind of tracker cannot be used here."""
    expect_one_of("--log", kind, tuple(MODULES))
    try:
        module = import_module(MODULES[kind])
    except ImportError as error:
        raise ValueError(
            f"--log {kind}: expected an installed package, got an error ({error}); pip install 'jacrec[{kind}]'"
        ) from None
    if kind == "wandb" and os.environ.get("WANDB_MODE", "online") == "online" and not module.api.api_key:
        raise ValueError("--log wandb: expected a login, got none; run `wandb login`, or set WANDB_MODE=offline")


class CSVFiles:
    """One file PART.csv per part, with a column for each number; empty where a line lacks it."""

    def __init__(self, tracking: Tracking):
        self.folder = tracking.folder / "csv"
        for old in self.folder.glob("*.csv"):
            old.unlink()
        self.lines: dict[str, list[dict[str, float]]] = {}
        self.heads: dict[str, list[str]] = {}

    def write(self, part: str, step: int, values: Mapping[str, float]) -> None:
        """Append a line, or write the file anew if there is another column."""
        line, path = {"step": step, **values}, self.folder / f"{part.replace('/', '-')}.csv"
        lines, head = self.lines.setdefault(part, []), self.heads.setdefault(part, [])
        lines.append(line)
        if line.keys() <= set(head):
            text = _csv(head, [line])
            with naming(path, len(text)), path.open("a", encoding="utf-8") as file:
                file.write(text)
        else:
            head += [key for key in line if key not in head]
            write_text(path, ",".join(head) + "\n" + _csv(head, lines))

    def close(self) -> None:
        """Do nothing: every line is written at once."""


def _csv(head: Sequence[str], lines: Sequence[Mapping[str, float]]) -> str:
    out = io.StringIO()
    csv.DictWriter(out, head, restval="", lineterminator="\n").writerows(lines)
    return out.getvalue()


class TensorBoard:
    """Scalars PART/NAME in event files, which replace those of an earlier start."""

    def __init__(self, tracking: Tracking):
        for old in tracking.folder.glob("events.out.tfevents.*"):
            old.unlink()
        self.writer = import_module(MODULES["tensorboard"]).SummaryWriter(str(tracking.folder), flush_secs=10)

    def write(self, part: str, step: int, values: Mapping[str, float]) -> None:
        """Add the scalars."""
        for key, value in values.items():
            self.writer.add_scalar(f"{part}/{key}", value, step)

    def close(self) -> None:
        """Write what is left."""
        self.writer.close()


class Service:
    """A run of Weights & Biases or Trackio, which is continued where its last point was."""

    def __init__(self, tracking: Tracking, kind: str):
        self.tracking, self.folder = tracking, tracking.folder / kind
        self.module, self.run = import_module(MODULES[kind]), None
        path = self.folder / STATE
        remedy = "delete the file: a new run is started"
        known = path.is_file() and not tracking.again
        self.state = read_json(path, ServiceRun, remedy) if known else {"id": uuid4().hex[:8], "steps": {}}

    def start(self) -> Any:
        """Open the run."""
        raise NotImplementedError

    def write(self, part: str, step: int, values: Mapping[str, float]) -> None:
        """Send the numbers, with their step, unless an earlier process has done so."""
        if step <= self.state["steps"].get(part, -1):
            return
        if self.run is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.run = self.start()
        self.log({f"{part}/{key}": value for key, value in values.items()}, part, step)
        self.state["steps"][part] = step
        write_json(self.folder / STATE, self.state)

    def log(self, values: dict[str, float], part: str, step: int) -> None:
        """Send numbers to the open run."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the run."""
        if self.run is not None:
            self.run.finish()


class WeightsAndBiases(Service):
    """Every part has a step of its own, PART/step."""

    def __init__(self, tracking: Tracking):
        super().__init__(tracking, "wandb")
        self.parts: set[str] = set()

    def start(self) -> Any:
        """Open the run, beside others of this process."""
        return self.module.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=self.state["id"],
            name=self.tracking.name,
            group=self.tracking.group,
            job_type=self.tracking.job,
            dir=str(self.folder),
            resume="allow",
            reinit="create_new",
            settings=self.module.Settings(silent=True),
        )

    def log(self, values: dict[str, float], part: str, step: int) -> None:
        """Log with the part's own step."""
        assert self.run is not None
        if part not in self.parts:
            self.parts.add(part)
            self.run.define_metric(f"{part}/*", step_metric=f"{part}/step")
        self.run.log({**values, f"{part}/step": step})


class Trackio(Service):
    """Trackio keeps its data in its own folder, $TRACKIO_DIR."""

    def __init__(self, tracking: Tracking):
        super().__init__(tracking, "trackio")

    def start(self) -> Any:
        """Open the run."""
        name = f"{self.tracking.name}-{self.state['id']}"
        return self.module.init(project=PROJECT, name=name, group=self.tracking.group, resume="allow", embed=False)

    def log(self, values: dict[str, float], part: str, step: int) -> None:
        """Log."""
        assert self.run is not None
        self.run.log(values, step=step)


CLASSES = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases, "trackio": Trackio, "csv": CSVFiles}
