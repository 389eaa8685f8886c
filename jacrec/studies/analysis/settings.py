"""Settings of contestants, the control of each, and the differences between them."""

from dataclasses import asdict
from typing import Any

from jacrec.control.config import MPCConfig
from jacrec.experimental.config import ExperimentalConfig, experimental_of
from jacrec.planners import PlannerConfig
from jacrec.studies.analysis.read import Study
from jacrec.studies.config import BASE
from jacrec.training.config import TrainConfig

LETTERS = {
    "planner": "planner",
    "horizon": "H",
    "particles": "M",
    "updates": "E",
    "lr": "lr",
    "carry": "carry",
    "model": "world model",
    "max_grad_norm": "gradient clip",
    "trust_radius": "trust radius",
    "deadline_ms": "deadline",
}
IGNORED = ("method", "seed")  # settings that do not distinguish contestants
WITHOUT_MODEL = ("horizon", "particles", "terminal", "model")  # settings without meaning for a contestant without a world model
CANDIDATES = "candidates"  # the difference of contestants that rehearse


def candidates_of(study: Study, contestant: str) -> tuple[str, ...]:
    """The candidates of a contestant that rehearses; () for a contestant with its own controller."""
    return () if contestant == BASE else study.config.contestants[contestant].rehearse


def rehearsing_contestants(study: Study) -> list[str]:
    """The contestants that rehearse."""
    return [name for name in study.contestants[1:] if candidates_of(study, name)]


def rehearsed_contestants(study: Study) -> list[str]:
    """The contestants with at least one finished rehearsal."""
    finished = {name for _, _, name in study.rehearsals}
    return [name for name in rehearsing_contestants(study) if name in finished]


def settings_of(study: Study, contestant: str) -> dict[str, Any]:
    """The settings of a contestant's controller, and "model", as set for all tasks; {} for base and those that choose."""
    if contestant == BASE or study.config.contestants[contestant].chooses:
        return {}
    own = study.config.contestants[contestant]
    if isinstance(own.controller, PlannerConfig):
        settings = own.controller.settings
    else:
        settings = {k: v for k, v in asdict(own.controller).items() if k != "experimental"}
        settings |= asdict(experimental_of(own.controller))
    sampled = "".join(f", {name} {value}" for name, value in own.dynamics.changes.items())
    return settings | {"model": own.model + sampled}


def tuned_tasks(study: Study, contestant: str) -> list[str]:
    """Tasks on which a contestant has other settings."""
    return [name for name, task in study.config.tasks.items() if contestant in task.contestants]


def differing(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Names of the settings in which two contestants differ; M and the model are ignored at H = 0."""
    without_model = 0 in (ours["horizon"], theirs["horizon"])
    ignored = IGNORED + (WITHOUT_MODEL[1:] if without_model else ())
    return [key for key in {**theirs, **ours} if key not in ignored and ours.get(key) != theirs.get(key)]


def without_world_model(study: Study) -> list[str]:
    """The contestants that only ascend the critic: those with H = 0, or with only such candidates.

    Their rehearsals, if any, still use the world model.
    """
    return [name for name in study.contestants[1:] if not uses_world_model(study, name)]


def uses_world_model(study: Study, contestant: str) -> bool:
    """Whether a contestant, or one of its candidates, uses a world model when it acts."""
    tuned = {} if contestant == BASE else study.config.contestants[contestant].tune
    if tuned:
        return any(own.horizon > 0 for own in tuned.values())
    names = candidates_of(study, contestant) or (contestant,)
    return contestant != BASE and any(settings_of(study, name)["horizon"] > 0 for name in names)


def control_of(study: Study, contestant: str) -> tuple[str, list[str]] | None:
    """The H = 0 contestant with the most similar settings, and the other settings in which it differs; None if there is none.

    The control of a contestant that rehearses or is tuned is chosen in the same way, if possible, and vice versa.
    """
    if not uses_world_model(study, contestant):
        return None
    same_kind = [name for name in without_world_model(study) if _way(study, name) == _way(study, contestant)]
    found = [(name, _other_differences(study, contestant, name)) for name in same_kind or without_world_model(study)]
    return min(found, key=lambda pair: len(pair[1]), default=None)


def _way(study: Study, contestant: str) -> tuple[bool, bool]:
    """Whether a contestant rehearses, and whether it is tuned."""
    own = study.config.contestants[contestant]
    return bool(own.rehearse), bool(own.tune)


def _other_differences(study: Study, contestant: str, control: str) -> list[str]:
    """The settings other than H in which a control differs from a contestant."""
    ours, theirs = settings_of(study, contestant), settings_of(study, control)
    if not ours or not theirs:
        return [CANDIDATES]
    return [k for k in differing(ours, theirs) if k != "horizon"]


def main_contestant(study: Study, name: str | None = None) -> str | None:
    """The featured contestant: `name`, else "mpc", "default", or the first with a world model; None if there is only base.

    Raises:
        ValueError: there is no such contestant.
    """
    players = study.contestants[1:]
    if name is not None:
        if name not in players:
            raise ValueError(f"contestant: expected one of {', '.join(players) or 'none'}, got {name!r}")
        return name
    with_model = [c for c in players if uses_world_model(study, c)]
    return next((c for c in ("mpc", "default") if c in players), None) or next(iter(with_model or players), None)


def model_text(study: Study, model: str) -> str:
    """Description of a world model named as in `settings_of`, e.g. "diffusion, K = 10"."""
    name = trained_model(model)
    kinds = dict.fromkeys(
        _model_kind(
            study.config.model_config(task, 0, name) if name in study.config.models else study.config.train_config(task, 0)
        )
        for task in study.tasks
    )
    return " or ".join(kinds)


def trained_model(model: str) -> str:
    """The trained world model behind "model" of `settings_of`, without its sampling settings."""
    return model.partition(", ")[0]


def _model_kind(config: TrainConfig) -> str:
    own = config.dynamics
    steps = "" if own.sampling_steps is None else f", {own.sampling_steps} steps"
    text = {
        "diffusion": f"diffusion, K = {own.steps}" + (f", levels {list(own.levels)}" if own.levels else ""),
        "flow": f"flow{steps}",
        "meanflow": f"MeanFlow{steps}",
        "ensemble": f"ensemble of {own.members}",
        "multistep": f"multi-step, H = {own.horizon}",
    }.get(own.kind, own.kind)
    return text + (f", tilt {own.tilt:g}" if own.tilt else "")


def describe(study: Study, contestant: str, against: str | None = None) -> str:
    """The settings in one line: all relevant ones, or only the differences to another contestant of the same kind."""
    ours = settings_of(study, contestant)
    if against is not None and ours.get("planner") != settings_of(study, against).get("planner"):
        against = None
    if contestant == BASE:
        return "policy as trained"
    if not ours and study.config.contestants[contestant].tune:
        among = len(study.config.contestants[contestant].tune)
        return f"tuned: one of {among} settings or base, chosen cell by cell by {study.config.tuning.budget} real episodes"
    if not ours:
        among = ", ".join(candidates_of(study, contestant))
        across = study.config.contestants[contestant].across_seeds
        where = " in the world models of all training seeds" if across else ""
        return f"rehearsed{where}: {among} or base, chosen cell by cell"
    if against is None or not settings_of(study, against):
        keys = [k for k in LETTERS if ours.get(k) is not None and not (ours["horizon"] == 0 and k in WITHOUT_MODEL[1:])]
        keys += [k for k, v in ours.items() if k not in LETTERS and k not in IGNORED and v != _default(k)]
    else:
        keys = differing(ours, settings_of(study, against))
    text = ", ".join(f"{label(k)} {value_text(study, k, ours.get(k))}" for k in keys) or "the same"
    tuned = tuned_tasks(study, contestant)
    return text + (f"; set differently for {', '.join(tuned)}" if tuned else "")


def label(key: str) -> str:
    """A setting's name in tables: the paper's letter if there is one."""
    return LETTERS.get(key, key.replace("_", " "))


def value_text(study: Study, key: str, value: Any) -> str:
    """A setting's value in tables."""
    if key == "model":
        return f"{value} ({model_text(study, value)})"
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else str(value)


def _default(key: str) -> Any:
    return (asdict(MPCConfig()) | asdict(ExperimentalConfig())).get(key)
