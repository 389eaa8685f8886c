"""The contestants of a study as YAML: reading and writing their settings."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from jacrec.control.controller import MPCConfig
from jacrec.models.dynamics.sampler import Sampler
from jacrec.planners import PlannerConfig, within_budget
from jacrec.planners.budget import spent_on
from jacrec.planners.config import expect_used
from jacrec.studies.config import BASE, DEFAULT_MODEL, ContestantSpec
from jacrec.studies.parse import build, build_mpc, expect_known, expect_mapping
from jacrec.training.config import to_dict


def parse_contestants(content: Any, models: Mapping[str, Any], where: str) -> dict[str, ContestantSpec]:
    """The contestants by name.

    Raises:
        ValueError: unknown, ill-typed or inconsistent settings.
    """
    found = {}
    for name, own in expect_mapping(content, where).items():
        if name == BASE:
            raise ValueError(
                f"{where}: expected a name other than {BASE}, the policy as trained, which always plays; got {name}"
            )
        own = expect_mapping(own, f"{where}.{name}")
        if "rehearse" in own:
            found[name] = _rehearsing(name, own, content, where)
            continue
        if "tune" in own:
            found[name] = _tuning(own, models, f"{where}.{name}")
            continue
        model = _model(own, models, f"{where}.{name}")
        sampler = build(Sampler, own.pop("dynamics", {}), f"{where}.{name}.dynamics")
        found[name] = ContestantSpec(model, parse_controller(own, f"{where}.{name}"), sampler)
    return found


def contestant_to_yaml(own: ContestantSpec) -> dict[str, Any]:
    """The inverse for one contestant, with all settings."""
    if own.rehearse:
        return {"rehearse": list(own.rehearse), "across_seeds": own.across_seeds}
    sampler = {"dynamics": {k: to_dict(v) for k, v in own.dynamics.changes.items()}} if own.dynamics.changes else {}
    if own.tune:
        return {"model": own.model, **sampler, "tune": {name: to_dict(each) for name, each in own.tune.items()}}
    return {"model": own.model, **sampler, **controller_to_yaml(own.controller)}


def parse_controller(own: Mapping[str, Any], where: str) -> MPCConfig | PlannerConfig:
    """A planner if `planner` is set, otherwise MPC."""
    own = dict(own)
    if "planner" not in own:
        if own.get("horizon") == 0:
            own.setdefault("particles", 1)  # at H = 0 all particles are identical
        return build_mpc(own, where)
    expect_known(own, [*(f.name for f in fields(PlannerConfig)), "budget"], where)
    budget = own.pop("budget", None)
    try:
        expect_used(own["planner"], own)
    except ValueError as error:
        raise ValueError(f"{where}.{error}") from None
    planner = build(PlannerConfig, own, where)
    if budget is None:
        return planner
    if spent_on(planner.planner) in own:
        raise ValueError(f"{where}: expected either budget or {spent_on(planner.planner)}, which budget determines, got both")
    try:
        return within_budget(planner, budget)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def controller_to_yaml(own: MPCConfig | PlannerConfig) -> dict[str, Any]:
    """All settings of a controller."""
    return own.settings if isinstance(own, PlannerConfig) else to_dict(own)


def _model(own: dict[str, Any], models: Mapping[str, Any], where: str) -> str:
    """The contestant's world model, taken out of its settings."""
    model = own.pop("model", DEFAULT_MODEL)
    if model not in (DEFAULT_MODEL, *models):
        raise ValueError(f"{where}.model: expected one of {', '.join((DEFAULT_MODEL, *models))}, got {model!r}")
    return model


def _tuning(own: dict[str, Any], models: Mapping[str, Any], where: str) -> ContestantSpec:
    """A contestant whose settings are tuned."""
    model = _model(own, models, where)
    sampler = build(Sampler, own.pop("dynamics", {}), f"{where}.dynamics")
    candidates = expect_mapping(own.pop("tune"), f"{where}.tune")
    if own or not candidates or BASE in candidates:
        raise ValueError(
            f"{where}: expected tune: {{name: {{settings of MPC}}}} with names other than {BASE}, optionally model and "
            f"dynamics, and no other setting, got {[*own, *candidates]}"
        )
    found = {}
    for name, settings in candidates.items():
        controller = parse_controller(expect_mapping(settings, f"{where}.tune.{name}"), f"{where}.tune.{name}")
        if not isinstance(controller, MPCConfig) or controller.deadline_ms is not None:
            raise ValueError(f"{where}.tune.{name}: expected settings of MPC without deadline_ms, got {settings}")
        found[name] = controller
    return ContestantSpec(model, dynamics=sampler, tune=found)


def _rehearsing(name: str, own: Mapping[str, Any], contestants: Mapping[str, Any], where: str) -> ContestantSpec:
    """A contestant that rehearses other contestants."""
    named = own["rehearse"]
    others = {other: expect_mapping(o, f"{where}.{other}") for other, o in contestants.items()}
    excluded = {"rehearse", "planner", "dynamics"}
    able = [other for other, o in others.items() if not o.keys() & excluded and o.get("model", DEFAULT_MODEL) == DEFAULT_MODEL]
    valid = isinstance(named, list) and bool(named) and all(x in able and named.count(x) == 1 for x in named)
    across = own.get("across_seeds", False)
    if set(own) - {"rehearse", "across_seeds"} or not valid or not isinstance(across, bool):
        raise ValueError(
            f"{where}.{name}: expected rehearse: [names of MPC contestants with the default model], optionally "
            f"across_seeds: true, and no other setting, got {dict(own)}; available are {', '.join(able)}"
        )
    return ContestantSpec(rehearse=tuple(named), across_seeds=across)
