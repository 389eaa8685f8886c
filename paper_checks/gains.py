"""Does MPC beat its own base policy? Paired gains with intervals, per data set and on average, from a finished study.

`python paper_checks/gains.py STUDY` writes the answer to results/gains.md and results/gains.json.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import tyro
import yaml
from record import RESULTS, command, readable_json, without_paths, write
from tyro.conf import Positional

from jacrec.evaluation.markdown import Sheet, bullet_list, key_values
from jacrec.evaluation.rehearsal_tables import margin
from jacrec.evaluation.results import interval
from jacrec.evaluation.versions import versions
from jacrec.studies.analysis import study_plots, study_tables
from jacrec.studies.analysis.factors import centre_of, differ_in_several, factors, leave_one_seed_out
from jacrec.studies.analysis.gains import HARM, Average, aggregate, average_gain, paired
from jacrec.studies.analysis.hierarchy import t_over_seeds
from jacrec.studies.analysis.paper_tables import DASH, mean_std, seeds_episodes
from jacrec.studies.analysis.paper_values import is_d4rl
from jacrec.studies.analysis.read import Study, read_study
from jacrec.studies.analysis.rehearsal_accuracy import (
    agreement,
    choices,
    findings,
    predicted_gains_record,
    regret,
    rehearsal_note,
)
from jacrec.studies.analysis.runs import data_of
from jacrec.studies.analysis.settings import control_of, describe, main_contestant, rehearsed_contestants, without_world_model
from jacrec.studies.analysis.study_report import gains_record, sentence
from jacrec.studies.config import BASE
from jacrec.studies.spec import to_yaml

POINTS = "points of normalised score"


def main(study: Positional[Path], contestant: str | None = None, level: float = 0.95, out: Path | None = None) -> Path:
    """Write gains.md, gains.json and, for contestants that rehearse, plots; the path of gains.md.

    Args:
        study: the study's folder
        contestant: the contestant in question (default: mpc, default, or the first with a world model)
        level: confidence level of the intervals
        out: folder of the results (default: paper_checks/results)

    Raises:
        ValueError: there is no contestant besides base, or no paired scores.
    """
    found = read_study(study)
    name = main_contestant(found, contestant)
    if name is None:
        raise ValueError(f"{study}: expected a contestant besides the base policy, got none")
    gain = average_gain(found, name, level=level)
    if gain is None:
        raise ValueError(
            f"{study}: expected normalised scores of {name} and the base policy on a common task and seed, got none"
        )
    made_by = command("gains.py", study, *(["--contestant", contestant] if contestant else []))
    folder = out or RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    sections = [
        _question(found, name),
        _answer(found, name, gain, level),
        _per_set(found, name, level),
        _choice(found, level),
        _rehearsals(found, folder, level),
        _factors(found, name, level),
        _others(found, name, level),
        _how(found, level),
        _missing(found),
        _settings(found),
    ]
    path = write("gains.md", "Does MPC beat its own base policy?", made_by, [without_paths(s) for s in sections], folder)
    record = {
        "command": made_by,
        "contestant": name,
        "study": _spec(found),
        "versions": _versions(found),
        "machine": _machines(found),
        "written_with": versions(),
        **gains_record(found, level=level),
        "scores": _scores(found),
        "rehearsals": predicted_gains_record(found),
        "gaps": [[g.task, g.seed, g.what, g.state] for g in found.gaps],
    }
    (folder / "gains.json").write_text(readable_json(record) + "\n", encoding="utf-8")
    print(f"{sections[1]}\n\nwritten to {out or 'paper_checks/results'}: {path.name} and gains.json")
    return path


def _question(study: Study, name: str) -> str:
    data = [str(data_of(study, task).get("path", "")) for task in study.tasks]
    source = "D4RL's own files" if all(map(is_d4rl, data)) else "data that are not D4RL's own files (listed below)"
    seeds = ", ".join(map(str, study.seeds))
    control = control_of(study, name)
    h0 = f"**{control[0]}**, the control without a world model, {describe(study, control[0])}; " if control else ""
    return (
        f"Study {study.config.name}: {len(study.tasks)} data sets × {len(study.seeds)} training seeds ({seeds}), on {source}. "
        f"Compared are **base**, the ReBRAC policy as trained; {h0}and **{name}**, {describe(study, name)}. Scores are percent "
        "(0 the reference's random policy, 100 its expert), of the last evaluation."
        + (f"\n\n{study.config.about}" if study.config.about else "")
    )


def _answer(study: Study, name: str, gain: Average, level: float) -> str:
    sets = f"{POINTS} on average over {len(gain.gains)} sets"
    lines = [sentence(gain.estimate, f"**{name}**", "its base policy", sets) + f" Student's t: {study_tables.finite(gain.t)}."]
    above = [g for g in gain.gains if g.estimate.low > 0]
    both = [g for g in above if g.t.low > 0]
    below = [g for g in gain.gains if g.estimate.high < 0]
    lines.append(
        f"Per set: {len(above)} of {len(gain.gains)} gain beyond noise by the bootstrap, {len(both)} by Student's t "
        f"too; {len(below)} lose beyond noise."
    )
    lines.append(study_tables.harm(gain))
    total = aggregate(study, name, level=level)
    if total and total.improvement:
        p = total.improvement
        lines.append(
            f"Probability that a run of {name} scores above an independent run of base: {p.mean:.2f} "
            f"[{p.low:.2f}, {p.high:.2f}]."
        )
    lines += _world_model(study, name, level)
    lines.append(study_tables.few_seeds(study))
    return f"## Answer\n\n{bullet_list(lines)}"


def _world_model(study: Study, name: str, level: float) -> list[str]:
    """The gain over the controls without a world model."""
    control, lines = control_of(study, name), []
    if control is None:
        return ["What the world model adds is not known: the study has no contestant with H = 0."]
    own = f"its control {control[0]}" + (f" (which also differs in {', '.join(control[1])})" if control[1] else "")
    averages = {c: average_gain(study, c, level=level) for c in without_world_model(study)}
    alone = averages[control[0]]
    if alone is not None:
        lines.append(f"Without a world model, {control[0]} gains {interval(alone.estimate, signed=True)} over base.")
    over = average_gain(study, name, control[0], level=level)
    if over is not None:
        lines.append(
            "What the world model adds: "
            + sentence(over.estimate, f"**{name}**", own, POINTS)
            + f" Student's t: {study_tables.finite(over.t)}."
        )
        lines.append(rehearsal_note(study, control[0]))
    best = max((c for c, a in averages.items() if a), key=lambda c: averages[c].estimate.mean, default=None)  # pyright: ignore[reportOptionalMemberAccess]
    if best is not None and best != control[0]:
        over = average_gain(study, name, best, level=level)
        lines.append(
            f"Against the best of the {len(averages)} contestants without a world model, selected in hindsight "
            f"({best}): {interval(over and over.estimate, signed=True)}."
        )
    return lines


def _per_set(study: Study, name: str, level: float) -> str:
    control = control_of(study, name)
    h0 = [control[0]] if control else []
    names = [BASE, *h0, name]
    pairs = [(name, BASE), *((c, BASE) for c in h0), *((name, c) for c in h0)]
    head = ["set", *names, *(text for a, b in pairs for text in (f"{a} − {b}", "t")), "seeds × episodes"]
    rows = []
    for task in study.tasks:
        differences = [paired(study, task, a, b, level=level) for a, b in pairs]
        cells = [
            text for d in differences for text in (interval(d and d.estimate, signed=True), study_tables.finite(d and d.t))
        ]
        rows.append([task, *(mean_std(study, task, c) for c in names), *cells, seeds_episodes(study, task, [name])])
    averages = [average_gain(study, a, b, level=level) for a, b in pairs]
    cells = [text for a in averages for text in (interval(a and a.estimate, signed=True), study_tables.finite(a and a.t))]
    rows.append(["average", *(study_tables.average_score(study, c) for c in names), *cells, DASH])
    note = (
        f"Scores: mean ± standard deviation over training seeds. Differences are paired; in brackets their {level:.0%} "
        "interval by hierarchical bootstrap, under t by Student's t over training seeds."
    )
    adds = "".join(f" The column {name} − {c} is what the world model adds." for c in h0)
    return "## Per set\n\n" + Sheet(head, rows, [note + adds]).markdown()


def _choice(study: Study, level: float) -> str:
    """The gain to be expected of a selected setting, by cross-validation over training seeds."""
    lines = []
    for per_task, how in ((False, "one setting for all sets"), (True, "a setting per set")):
        choices = leave_one_seed_out(study, per_task=per_task)
        if not choices:
            continue
        t = t_over_seeds([np.array([c.gain]) for c in choices], level=level)
        picks = "; ".join(f"seed {c.seed}: {c.chosen} {c.gain:+.1f}" for c in choices)
        lines.append(f"{how}: {t.mean:+.1f} {study_tables.finite(t)} (Student's t over seeds). Selected: {picks}.")
    if not lines:
        return ""
    return (
        "## Selecting a setting\n\nThe best of many settings is overestimated if the same episodes select and evaluate it. Here "
        "each training seed is evaluated with the setting that was best on the other seeds. Average gain over base:\n\n"
        + bullet_list(lines)
    )


def _rehearsals(study: Study, folder: Path, level: float) -> str:
    """Whether imagined gains predict real gains."""
    parts = []
    for name in rehearsed_contestants(study):
        sheets = [choices(study, name), agreement(study, name), regret(study, name, level=level)]
        lines = bullet_list([*findings(study, name), rehearsal_note(study, name)])
        plot = folder / f"gains_rehearsal_{name}.png"
        drawn = f"![imagined and real gains]({plot.name})" if study_plots.predicted_against_real(study, name, plot) else ""
        texts = [f"### {name}", *(sheet.markdown() for sheet in sheets if sheet), lines, drawn]
        parts.append("\n\n".join(text for text in texts if text))
    if not parts:
        return ""
    own = study.config.rehearsal
    return (
        "## Do rehearsals predict real gains?\n\nBefore it plays, a contestant that rehearses lets its candidates and the base "
        f"policy play {own.episodes} imagined episodes of at most {own.steps} steps in the world model, from reset states and "
        f"with the same noise. It plays as the candidate with the largest gain minus {margin(own, own.episodes)}, if that "
        f"exceeds {own.least_gain:.0%} of the base policy's imagined return, otherwise as the base policy.\n\n"
        + "\n\n".join(parts)
    )


def _factors(study: Study, name: str, level: float) -> str:
    centre = centre_of(study, name)
    found = factors(study, centre)
    if not found:
        return ""
    parts = [
        f"### {factor}\n\n{study_tables.factor(study, factor, levels, level=level).markdown()}"
        for factor, levels in found.items()
    ]
    return (
        f"## One factor at a time\n\nMean gain over base, all other settings as in {centre} ({describe(study, centre)}), whose "
        "value is in bold.\n\n" + "\n\n".join(parts)
    )


def _others(study: Study, name: str, level: float) -> str:
    rest = differ_in_several(study, centre := centre_of(study, name))
    if not rest:
        return ""
    rows = []
    for c in rest:
        gain = average_gain(study, c, level=level)
        worst = DASH if gain is None else f"{gain.worst.task} {interval(gain.worst.estimate, signed=True)}"
        against = None if c == name else average_gain(study, c, name, level=level)
        rows.append(
            [
                c,
                describe(study, c, centre),
                interval(gain and gain.estimate, signed=True),
                study_tables.finite(gain and gain.t),
                interval(against and against.estimate, signed=True),
                study_tables.finite(against and against.t),
                worst,
                study_tables.cost_text(study, c),
            ]
        )
    head = [
        "contestant",
        f"differs from {centre} in",
        "gain over base",
        "t",
        f"difference to {name}",
        "t",
        "worst set",
        "ms / decision",
    ]
    return "## Several factors at once\n\n" + Sheet(head, rows).markdown()


def _how(study: Study, level: float) -> str:
    return (
        "## How to read this\n\n"
        "* Paired: both sides of a difference have the same training seed (the same policy, critic, world model and reward "
        "model) and the same environment seed (the same initial state).\n"
        f"* {level:.0%} intervals by hierarchical bootstrap draw training seeds with replacement, then episodes within each; "
        "averages over sets give each set the same weight, and sets are not drawn: the intervals apply to these sets, not to "
        "others.\n"
        "* Student's t uses one number per training seed; for an average over sets the variances add up, with degrees of "
        "freedom by Welch and Satterthwaite. The coverage of 95% intervals with 3 seeds × 10 episodes was simulated (Gaussian; "
        "jacrec/studies/analysis/hierarchy.py): for an average over 12 sets, the bootstrap covers the truth in 85% of studies if "
        "trainings vary three times as much as episodes, and in 95% if it is the other way round; Student's t in 95% and 96%.\n"
        f"* Worse than {HARM:+g} beyond noise means that the whole bootstrap interval lies below {HARM:+g}. An interval that is "
        "too narrow makes this verdict stricter, not milder. There is no correction for the number of sets or settings: at this "
        f"level about one comparison in {round(1 / (1 - level))} shows a difference where there is none.\n"
        "* ms / decision is the controller's time per action, measured while the study ran."
    )


def _missing(study: Study) -> str:
    sheet = study_tables.gaps(study)
    return f"## Missing, failed or not comparable\n\nNot included above.\n\n{sheet.markdown()}" if sheet else ""


def _settings(study: Study) -> str:
    rows = [
        ["played with", key_values(*_versions(study))],
        ["machine", key_values(*_machines(study))],
        ["written with", key_values(versions())],
    ]
    spec = yaml.safe_dump(_spec(study), sort_keys=False, allow_unicode=True)
    return (
        f"## Data, versions, settings\n\n{study_tables.data(study).markdown()}\n\n{Sheet(['part', 'values'], rows).markdown()}\n\n"
        f"<details><summary>study.yaml, resolved</summary>\n\n```yaml\n{spec}```\n\n</details>"
    )


def _spec(study: Study) -> dict[str, Any]:
    """study.yaml without the paths of this machine."""
    spec = to_yaml(study.config)
    spec.pop("data_root", None)
    return json.loads(without_paths(json.dumps(spec)))


def _versions(study: Study) -> list[dict[str, Any]]:
    return _distinct([p.record["versions"] for p in study.plays.values()])


def _machines(study: Study) -> list[dict[str, Any]]:
    return _distinct([p.record["machine"] for p in study.plays.values()])


def _distinct(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return list({json.dumps(r, sort_keys=True): r for r in records}.values())


def _scores(study: Study) -> dict[str, Any]:
    """All episodes: task -> contestant -> training seed -> scores (or returns) in order of environment seeds."""
    return {
        task: {
            c: {str(s): [round(float(x), 2) for x in run] for s, run in study.runs(task, c).items()} for c in study.contestants
        }
        for task in study.tasks
    }


if __name__ == "__main__":
    tyro.cli(main)
