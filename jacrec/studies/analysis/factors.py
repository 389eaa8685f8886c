"""Effects of single settings on the gain, and cross-validated selection of settings."""

from dataclasses import dataclass, replace

import numpy as np

from jacrec.studies.analysis.gains import paired
from jacrec.studies.analysis.read import Study
from jacrec.studies.analysis.settings import LETTERS, differing, label, settings_of, trained_model, value_text
from jacrec.studies.config import BASE, DEFAULT_MODEL

GUARD = "guard"
WORLD_MODEL = "world model"
STEPS = "K"
OWN_FACTORS = {key: LETTERS[key] for key in ("horizon", "particles", "updates", "lr", "carry", "deadline_ms")} | {
    "objective": "objective",
    "step": "step",
}
"""settings that are factors by themselves, with the names of the factors"""
ORDER = ("H", "M", "E", "lr", STEPS, "carry", WORLD_MODEL, GUARD)
CHAIN = {"steps", "levels"}  # settings that determine the number of denoising steps


@dataclass(frozen=True)
class Level:
    """One value of a factor; all other settings equal those of the centre."""

    value: str
    contestant: str
    centre: bool = False


@dataclass(frozen=True)
class Choice:
    """A contestant selected by its mean gain on all training seeds but one, and evaluated on that one."""

    seed: int
    """the held-out training seed"""
    chosen: str
    """the contestant, or the contestants of the tasks separated by commas"""
    gain: float
    """gain over base on the held-out seed, averaged over tasks"""


def factor_of(study: Study, contestant: str, centre: str) -> str | None:
    """The single factor in which two contestants differ; None if they differ in none or several, or are of different kinds.

    All settings that are not in `OWN_FACTORS`, such as trust radius and gradient clip, form one factor, the guard: they keep
    ψ from exploiting a wrong model. World models that differ only in their denoising steps form the factor K.
    """
    ours, theirs = settings_of(study, contestant), settings_of(study, centre)
    if not ours or not theirs:  # contestants that choose their settings have none
        return None
    if ours.get("planner") != theirs.get("planner"):  # different kinds of settings
        return None
    keys = differing(ours, theirs)
    factors = {_factor(study, key, ours, theirs) for key in keys}
    return factors.pop() if len(factors) == 1 else None


def factors(study: Study, centre: str) -> dict[str, list[Level]]:
    """Every factor with at least two values, including the centre's, in the paper's order.

    Numeric values are sorted; otherwise the centre's value comes first.
    """
    found: dict[str, list[Level]] = {}
    for name in study.contestants[1:]:
        factor = None if name == centre else factor_of(study, name, centre)
        if factor is not None:
            found.setdefault(factor, []).append(Level("", name))
    for factor, levels in found.items():
        levels.insert(0, Level("", centre, centre=True))
        keys = _keys(study, [level.contestant for level in levels], centre, factor)
        levels[:] = [replace(level, value=_value(study, level.contestant, keys)) for level in levels]
        levels.sort(key=lambda level, of=factor: _sort_key(study, level.contestant, of))
    rank = {name: i for i, name in enumerate(ORDER)}
    return dict(sorted(found.items(), key=lambda item: rank.get(item[0], len(ORDER))))


def centre_of(study: Study, main: str) -> str:
    """The contestant with a world model from which most others differ in a single factor; `main` in case of a tie."""
    able = [c for c in study.contestants[1:] if settings_of(study, c).get("horizon", 0) > 0]
    counts = {c: sum(map(len, factors(study, c).values())) for c in [main, *able]}
    return max(counts, key=lambda c: counts[c])


def differ_in_several(study: Study, centre: str) -> list[str]:
    """Contestants that do not differ from the centre in exactly one factor."""
    return [c for c in study.contestants[1:] if c != centre and factor_of(study, c, centre) is None]


def leave_one_seed_out(study: Study, *, per_task: bool = False) -> list[Choice]:
    """For every training seed, the contestant that is best on the other seeds, evaluated on this seed; [] with one seed.

    The best of several contestants is overestimated if the same episodes select and evaluate it; cross-validation avoids that.
    Contestants that lack a scored task or seed, or that rehearse, are not candidates.

    Args:
        per_task: select a contestant for each task separately.
    """
    table = {c: _gain_table(study, c) for c in study.contestants[1:] if settings_of(study, c)}
    complete = {c: gain for c, gain in table.items() if gain is not None}
    if not complete or len(study.seeds) < 2:
        return []
    names, gain = list(complete), np.stack(list(complete.values()))  # (contestants, tasks, seeds)
    choices = []
    for i, seed in enumerate(study.seeds):
        others = np.delete(gain, i, axis=2).mean(2)  # (contestants, tasks)
        if per_task:
            best = others.argmax(0)
            held_out = float(np.mean([gain[b, t, i] for t, b in enumerate(best)]))
            chosen = ", ".join(dict.fromkeys(names[b] for b in best))
        else:
            b = int(others.mean(1).argmax())
            held_out, chosen = float(gain[b, :, i].mean()), names[b]
        choices.append(Choice(seed, chosen, held_out))
    return choices


def _gain_table(study: Study, contestant: str) -> np.ndarray | None:
    """Mean paired gain over base, (tasks, seeds); None if a cell is missing or no task has scores."""
    rows = []
    for task in study.scored_tasks:
        gain = paired(study, task, contestant, BASE)
        if gain is None or gain.seeds != tuple(sorted(study.seeds)):
            return None
        by_seed = dict(zip(gain.seeds, (float(x.mean()) for x in gain.runs), strict=True))
        rows.append([by_seed[s] for s in study.seeds])
    return np.array(rows) if rows else None


def _factor(study: Study, key: str, ours: dict, theirs: dict) -> str:
    if key == "model":
        changed = _model_changes(study, ours["model"]) ^ _model_changes(study, theirs["model"])
        return STEPS if {name for name, _ in changed} <= CHAIN else WORLD_MODEL
    return OWN_FACTORS.get(key, GUARD)


def _model_changes(study: Study, model: str) -> set[tuple[str, str]]:
    name = trained_model(model)
    own = set() if name == DEFAULT_MODEL else {(k, repr(v)) for k, v in study.config.models[name].items()}
    return own | ({("levels", model)} if name != model else set())


def _keys(study: Study, names: list[str], centre: str, factor: str) -> list[str]:
    """The settings that make up a factor; more than one only for the guard."""
    if factor in (WORLD_MODEL, STEPS):
        return ["model"]
    if factor != GUARD:
        return [key for key, name in OWN_FACTORS.items() if name == factor]
    return list(dict.fromkeys(k for n in names for k in differing(settings_of(study, n), settings_of(study, centre))))


def _value(study: Study, contestant: str, keys: list[str]) -> str:
    own = settings_of(study, contestant)
    if len(keys) == 1:
        return value_text(study, keys[0], own[keys[0]])
    return ", ".join(f"{label(k)} {value_text(study, k, own[k])}" for k in keys)


def _sort_key(study: Study, contestant: str, factor: str) -> float:
    own = settings_of(study, contestant)
    key = next((key for key, name in OWN_FACTORS.items() if name == factor), None)
    value = own[key] if key else None
    if factor == STEPS:
        models = study.config.models
        task = study.tasks[0]
        config = study.config.model_config(task, 0, own["model"]) if own["model"] in models else None
        dynamics = (config or study.config.train_config(task, 0)).dynamics
        value = len(dynamics.levels) if dynamics.levels else dynamics.steps
    return float(value) if isinstance(value, int | float) else 0.0
