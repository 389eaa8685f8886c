"""What share of a contestant's gain is left for what share of its cost? A finished study, its decisions timed again.

Run `python paper_checks/cost_gain.py STUDY --units CONTESTANT ...` on a machine without other work; it keeps the answer in
results/cost_gain.md, cost_gain.json and cost_gain.png.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
import tyro
from record import RESULTS, command, readable_json, without_paths, write
from tyro.conf import Positional

from jacrec.evaluation.markdown import Sheet
from jacrec.evaluation.results import interval
from jacrec.evaluation.versions import machine, versions
from jacrec.planners import model_calls
from jacrec.studies.analysis import plots
from jacrec.studies.analysis.pareto import Share, decision_times, front, shares
from jacrec.studies.analysis.read import Study, read_study
from jacrec.studies.analysis.settings import describe
from jacrec.studies.analysis.tables import DASH

GAIN, COST = 0.8, 0.1
"""the goal: this share of a unit's gain at this share of its cost"""


def main(
    study: Positional[Path],
    units: tuple[str, ...],
    tasks: tuple[str, ...] = (),
    threads: int | None = None,
    level: float = 0.95,
    out: Path | None = None,
) -> Path:
    """Time every contestant and write tables, record and picture; the path of the tables.

    Args:
        study: the study's folder
        units: contestants whose gain and cost are one
        tasks: sets to take the shares on as well, beside those on all sets: where there is no gain, there is no share of it
        threads: of torch; all that it takes unless told
        level: of the intervals
        out: another folder for the results than paper_checks/results
    """
    found, folder = read_study(study), out or RESULTS
    times = decision_times(found, found.contestants[1:], threads=threads)
    used, picture = threads or torch.get_num_threads(), folder / "cost_gain.png"
    folder.mkdir(parents=True, exist_ok=True)
    sections, record = [_about(found, units)], {}
    for chosen in (None, *([list(tasks)] if tasks else [])):
        rows = {unit: shares(found, unit, times, tasks=chosen, keep=GAIN, level=level) for unit in units}
        first = rows[units[0]]
        best = front({r.contestant: (r.milliseconds.median, r.gain.mean) for r in first})
        told = "all sets" if chosen is None else ", ".join(chosen)
        answer = "\n".join(f"* {_answer(r, unit)}" for unit, r in rows.items())
        sections += [f"## {told}", answer, _table(found, rows, best)]
        print(f"{told}\n{answer}\n")
        record[told] = {"front": best, **{unit: [asdict(r) for r in r] for unit, r in rows.items()}}
    plots.cost_against_gain(
        found,
        [r.contestant for r in first],
        picture,
        times={k: (t.median, t.low, t.high) for k, t in times.items()},
        of=f"one environment, {used} threads; median, 20th and 80th percentile",
        tasks=list(tasks) or None,
        level=level,
    )
    options = ["--units", *units, *(["--tasks", *tasks] if tasks else []), *(["--threads", str(threads)] if threads else [])]
    made_by = command("cost_gain.py", study, *options)
    sections.append(f"![gain against cost]({picture.name})")
    path = write(
        "cost_gain.md",
        "What is left of the gain at a fraction of the cost?",
        made_by,
        [without_paths(s) for s in sections],
        folder,
    )
    kept = {"command": made_by, "machine": machine(), "versions": versions(), "threads": used, "sets": record}
    (folder / "cost_gain.json").write_text(readable_json(kept) + "\n", encoding="utf-8")
    print(f"kept in {out or 'paper_checks/results'}: {path.name}")
    return path


def _about(study: Study, units: Sequence[str]) -> str:
    about = f" {study.config.about}" if study.config.about else ""
    meant = "; ".join(f"**{unit}** is {describe(study, unit)}" for unit in units)
    return (
        f"Study {study.config.name}: {len(study.tasks)} data sets × training seeds {', '.join(map(str, study.seeds))}, "
        f"{study.config.evaluation.episodes} episodes each.{about} Shares are of {meant}. Gains are points of normalised "
        "score over the run's own base policy, paired by environment seed; times are of one environment's decisions, "
        "answered one after the other on the machine named in the record."
    )


def _answer(rows: list[Share], unit: str) -> str:
    goal = f"at least {GAIN:.0%} of {unit}'s gain at no more than {COST:.0%} of its cost per decision"
    if all(r.of_gain is None for r in rows):
        told = f"Goal, {goal}: no share can be told, since {unit}'s own gain is not clear of zero here."
        sure = [r for r in rows if r.of_cost <= COST and r.beyond and r.beyond.low > 0 and r.gain.low > 0]
        if not sure:
            return f"{told} Nobody at that cost gains anything for sure."
        who = "; ".join(f"**{r.contestant}** {interval(r.beyond, signed=True)} at {r.of_cost:.1%}" for r in sure)
        return f"{told} Paired, these gain for sure, and more than {GAIN:.0%} of what {unit} gains, by so many points: {who}."
    enough = [r for r in rows if r.of_gain is not None and r.of_gain >= GAIN]
    good = [r for r in enough if r.of_cost <= COST]
    if good:
        told = "; ".join(f"**{r.contestant}** {r.of_gain:.0%} at {r.of_cost:.1%}" for r in good)
        return f"Goal, {goal}: reached by {told}."
    if not enough:
        return f"Goal, {goal}: NOT reached; nobody keeps {GAIN:.0%} of the gain."
    nearest = min(enough, key=lambda r: r.of_cost)
    return (
        f"Goal, {goal}: NOT reached; the cheapest that keeps {GAIN:.0%} of the gain is **{nearest.contestant}**, "
        f"{nearest.of_gain:.0%} at {nearest.of_cost:.1%}."
    )


def _table(study: Study, rows: dict[str, list[Share]], best: list[str]) -> str:
    head = ["contestant", "settings", "transitions per decision", "gain over base", "ms / decision"]
    for unit in rows:
        head += [f"difference to {unit}", "share of its gain", "share of its cost"]
    body = []
    for of_units in zip(*rows.values(), strict=True):
        r = of_units[0]
        name = f"**{r.contestant}**" if r.contestant in best else r.contestant
        calls = str(model_calls(study.config.contestants[r.contestant].controller))
        line = [name, describe(study, r.contestant), calls, interval(r.gain, signed=True), f"{r.milliseconds.median:.3g}"]
        for share in of_units:
            of_gain = DASH if share.of_gain is None else f"{share.of_gain:.0%}"
            line += [interval(share.left, signed=True), of_gain, f"{share.of_cost:.1%}"]
        body.append(line)
    return Sheet(head, body, ["Bold: nobody gains more for less. A differentiated transition counts twice."]).markdown()


if __name__ == "__main__":
    tyro.cli(main)
