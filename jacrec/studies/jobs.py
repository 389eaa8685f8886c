"""The jobs of a study: what each needs, whether it is done, and how it is performed; a job travels to a worker as it is.

TrainJob (a run, or a further world model)      ResultJob (what leaves one JSON file)      PlayJob (one contestant's episodes)
"""

import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from jacrec.control.controller import MPCConfig
from jacrec.data.readers.load import load
from jacrec.data.transitions import Transitions
from jacrec.evaluation.config import PlayConfig
from jacrec.evaluation.contestant import (
    digests,
    environment_record,
    open_env,
    play_contestant,
    with_dynamics,
    with_settings,
)
from jacrec.evaluation.versions import machine, versions
from jacrec.models.dynamics.sampler import Sampler
from jacrec.planners import PlannerConfig
from jacrec.studies.config import TaskSpec
from jacrec.studies.sources import data_source
from jacrec.training.config import TrainConfig, from_dict, to_dict
from jacrec.training.run import PARTS, Run, load_run, read_record, torch_threads, train
from jacrec.training.stages.tilt import load_tilt_policy
from jacrec.util.files import write_json

Report = Callable[[float], None]
"""called with the share of a job that is done"""
BOOKKEEPING = ("data", "env_id", "threads", "device", "log_every", "checkpoint_every")
"""settings in which a run may differ from its cell's and still be adopted: what was learned from what is the same"""


@dataclass(frozen=True)
class Job:
    """One piece of work with one result in the study's folder."""

    id: str
    """where its result lies under STUDY/cells, without suffix: TASK/seed-S/run, .../models/MODEL, .../plays/CONTESTANT"""
    kind: str
    """train, model, rehearse or play"""
    task: str
    seed: int
    folder: Path
    """STUDY/cells"""
    needs: tuple[str, ...]
    """ids of the jobs whose results it reads"""
    threads: int

    @property
    def name(self) -> str:
        """Of the result: run, or the model's or contestant's name."""
        return self.id.rsplit("/", 1)[-1]

    @property
    def path(self) -> Path:
        """The result's path, without suffix."""
        return self.folder / self.id

    @property
    def failure(self) -> Path:
        """Where its failure is noted."""
        return self.path.with_name(self.path.name + ".failed.json")

    def done(self) -> bool:
        """Whether its result is there."""
        raise NotImplementedError

    def seconds(self) -> float | None:
        """How long it took, where its result tells."""
        raise NotImplementedError

    def perform(self, report: Report) -> str:
        """Do it; a note for the log."""
        raise NotImplementedError


@dataclass(frozen=True)
class TrainJob(Job):
    """A run folder of `jacrec.training.run.train`; of a further world model the dynamics alone.

    What it needs is the run whose policy it is tilted towards.
    """

    config: TrainConfig
    spec: TaskSpec
    data_root: str | None
    stages: tuple[str, ...]

    def done(self) -> bool:
        """Whether every network is there.

        Raises:
            ValueError: the folder holds another run.
        """
        if not (self.path / "config.yaml").is_file():
            return False
        adopted(self.config, self.path)
        return all((self.path / f"{part}.safetensors").is_file() for part, stage in PARTS.items() if stage in self.stages)

    def seconds(self) -> float | None:
        """The training time in its metrics."""
        if not (self.path / "metrics.jsonl").is_file():
            return None
        lines = (self.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        last = {line["stage"]: line["seconds"] for line in map(json.loads, lines)}
        return sum(last.values()) or None

    def perform(self, report: Report) -> str:
        """Train, or go on training."""
        source = data_source(self.task, self.spec, self.data_root)
        config = replace(self.config, data=source)
        if (self.path / "config.yaml").is_file():
            config = adopted(config, self.path)
        done, total = dict.fromkeys(self.stages, 0), sum(getattr(config, stage).updates for stage in self.stages)

        def on_log(line: dict[str, Any]) -> None:
            done[line["stage"]] = line["update"]
            report(sum(done.values()) / max(total, 1))

        data = load_cached(source, config.env_id)
        policy = load_tilt_policy(self.folder / self.needs[0]) if self.needs else None
        train(config, self.path, stages=self.stages, data=data, policy=policy, quiet=True, on_log=on_log)
        return f"{total} updates"


@dataclass(frozen=True)
class ResultJob(Job):
    """A job that leaves one record, PATH.json."""

    @property
    def result(self) -> Path:
        """The record's file."""
        return self.path.with_name(self.path.name + ".json")

    def done(self) -> bool:
        """Whether the record is there."""
        return self.result.is_file()

    def seconds(self) -> float | None:
        """The wall time in the record."""
        return json.loads(self.result.read_text(encoding="utf-8"))["wall_seconds"]


@dataclass(frozen=True)
class PlayJob(ResultJob):
    """One contestant's episodes, plays/CONTESTANT.json."""

    contestant: str
    model: str
    controller: MPCConfig | PlannerConfig | None
    config: PlayConfig
    sampler: Sampler = field(default_factory=Sampler)

    def perform(self, report: Report) -> str:
        """Play, and write the record."""
        run, *further = (self.folder / need for need in self.needs)
        trained = with_dynamics(load_run(run), further[0]) if further else load_run(run)
        trained = with_settings(trained, self.sampler)
        began = time.perf_counter()
        env = open_env(trained, self.config, threads=self.config.threads)
        with contextlib.closing(env), torch_threads(self.config.threads):
            played = play_contestant(trained, self.controller, self.config, env, progress=report)
            where = environment_record(env)
        record = self._record(trained) | played | {"environment": where, "wall_seconds": time.perf_counter() - began}
        write_json(self.result, record)
        name, values = ("return", record["returns"]) if record["scores"] is None else ("score", record["scores"])
        return f"{name} {sum(values) / len(values):.1f}"

    def _record(self, run: Run) -> dict[str, Any]:
        return {
            "task": self.task,
            "seed": self.seed,
            "contestant": self.contestant,
            "model": self.model,
            "settings": to_dict(self.config),
            "controller": None,
            "thinking": None,
            "networks": digests(run),
            "versions": versions(),
            "machine": machine(),
            "ref_min": run.info.ref_min,
            "ref_max": run.info.ref_max,
        }


def adopted(config: TrainConfig, folder: Path) -> TrainConfig:
    """The settings with which the run in `folder` is gone on with as this cell's: its own in what is bookkeeping.

    Raises:
        ValueError: it was trained with other settings.
    """
    record = read_record(folder)
    own = from_dict(record["settings"])
    kept = replace(config, **{name: getattr(own, name) for name in BOOKKEEPING})
    wrong = [f.name for f in fields(TrainConfig) if getattr(own, f.name) != getattr(kept, f.name)]
    if wrong:
        there, here = ({name: to_dict(getattr(c, name)) for name in wrong} for c in (own, kept))
        raise ValueError(
            f"{folder}: expected a run with this study's settings, got {_differing(there, here)}; move it away, "
            "or change the study's training"
        )
    return kept


def _differing(there: dict[str, Any], here: dict[str, Any]) -> str:
    """What differs, down to the single setting."""
    found = []
    for name, value in there.items():
        if isinstance(value, dict):
            found += [f"{name}.{k} = {v!r} where {here[name][k]!r} is asked" for k, v in value.items() if v != here[name][k]]
        else:
            found.append(f"{name} = {value!r} where {here[name]!r} is asked")
    return ", ".join(found)


_loaded: dict[tuple[str, str | None], Transitions] = {}
"""the data set that this process has last read"""


def load_cached(source: str, env_id: str | None) -> Transitions:
    """`load`, which a worker's next job on the same data does not repeat; two data sets are never held at a time."""
    if (source, env_id) not in _loaded:
        _loaded.clear()
        _loaded[source, env_id] = load(source, env_id=env_id)
    return _loaded[source, env_id]
