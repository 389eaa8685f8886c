"""Studies of D4RL's tasks on data made here instead of downloaded: the same kinds, not the same data."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import NamedTuple

from jacrec.data.behaviour.make import ANTMAZE, behaviour_of, default_id, make_dataset
from jacrec.data.d4rl_files import ANTMAZE as ANTMAZE_FILES
from jacrec.data.d4rl_files import D4RL_FILES, LOCOMOTION
from jacrec.data.readers.minari import dataset_path, read_metadata
from jacrec.studies.config import StudyConfig, TaskSpec
from jacrec.training.config import published_name

STEPS = 1_000_000
"""transitions of most of D4RL's sets"""


class MadeData(NamedTuple):
    """What `jacrec data make` is asked for."""

    env: str
    kind: str
    behaviour: str | None
    id: str


def made_data(task: str, spec: TaskSpec) -> MadeData | None:
    """The data made in place of one of D4RL's sets; None for a task with other data."""
    name = published_name(task) if spec.data is None else spec.data
    if name not in D4RL_FILES:
        return None
    if name in ANTMAZE_FILES:
        kind = name.removeprefix("antmaze-").removesuffix("-v2")
        return MadeData(ANTMAZE, kind, None, default_id(ANTMAZE, kind))
    env = next(env for env in LOCOMOTION if name.startswith(env))
    kind = name.removeprefix(f"{env}-").removesuffix("-v2")
    behaviour = behaviour_of(env, kind, None if kind == "random" else "sac")
    return MadeData(env, kind, behaviour, default_id(env, kind, behaviour))


def with_made_data(study: StudyConfig) -> StudyConfig:
    """The study, named NAME-made, with made data in place of D4RL's; training settings stay those published for D4RL's.

    Raises:
        ValueError: no task of it is one of D4RL's.
    """
    tasks = dict(study.tasks)
    for task, spec in study.tasks.items():
        made = made_data(task, spec)
        if made is not None:
            tasks[task] = replace(spec, data=made.id, training=replace(spec.training, data=made.id))
    if tasks == dict(study.tasks) and study.name.endswith("-made"):  # it has been made
        return study
    if tasks == dict(study.tasks):
        raise ValueError(f"{study.name}: expected tasks of D4RL, whose data can be made, got {', '.join(tasks)}")
    return replace(study, name=f"{study.name}-made", tasks=tasks)


def make_missing(study: StudyConfig, tasks: set[str], steps: int, say: Callable[[str], None]) -> None:
    """Make the data sets of these tasks of a study, as D4RL's, that do not exist yet; from seed 0.

    Raises:
        ValueError: as `make_dataset`, or a set that exists is of another size.
    """
    for task in sorted(tasks):
        made = made_data(task, study.tasks[task])
        if made is None:
            continue
        if not (dataset_path(made.id) / "data").exists():
            say(f"making {made.id}: {steps} steps")
            with suppress(FileExistsError):  # another sweep may have made it meanwhile
                make_dataset(made.env, made.kind, steps=steps, behaviour=made.behaviour)
        have = read_metadata(made.id)["total_steps"]
        if have != steps:
            raise ValueError(
                f"{made.id}: expected {steps} steps, got a set of {have}; sweep with --made-steps {have}, or make it anew: "
                f"jacrec data make {made.env} {made.kind}{' --behaviour sac' if made.behaviour else ''} --steps {steps} --overwrite"
            )
