"""What `--log` sends to trackers: the records of trainings, evaluations, studies and deployments as points."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from jacrec.evaluation.records import Played
from jacrec.studies.jobs import REMEDY, Job, ResultJob, TrainJob
from jacrec.training.loop import OnLog, read_metrics
from jacrec.training.trackers import Point, Tracking
from jacrec.util.files import read_json

Kinds = Annotated[
    tuple[Literal["tensorboard", "wandb", "trackio", "csv"], ...],
    tyro.conf.arg(
        help="copy the numbers to these trackers; files: in the folder's tracking/ (extras of the same names; csv: none)"
    ),
]
METRICS = "metrics.jsonl"


class TrainingTracking(ExitStack):
    """Trackers of one or several runs under training: a context manager, with `on_log` for `train` or `train_seeds`.

    Args:
        kinds: of trackers.
        folders: run folders by their seed; None is the key of a single run.
    """

    def __init__(self, kinds: Sequence[str], folders: Mapping[int | None, Path]):
        super().__init__()
        self.folders = folders
        self.trackings = {seed: self.enter_context(Tracking(kinds, folder, "train")) for seed, folder in folders.items()}
        self.on_log: OnLog | None = self._on_log if kinds else None

    def _on_log(self, line: dict[str, Any]) -> None:
        """Send a new line; before a run's first one, those of earlier processes."""
        seed = line.get("seed")
        tracking = self.trackings[seed]
        tracking.send([metrics_point(line)] if tracking.trackers else self._recorded(seed))

    def finish(self) -> None:
        """Send what was not sent, such as all lines of a run that was finished before."""
        for seed, tracking in self.trackings.items() if self.on_log else ():
            tracking.send(self._recorded(seed))

    def _recorded(self, seed: int | None) -> list[Point]:
        return [metrics_point(line) for line in read_metrics(self.folders[seed] / METRICS)]


def metrics_point(line: Mapping[str, Any], prefix: str = "") -> Point:
    """A line of a training's metrics."""
    values = {key: x for key, x in line.items() if key not in ("stage", "update", "seed")}
    return Point(prefix + line["stage"], line["update"], values)


def evaluation_points(record: Mapping[str, Any]) -> Iterator[Point]:
    """Every episode of every contestant in an evaluation.json, and their means."""
    for name, played in record["contestants"].items():
        yield from played_points(name, played)


def played_points(name: str, played: Mapping[str, Any]) -> Iterator[Point]:
    """The episodes of one contestant, and their means."""
    columns = {"return": played["returns"], "score": played["scores"], "length": played["lengths"]}
    columns = {key: values for key, values in columns.items() if values is not None}
    for i in range(len(played["returns"])):
        yield Point(name, i, {key: values[i] for key, values in columns.items()})
    means = {key: float(np.mean(values)) for key, values in columns.items()}
    yield Point(f"mean/{name}", 0, means | {"decisions": played["decisions"], "seconds": played["seconds"]})


def deployment_points(record: Mapping[str, Any]) -> Iterator[Point]:
    """Every episode and every refreshed model of a deployment; in a race, each player's episodes on their own, too."""
    for i, episode in enumerate(record["episodes"]):
        names = ("return", "score", "length", "version", "lost", "allowance")
        values = {name: episode[name] for name in names if name in episode}
        yield Point("episodes", i, values | episode["decisions"])
        if "player" in episode:
            yield Point(f"race/{episode['player']}", i, values)
    for line in record["refreshes"]:
        for v in line["verdicts"]:
            values = {"before": v["before"], "after": v["after"], "accepted": v["accepted"], "version": line["version"]}
            values |= dict(zip(("rmse_before", "rmse_after"), v["rmse"], strict=True))
            yield Point(f"refreshes/{v['part']}", line["transitions"], values)


def job_points(job: Job) -> Iterator[Point]:
    """The result of a study's job, if it has curves or episodes."""
    if isinstance(job, TrainJob):
        prefix = "" if job.name == "run" else f"{job.name}/"
        yield from (metrics_point(line, prefix) for line in read_metrics(job.path / METRICS))
    elif isinstance(job, ResultJob) and job.kind == "play":
        yield from played_points(job.name, read_json(job.result, Played, REMEDY))


def send_job(kinds: Sequence[str], study: Path, job: Job) -> None:
    """Send a job's result to trackers of its own, in the study's group."""
    with Tracking(kinds, study, job.id, name=job.id, group=study.name) as tracking:
        tracking.send(job_points(job))
