"""The records of evaluations and rehearsals: what they hold, and how they differ from those that would continue them."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from jacrec.training.folder import differences
from jacrec.util import locks
from jacrec.util.files import read_json


class Thinking(TypedDict):
    """The summary of a controller's probe."""

    probe_steps: list[list[int]]
    objective: dict[str, list[list[float | None]]]
    mean_objective: dict[str, float | None]
    mean_drift: float | None
    mean_action_change: float
    updates: int
    rejected: int


class Played(TypedDict):
    """The episodes of one contestant (`jacrec.evaluation.episodes.EpisodeLog`)."""

    seeds: list[int]
    returns: list[float]
    scores: list[float] | None
    lengths: list[int]
    decisions: int
    seconds: float
    thinking: NotRequired[Thinking | None]
    controller: NotRequired[dict[str, Any] | None]


class TimedPlay(Played):
    """The episodes of one contestant of an evaluation."""

    wall_seconds: float


class EvaluationSettings(TypedDict):
    """What is read of an evaluation's settings."""

    episodes: int
    rows: int | None
    mpc: dict[str, Any]


class Environment(TypedDict):
    """What is read of the record of an environment."""

    id: str


class Growth(TypedDict):
    """Quartiles of the growth of the Jacobian."""

    states: int
    low: list[float]
    median: list[float]
    high: list[float]


class ImaginedRecord(TypedDict):
    """Imagined episodes of one candidate of a rehearsal."""

    returns: list[float]
    lengths: list[int]
    lost: int


class RehearsalSettings(TypedDict):
    """Settings of a rehearsal."""

    episodes: int
    steps: int
    confidence: float
    consistency: NotRequired[float]
    least_gain: float
    data_range: float


class Rehearsed(TypedDict):
    """What every record of a rehearsal has."""

    choice: str
    settings: RehearsalSettings
    termination: bool
    episodes: dict[str, ImaginedRecord]
    others: NotRequired[dict[str, dict[str, ImaginedRecord]]]
    networks: dict[str, str]


class RehearsalRecord(Rehearsed):
    """The content of rehearsal.json."""

    controllers: dict[str, dict[str, Any]]


class TuningSettings(TypedDict):
    """What is read of a race's settings."""

    seed: int
    families: dict[str, dict[str, dict[str, Any]]]


class TunedFamily(TypedDict):
    """What a race decided for a family of candidates."""

    name: str
    controller: dict[str, Any]
    last: str
    gain: dict[str, float]
    episodes: int
    ranking: list[dict[str, float]]


class TuningRecord(TypedDict):
    """The content of tuning.json."""

    settings: TuningSettings
    networks: dict[str, str]
    environment: Environment
    unit: str
    played: dict[str, dict[str, list[float]]]
    choice: dict[str, TunedFamily]


class EvaluationRecord(TypedDict):
    """The content of evaluation.json."""

    settings: EvaluationSettings
    rehearsal: NotRequired[RehearsalRecord | None]
    tuning: NotRequired[dict[str, TunedFamily] | None]
    networks: dict[str, str]
    environment: Environment
    versions: dict[str, Any]
    machine: dict[str, Any]
    growth: Growth | None
    contestants: dict[str, TimedPlay]


def only_one(folder: Path, what: str) -> AbstractContextManager[None]:
    """Keep a second evaluation, rehearsal or tuning out of a folder, which is made if there is none.

    Raises:
        ValueError: on entry, if there is one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    busy = ValueError(f"{folder}: expected no running {what} there, got one; wait for it, or choose another folder (--out)")
    return locks.locked(folder / f".{what}.lock", busy)


def read_evaluation_record(path: Path) -> dict[str, Any]:
    """The record in an evaluation.json.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or another file.
    """
    remedy = "correct it, or play again: jacrec eval RUN --again"
    record = read_json(path, EvaluationRecord, remedy)
    growth, episodes = record["growth"], record["settings"]["episodes"]
    if growth is not None:
        names = ("low", "median", "high")
        _expect_lengths({f"growth.{name}": growth[name] for name in names}, len(growth["median"]), path, remedy)
    for who, played in record["contestants"].items():
        lists = {f"contestants.{who}.{name}": played[name] for name in ("seeds", "returns", "lengths", "scores")}
        _expect_lengths({name: values for name, values in lists.items() if values is not None}, episodes, path, remedy)
        _expect_probes(played.get("thinking"), f"contestants.{who}.thinking", path, remedy)
    return record


def _expect_probes(thinking: Mapping[str, Any] | None, where: str, path: Path, remedy: str) -> None:
    if thinking is None:
        return
    steps, objective = thinking["probe_steps"], thinking["objective"]
    if steps and not objective.keys() >= {"pretrained", "before", "after"}:
        raise ValueError(
            f"{path}: expected pretrained, before, after at {where}.objective, got {', '.join(objective)}; {remedy}"
        )
    lists = {f"{where}.objective.{name}": rows for name, rows in objective.items() if rows or steps}
    _expect_lengths(lists, len(steps), path, remedy)
    rows = {f"{name}[{i}]": row for name, own in lists.items() for i, row in enumerate(own)}
    for i, step in enumerate(steps):
        _expect_lengths({name: row for name, row in rows.items() if name.endswith(f"[{i}]")}, len(step), path, remedy)


def _expect_lengths(lists: Mapping[str, list], count: int, path: Path, remedy: str) -> None:
    for name, values in lists.items():
        if len(values) != count:
            raise ValueError(f"{path}: expected {count} values at {name}, got {len(values)}; {remedy}")


def read_rehearsal_record(path: Path) -> dict[str, Any]:
    """The record in a rehearsal.json.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or another file.
    """
    remedy = "correct it, or rehearse again: jacrec rehearse RUN --again"
    record = read_json(path, RehearsalRecord, remedy)
    if record["choice"] != "base" and record["choice"] not in record["controllers"]:
        raise ValueError(f"{path}: expected the choice among the controllers, got {record['choice']!r}; {remedy}")
    return record


def read_tuning_record(path: Path) -> dict[str, Any]:
    """The record in a tuning.json.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or another file.
    """
    return read_json(path, TuningRecord, "correct it, or tune again: jacrec tune RUN --again")


def record_differences(old: Mapping[str, Any], new: Mapping[str, Any], *, ignored: tuple[str, ...] = ()) -> list[str]:
    """The individual settings and networks that differ, each as "part.key: value there, value here".

    Args:
        old: a record with "settings" and "networks".
        new: the same; settings that only `old` has are not compared.
        ignored: settings that may differ.
    """
    found = []
    for part in ("settings", "networks"):
        there = {name: value for name, value in old[part].items() if name in new[part]}
        for key, (a, b) in differences(there, new[part]).items():
            if key.partition(".")[0] not in ignored:
                found.append(f"{part}.{key}: {a} there, {b} here")
    return found
