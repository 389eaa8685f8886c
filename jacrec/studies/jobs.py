"""The jobs of a study: training, rehearsals and episodes. Jobs are picklable and are sent to the workers as they are."""

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypedDict

from jacrec.control.controller import MPCConfig
from jacrec.data.readers.load import load
from jacrec.data.transitions import Bound, Transitions
from jacrec.evaluation.config import PlayConfig
from jacrec.evaluation.contestant import (
    digests,
    environment_record,
    open_env,
    play_contestant,
    with_dynamics,
    with_sampling,
)
from jacrec.evaluation.records import read_tuning_record
from jacrec.evaluation.rehearsal import BASE, RehearsalConfig, rehearse_run
from jacrec.evaluation.tuning import FILE as TUNING
from jacrec.evaluation.tuning import TuneConfig, tune
from jacrec.evaluation.versions import machine, versions
from jacrec.experimental.config import read_mpc_config
from jacrec.models.dynamics.sampler import Sampler
from jacrec.planners import PlannerConfig
from jacrec.studies.config import TaskSpec
from jacrec.studies.sources import data_source
from jacrec.training.config import TrainConfig, to_dict
from jacrec.training.folder import recorded_config
from jacrec.training.loop import read_metrics
from jacrec.training.run import PARTS, Run, load_run, read_record, torch_threads, train
from jacrec.training.stages.tilt import load_tilt_policy
from jacrec.util.files import read_json, write_json

REMEDY = "delete the file: the next sweep makes it again"


class Timed(TypedDict):
    """What is read of the record of every job."""

    wall_seconds: float


class Choice(TypedDict):
    """What is read of the record of a rehearsal."""

    choice: str


Report = Callable[[float], None]
"""called with the finished fraction of a job"""
BOOKKEEPING = ("data", "env_id", "threads", "device", "log_every", "checkpoint_every")
"""settings that may differ between a run and its cell, because they do not affect what is learned"""


@dataclass(frozen=True)
class Job:
    """A unit of work with one result in the study's folder."""

    id: str
    """path of the result under STUDY/cells, without suffix: TASK/seed-S/run, .../models/MODEL, .../plays/CONTESTANT"""
    kind: str
    """train, model, rehearse, tune or play"""
    task: str
    seed: int
    folder: Path
    """STUDY/cells"""
    needs: tuple[str, ...]
    """ids of the jobs whose results are read"""
    threads: int

    @property
    def name(self) -> str:
        """Name of the result: "run", a model or a contestant."""
        return self.id.rsplit("/", 1)[-1]

    @property
    def path(self) -> Path:
        """The result's path, without suffix."""
        return self.folder / self.id

    @property
    def failure(self) -> Path:
        """The file that records a failure."""
        return self.path.with_name(self.path.name + ".failed.json")

    def done(self) -> bool:
        """Whether the result exists."""
        raise NotImplementedError

    def seconds(self) -> float | None:
        """Duration recorded in the result; None if unknown."""
        raise NotImplementedError

    def perform(self, report: Report) -> str:
        """Do the work; a note for the log."""
        raise NotImplementedError


@dataclass(frozen=True)
class TrainJob(Job):
    """Trains a run folder with `jacrec.training.run.train`, or only the dynamics of an additional world model.

    A world model that is tilted towards a policy needs the run of that policy.
    """

    config: TrainConfig
    spec: TaskSpec
    data_root: str | None
    stages: tuple[str, ...]

    def done(self) -> bool:
        """Whether every network exists.

        Raises:
            ValueError: the folder holds another run.
        """
        if not (self.path / "config.yaml").is_file():
            return False
        adopted_config(self.config, self.path)
        return all((self.path / f"{part}.safetensors").is_file() for part, stage in PARTS.items() if stage in self.stages)

    def seconds(self) -> float | None:
        """Training time from the metrics."""
        if not (self.path / "metrics.jsonl").is_file():
            return None
        last = {line["stage"]: line["seconds"] for line in read_metrics(self.path / "metrics.jsonl")}
        return sum(last.values()) or None

    def perform(self, report: Report) -> str:
        """Train, or resume training."""
        source = data_source(self.task, self.spec, self.data_root)
        config = replace(self.config, data=source)
        if (self.path / "config.yaml").is_file():
            config = adopted_config(config, self.path)
        done, total = dict.fromkeys(self.stages, 0), sum(getattr(config, stage).updates for stage in self.stages)

        def on_log(line: dict[str, Any]) -> None:
            done[line["stage"]] = line["update"]
            report(sum(done.values()) / max(total, 1))

        data = load_cached(source, config.env_id, config.action_low, config.action_high, config.repair, config.mapping)
        policy = load_tilt_policy(self.folder / self.needs[0]) if self.needs else None
        train(config, self.path, stages=self.stages, data=data, policy=policy, quiet=True, on_log=on_log)
        return f"{total} updates"


@dataclass(frozen=True)
class ResultJob(Job):
    """A job that writes one record, PATH.json."""

    @property
    def result(self) -> Path:
        """The file of the record."""
        return self.path.with_name(self.path.name + ".json")

    def done(self) -> bool:
        """Whether the record exists."""
        return self.result.is_file()

    def seconds(self) -> float | None:
        """Wall time from the record."""
        return read_json(self.result, Timed, REMEDY)["wall_seconds"]


@dataclass(frozen=True)
class PlayJob(ResultJob):
    """Plays the episodes of one contestant: plays/CONTESTANT.json."""

    contestant: str
    model: str
    controller: MPCConfig | PlannerConfig | None
    config: PlayConfig
    sampler: Sampler = field(default_factory=Sampler)

    def trained(self) -> Run:
        """The run, with the contestant's world model."""
        run, *models = (self.folder / need for need in self.needs if "/tunings/" not in need)
        return with_sampling(with_dynamics(load_run(run), models[0]) if models else load_run(run), self.sampler)

    def perform(self, report: Report) -> str:
        """Play, and write the record."""
        return self.play(self.controller, report)

    def play(self, controller: MPCConfig | PlannerConfig | None, report: Report, **more: Any) -> str:
        """Play with a controller, and write the record, with `more` entries."""
        trained = self.trained()
        began = time.perf_counter()
        env = open_env(trained, self.config, threads=self.config.threads)
        with contextlib.closing(env), torch_threads(self.config.threads):
            played = play_contestant(trained, controller, self.config, env, progress=report)
            environment = environment_record(env)
        record = self._record(trained) | played | {"environment": environment, "wall_seconds": time.perf_counter() - began}
        write_json(self.result, record | more)
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


@dataclass(frozen=True)
class TuneJob(PlayJob):
    """Races the candidates of a contestant in real episodes: tunings/CONTESTANT/tuning.json."""

    candidates: Mapping[str, MPCConfig] = field(default_factory=dict)
    tuning: TuneConfig = field(default_factory=TuneConfig)

    @property
    def result(self) -> Path:
        """The file of the record; written round by round."""
        return self.path / TUNING

    def done(self) -> bool:
        """Whether the race is over."""
        return self.result.is_file() and self.name in read_tuning_record(self.result)["choice"]

    def seconds(self) -> float | None:
        """None: the race may have been resumed."""
        return None

    def perform(self, report: Report) -> str:
        """Race, or go on with a race."""
        families = {self.name: self.candidates}
        record = tune(self.trained(), self.path, families, self.tuning, self.config, progress=lambda line, share: report(share))
        return f"chose {record['choice'][self.name]['name']}"


@dataclass(frozen=True)
class TunedPlayJob(PlayJob):
    """Plays with the settings that a race chose; as the base policy if it chose none."""

    def perform(self, report: Report) -> str:
        """Play, and write the record with the choice."""
        (tuning,) = (self.folder / need / TUNING for need in self.needs if "/tunings/" in need)
        choice = read_tuning_record(tuning)["choice"][self.contestant]
        controller = None if choice["name"] == BASE else read_mpc_config(choice["controller"])
        return f"{choice['name']}, {self.play(controller, report, choice=choice['name'])}"


@dataclass(frozen=True)
class RehearsalJob(ResultJob):
    """Rehearses the candidates of a contestant in the world model: rehearsals/CONTESTANT.json."""

    candidates: Mapping[str, MPCConfig]
    rehearsal: RehearsalConfig
    config: PlayConfig

    def perform(self, report: Report) -> str:
        """Rehearse, and write the record."""
        began, (own, *others) = time.perf_counter(), self.needs
        runs = {other.split("/")[-2]: load_run(self.folder / other) for other in others}
        record = rehearse_run(
            load_run(self.folder / own), self.candidates, self.rehearsal, self.config, others=runs, progress=report
        )
        identity = {"task": self.task, "seed": self.seed, "contestant": self.name}
        write_json(self.result, identity | record | {"wall_seconds": time.perf_counter() - began})
        return f"chose {record['choice']}"


@dataclass(frozen=True)
class ChosenPlayJob(ResultJob):
    """Copies the episodes of the candidate that a rehearsal chose: plays/CONTESTANT.json.

    The same controller on the same seeds gives the same returns, so nothing has to be played again.
    """

    def seconds(self) -> float | None:
        """None: the recorded wall time is that of the chosen candidate."""
        return None

    def perform(self, report: Report) -> str:
        """Copy the record of the chosen candidate."""
        rehearsal, *plays = (self.folder / f"{need}.json" for need in self.needs)
        choice = read_json(rehearsal, Choice, REMEDY)["choice"]
        by_name = {path.stem: path for path in plays}
        if choice not in by_name:
            raise ValueError(f"{rehearsal}: expected a choice among {', '.join(by_name)}, got {choice!r}; {REMEDY}")
        record = read_json(by_name[choice], dict, REMEDY)
        write_json(self.result, record | {"contestant": self.name, "choice": choice})
        return f"plays as {choice}"


def adopted_config(config: TrainConfig, folder: Path) -> TrainConfig:
    """`config` with the `BOOKKEEPING` settings of the existing run in `folder`, so that it can be resumed as this cell's.

    Raises:
        ValueError: the run was trained with other settings.
    """
    record = read_record(folder)
    own = recorded_config(folder, record)
    kept = replace(config, **{name: getattr(own, name) for name in BOOKKEEPING})
    wrong = [f.name for f in fields(TrainConfig) if getattr(own, f.name) != getattr(kept, f.name)]
    if wrong:
        there, here = ({name: to_dict(getattr(c, name)) for name in wrong} for c in (own, kept))
        raise ValueError(
            f"{folder}: expected a run with this study's settings, got {_differing(there, here)}; move it away, or change the "
            "training settings of the study"
        )
    return kept


def _differing(there: dict[str, Any], here: dict[str, Any]) -> str:
    """The individual settings that differ."""
    found = []
    for name, value in there.items():
        if isinstance(value, dict):
            found += [f"{name}.{k} = {v!r} instead of {here[name][k]!r}" for k, v in value.items() if v != here[name][k]]
        else:
            found.append(f"{name} = {value!r} instead of {here[name]!r}")
    return ", ".join(found)


_loaded: dict[tuple, Transitions] = {}
"""the data set most recently loaded by this process"""


def load_cached(
    source: str,
    env_id: str | None,
    action_low: Bound | None = None,
    action_high: Bound | None = None,
    repair: bool = False,
    mapping: str | None = None,
) -> Transitions:
    """`load` with a cache of one data set, so that consecutive jobs of a worker on the same data load it once."""
    key = source, env_id, action_low, action_high, repair, mapping
    if key not in _loaded:
        _loaded.clear()
        _loaded[key] = load(
            source, env_id=env_id, action_low=action_low, action_high=action_high, repair=repair, mapping=mapping
        )
    return _loaded[key]
