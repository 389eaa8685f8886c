"""Studies as YAML: reading a spec, writing the resolved study, and comparing studies."""

from collections.abc import Mapping
from dataclasses import fields, replace
from fnmatch import fnmatch
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from jacrec.control.controller import MPCConfig
from jacrec.data.yaml_file import read_yaml
from jacrec.evaluation.config import PlayConfig
from jacrec.evaluation.rehearsal import RehearsalConfig
from jacrec.evaluation.tuning import TuneConfig
from jacrec.experimental.config import current_settings
from jacrec.models.dynamics.flow import without_solver
from jacrec.planners import PlannerConfig
from jacrec.planners.budget import spent_on
from jacrec.studies.config import DEFAULT_MODEL, ContestantSpec, StudyConfig, TaskSpec, default_training
from jacrec.studies.contestants import contestant_to_yaml, controller_to_yaml, parse_contestants, parse_controller
from jacrec.studies.parse import build, build_mpc, expect_known, expect_mapping
from jacrec.training.config import DynamicsConfig, TrainConfig, to_dict
from jacrec.training.run import STAGES
from jacrec.util.errors import expect_seed
from jacrec.util.files import user_path, write_text

FILE = "study.yaml"
OWN_FILES = ("cells", "log.jsonl", ".lock", ".workers.lock*", f"{FILE}.part")
"""patterns of what a study's folder may contain before study.yaml is written"""
EXTENSIBLE = ("tasks", "seeds", "models", "contestants")
"""parts to which a study may add entries between two sweeps"""
NOT_IN_TRAINING = {"data": "the task's `data`", "seed": "the study's `seeds`", "env_id": "the task's `env_id`"}
"""settings that do not belong in `training`, and where they belong"""


def packaged_specs() -> list[str]:
    """The names of the specs included in the package, e.g. "table-1"."""
    return sorted(p.name.removesuffix(".yaml") for p in _packaged().iterdir() if p.name.endswith(".yaml"))


def find_spec(name: str) -> Path:
    """The file of a spec, given as a path, the folder of a study, or the name of a packaged spec.

    Raises:
        FileNotFoundError: it is none of these.
    """
    path = user_path(name)
    if path.is_file():
        return path
    if (path / FILE).is_file():
        return path / FILE
    if name in packaged_specs():
        return Path(str(_packaged() / f"{name}.yaml"))
    raise FileNotFoundError(
        f"{name}: expected the path of a study.yaml, the folder of a study, or one of "
        f"{', '.join(packaged_specs())}; got none of these"
    )


def read_spec(path: str | Path) -> StudyConfig:
    """Read a study from a YAML file.

    Raises:
        ValueError: invalid YAML, or unknown, ill-typed or inconsistent settings.
    """
    path = user_path(path)
    return parse_study(read_yaml(path, "correct it"), path.name)


def read_study_config(folder: str | Path) -> StudyConfig:
    """The definition of the study in a folder.

    Raises:
        FileNotFoundError: no study there.
    """
    path = user_path(folder) / FILE
    if not path.is_file():
        raise FileNotFoundError(f"no study at {folder} (it has no {FILE}); start one with `jacrec sweep SPEC --out {folder}`")
    return read_spec(path)


def parse_study(content: Any, where: str = FILE) -> StudyConfig:
    """Build a study from the content of its YAML file; omitted settings take their defaults.

    Args:
        where: name of the file, for error messages.

    Raises:
        ValueError: unknown, ill-typed or inconsistent settings.
    """
    content = expect_mapping(content, where)
    expect_known(content, [*(f.name for f in fields(StudyConfig)), "training"], where)
    for name in ("name", "tasks"):
        if not content.get(name):
            raise ValueError(f"{where}: expected {name}, got none")
    common = expect_mapping(content.get("training"), f"{where}: training")
    models = _models(content.get("models"), f"{where}: models")
    own = parse_contestants(content.get("contestants"), models, f"{where}: contestants")
    tasks = content["tasks"]
    if isinstance(tasks, list):
        tasks = dict.fromkeys(tasks)
    study = StudyConfig(
        name=str(content["name"]),
        tasks={
            name: _task(name, task, common, own, f"{where}: tasks.{name}")
            for name, task in expect_mapping(tasks, f"{where}: tasks").items()
        },
        seeds=_seeds(content.get("seeds", StudyConfig.seeds), f"{where}: seeds"),
        stages=_stages(content.get("stages", STAGES), own, f"{where}: stages"),
        models=models,
        evaluation=build(PlayConfig, content.get("evaluation"), f"{where}: evaluation"),
        contestants=own,
        rehearsal=build(RehearsalConfig, content.get("rehearsal"), f"{where}: rehearsal"),
        tuning=build(TuneConfig, content.get("tuning"), f"{where}: tuning"),
        about=_text(content.get("about", ""), f"{where}: about"),
        data_root=content.get("data_root"),
    )
    for name in (study.name, *study.tasks, *study.contestants, *study.models):
        if "/" in name or name.startswith("."):
            raise ValueError(f"{where}: expected names usable as folder names, got {name!r}; avoid slashes and a leading dot")
    if any(contestant.tune for contestant in own.values()) and study.tuning.seed == study.evaluation.seed:
        raise ValueError(f"{where}: tuning.seed: expected another seed than the evaluation's, got {study.tuning.seed} for both")
    for name in study.contestants:
        for task in study.tasks:
            study.evaluation.allow(study.controller(task, name) or MPCConfig(), f"{where}: contestants.{name}")
            for candidate in study.contestants[name].rehearse:
                if getattr(study.controller(task, candidate), "deadline_ms", None) is not None:
                    raise ValueError(
                        f"{where}: contestants.{name}.rehearse: expected candidates without deadline_ms, got {candidate}; a "
                        "rehearsal must not depend on the clock"
                    )
    return study


def to_yaml(study: StudyConfig) -> dict[str, Any]:
    """The study with all settings resolved; `parse_study` restores it independently of later defaults."""
    return {
        "name": study.name,
        "about": study.about,
        "data_root": study.data_root,
        "seeds": list(study.seeds),
        "stages": list(study.stages),
        "evaluation": to_dict(study.evaluation),
        "models": {name: {"dynamics": {k: to_dict(v) for k, v in own.items()}} for name, own in study.models.items()},
        "rehearsal": to_dict(study.rehearsal),
        "tuning": to_dict(study.tuning),
        "contestants": {name: contestant_to_yaml(own) for name, own in study.contestants.items()},
        "tasks": {name: _task_to_yaml(task) for name, task in study.tasks.items()},
    }


def expect_same_study(study: StudyConfig, folder: Path) -> None:
    """Check that `folder` is new or holds this study; tasks, seeds, models and contestants may have been added.

    Raises:
        ValueError: it holds another study, or something else.
    """
    if (folder / FILE).is_file():
        changed = differences(to_yaml(read_study_config(folder)), to_yaml(study))
        if changed:
            raise ValueError(
                f"{folder}: expected a new folder or one of the same study, got another study: {'; '.join(changed)}. Choose "
                f"another folder (--out), or resume that study: jacrec sweep {folder}. Tasks, seeds, models and contestants can "
                "be added but not changed or removed; use --only to sweep a part of them"
            )
    elif folder.exists() and (not folder.is_dir() or any(not _own(x.name) for x in folder.iterdir())):
        raise ValueError(f"{folder}: expected a new or empty folder or a study, got something else; choose another folder")


def _own(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in OWN_FILES)


def write_study(study: StudyConfig, folder: Path) -> None:
    """Write the resolved study to `folder`/study.yaml."""
    write_text(folder / FILE, yaml.safe_dump(to_yaml(study), sort_keys=False, allow_unicode=True))


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """The differences that make `here` another study than `there`; additions are not among them."""
    found: list[str] = []
    gone = [seed for seed in there["seeds"] if seed not in here["seeds"]]
    found += [f"seeds: {gone} there, not here"] if gone else []
    used = [part for part, key in (("rehearsal", "rehearse"), ("tuning", "tune")) if _any_has(key, there["contestants"])]
    for part in ("name", "stages", "evaluation", *used):
        found += _changes(there[part], here[part], part)
    for part in EXTENSIBLE:
        if part != "seeds":
            for name, own in there[part].items():
                if name not in here[part]:
                    found.append(f"{part}.{name}: there, not here")
                else:
                    found += _changes(own, here[part][name], f"{part}.{name}")
    return found


def _any_has(key: str, contestants: Mapping[str, Any]) -> bool:
    return any(key in own for own in contestants.values())


def _changes(there: Any, here: Any, where: str) -> list[str]:
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        return [x for key in dict.fromkeys([*there, *here]) for x in _changes(there.get(key), here.get(key), f"{where}.{key}")]
    return [] if there == here else [f"{where} = {there!r} there, {here!r} here"]


def _text(content: Any, where: str) -> str:
    if not isinstance(content, str):
        raise ValueError(f"{where}: expected a string, got {content!r}")
    return " ".join(content.split())


def _task(
    name: str, content: Any, common: Mapping[str, Any], contestants: Mapping[str, ContestantSpec], where: str
) -> TaskSpec:
    content = expect_mapping(content, where)
    expect_known(content, [f.name for f in fields(TaskSpec)], where)
    data, env_id = content.get("data"), content.get("env_id")
    for key, value in (("data", data), ("env_id", env_id)):
        if not isinstance(value, str | None):
            raise ValueError(f"{where}.{key}: expected a string, got {value!r}")
    own = expect_mapping(content.get("training"), f"{where}.training")
    for settings, place in ((common, "training"), (own, f"{where}.training")):
        for key, home in NOT_IN_TRAINING.items():
            if key in settings:
                raise ValueError(f"{place}.{key}: expected no such setting, got {settings[key]!r}; use {home} instead")
    settings = to_dict(default_training(name, data))
    for layer in (common, own):
        settings = _merged(settings, layer)
    tuned = expect_mapping(content.get("contestants"), f"{where}.contestants")
    expect_known(tuned, contestants, f"{where}.contestants")
    for who in tuned:
        if contestants[who].chooses:
            instead = f"; set {', '.join(contestants[who].rehearse)} instead" if contestants[who].rehearse else ""
            raise ValueError(
                f"{where}.contestants.{who}: expected a contestant with its own controller, got one that rehearses or tunes"
                + instead
            )
    changed = {who: _overridden(contestants[who].controller, x, f"{where}.contestants.{who}") for who, x in tuned.items()}
    data = None if data is None else data.replace("{task}", name)
    return TaskSpec(data, env_id, replace(build(TrainConfig, settings, f"{where}.training"), data=data or name), changed)


def _overridden(controller: MPCConfig | PlannerConfig, content: Any, where: str) -> MPCConfig | PlannerConfig:
    """A contestant's controller with a task's settings in place of its own."""
    content = expect_mapping(content, where)
    if isinstance(controller, MPCConfig):
        below, content = to_dict(controller), current_settings(content, where)
        return build_mpc(_merged(below, content), where)
    own = {k: v for k, v in controller.settings.items() if "budget" not in content or k != spent_on(controller.planner)}
    return parse_controller(own | content, where)


def _task_to_yaml(task: TaskSpec) -> dict[str, Any]:
    training = {k: v for k, v in to_dict(task.training).items() if k not in NOT_IN_TRAINING}
    return {
        "data": task.data,
        "env_id": task.env_id,
        "training": training,
        "contestants": {who: controller_to_yaml(own) for who, own in task.contestants.items()},
    }


def _models(content: Any, where: str) -> dict[str, dict[str, Any]]:
    found = {}
    for name, own in expect_mapping(content, where).items():
        own = expect_mapping(own, f"{where}.{name}")
        expect_known(own, ["dynamics"], f"{where}.{name}")
        changes = expect_mapping(own.get("dynamics"), f"{where}.{name}.dynamics")
        if name == DEFAULT_MODEL or not changes:
            raise ValueError(
                f"{where}.{name}: expected a name other than {DEFAULT_MODEL} (the model trained with the policy) and "
                f"dynamics: {{settings that differ}}, got {own}"
            )
        config = build(DynamicsConfig, changes, f"{where}.{name}.dynamics")
        found[name] = {key: getattr(config, key) for key in without_solver(changes, f"{where}.{name}.dynamics")}
    return found


def _seeds(content: Any, where: str) -> tuple[int, ...]:
    seeds = content if isinstance(content, list | tuple) else [content]
    if not seeds or any(type(s) is not int for s in seeds) or len(set(seeds)) != len(seeds):
        raise ValueError(f"{where}: expected a list of distinct integers, got {content!r}")
    for seed in seeds:
        expect_seed(where, seed)
    return tuple(seeds)


def _stages(content: Any, contestants: Mapping[str, Any], where: str) -> tuple[str, ...]:
    stages = tuple(content) if isinstance(content, list | tuple) else (content,)
    expect_known(stages, STAGES, where)
    if contestants and set(stages) != set(STAGES):
        raise ValueError(f"{where}: expected {', '.join(STAGES)}, which contestants need, got {', '.join(stages)}")
    return tuple(stage for stage in STAGES if stage in stages)


def _merged(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `overrides`, merged recursively."""
    merged = dict(base)
    for key, value in overrides.items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if nested else value
    return merged


def _packaged() -> Any:
    return resources.files("jacrec.studies").joinpath("specs")
