"""What tells contestants apart: their settings, the control of each, and the one factor in which two differ."""

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
UNMEANT = ("method", "seed")  # settings that are no part of what a contestant is
WITHOUT_MODEL = ("horizon", "particles", "model")  # what a contestant without a world model does not have
CANDIDATES = "candidates"  # in what a contestant that rehearses differs from others


def candidates_of(study: Study, contestant: str) -> tuple[str, ...]:
    """Among whom a contestant's rehearsal chooses, cell by cell; () for one with a controller of its own."""
    return () if contestant == BASE else study.config.contestants[contestant].rehearse


def choosers(study: Study) -> list[str]:
    """The contestants that a rehearsal in the world model chooses."""
    return [name for name in study.contestants[1:] if candidates_of(study, name)]


def settings_of(study: Study, contestant: str) -> dict[str, Any]:
    """The fields of MPCConfig and ExperimentalConfig, or those a planner uses, and "model", as the study sets them for all tasks.

    {} for base, and for one that rehearses.
    """
    if contestant == BASE or candidates_of(study, contestant):
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
    """Tasks on which a contestant has settings of its own."""
    return [name for name, task in study.config.tasks.items() if contestant in task.contestants]


def differing(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Names of the settings in which two contestants differ; at H = 0 neither M nor the model counts."""
    without_model = 0 in (ours["horizon"], theirs["horizon"])
    ignored = UNMEANT + (WITHOUT_MODEL[1:] if without_model else ())
    return [key for key in {**theirs, **ours} if key not in ignored and ours.get(key) != theirs.get(key)]


def without_world_model(study: Study) -> list[str]:
    """The contestants that act by ascent on the critic alone: with H = 0, or chosen among such ones.

    The rehearsal that chooses one of them does use the world model.
    """
    return [name for name in study.contestants[1:] if not thinks_ahead(study, name)]


def thinks_ahead(study: Study, contestant: str) -> bool:
    """Whether a contestant imagines in a world model when it acts, or may be one that does."""
    own = candidates_of(study, contestant) or (contestant,)
    return contestant != BASE and any(settings_of(study, name)["horizon"] > 0 for name in own)


def control_of(study: Study, contestant: str) -> tuple[str, list[str]] | None:
    """The H = 0 contestant nearest in its other settings, and the names of those in which it differs; None without any.

    Of a contestant that rehearses it is one that rehearses, and the other way round, where there is one.
    """
    if not thinks_ahead(study, contestant):
        return None
    rehearses = bool(candidates_of(study, contestant))
    alike = [name for name in without_world_model(study) if bool(candidates_of(study, name)) == rehearses]
    found = [(name, _unlike(study, contestant, name)) for name in alike or without_world_model(study)]
    return min(found, key=lambda pair: len(pair[1]), default=None)


def _unlike(study: Study, contestant: str, control: str) -> list[str]:
    """In what a control differs from a contestant, H apart."""
    ours, theirs = settings_of(study, contestant), settings_of(study, control)
    if not ours or not theirs:
        return [CANDIDATES]
    return [k for k in differing(ours, theirs) if k != "horizon"]


def main_contestant(study: Study, name: str | None = None) -> str | None:
    """The contestant that the tables lead with: the named one, else "mpc", "default", or the first with a world model.

    None where nobody plays besides the base policy.

    Raises:
        ValueError: no such contestant.
    """
    players = study.contestants[1:]
    if name is not None:
        if name not in players:
            raise ValueError(f"contestant: expected one of {', '.join(players) or 'none'}, got {name!r}")
        return name
    with_model = [c for c in players if thinks_ahead(study, c)]
    return next((c for c in ("mpc", "default") if c in players), None) or next(iter(with_model or players), None)


def model_text(study: Study, model: str) -> str:
    """What a world model, named as by `settings_of`, is: "diffusion, K = 10", with its levels where not all are visited."""
    name = trained_model(model)
    kinds = dict.fromkeys(
        _model_kind(
            study.config.model_config(task, 0, name) if name in study.config.models else study.config.train_config(task, 0)
        )
        for task in study.tasks
    )
    return " or ".join(kinds)


def trained_model(model: str) -> str:
    """Which of a study's world models "model" of `settings_of` is, however it is sampled."""
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
    """The settings in a line: all that matter, or those in which it differs from another contestant of its kind."""
    ours = settings_of(study, contestant)
    if against is not None and ours.get("planner") != settings_of(study, against).get("planner"):
        against = None
    if contestant == BASE:
        return "policy as trained"
    if not ours:
        among = ", ".join(candidates_of(study, contestant))
        across = study.config.contestants[contestant].across_seeds
        where = " in the world models of all training seeds" if across else ""
        return f"rehearsed{where}: {among} or base, chosen cell by cell"
    if against is None or not settings_of(study, against):
        keys = [k for k in LETTERS if ours.get(k) is not None and not (ours["horizon"] == 0 and k in WITHOUT_MODEL[1:])]
        keys += [k for k, v in ours.items() if k not in LETTERS and k not in UNMEANT and v != _default(k)]
    else:
        keys = differing(ours, settings_of(study, against))
    text = ", ".join(f"{label(k)} {value_text(study, k, ours.get(k))}" for k in keys) or "the same"
    tuned = tuned_tasks(study, contestant)
    return text + (f"; set differently for {', '.join(tuned)}" if tuned else "")


def label(key: str) -> str:
    """A setting's name in tables: the paper's letter where there is one."""
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
