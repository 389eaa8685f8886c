"""What share of a contestant's gain is kept at what share of its cost? From a finished study, with decisions timed anew.

`python paper_checks/cost_gain.py STUDY --units CONTESTANT ...`, on an otherwise idle machine, writes the answer to
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
from jacrec.studies.analysis import study_plots
from jacrec.studies.analysis.paper_tables import DASH
from jacrec.studies.analysis.pareto import Share, decision_times, pareto_front, shares
from jacrec.studies.analysis.read import Study, read_study
from jacrec.studies.analysis.settings import describe

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
    """Time all contestants and write tables, record and plot; the path of the tables.

    Args:
        study: the study's folder
        units: reference contestants, whose gain and cost count as 100%
        tasks: a subset of the sets on which shares are reported too; shares are undefined on sets without a gain
        threads: torch threads (default: torch's current setting)
        level: confidence level of the intervals
        out: folder of the results (default: paper_checks/results)
    """
    found, folder = read_study(study), out or RESULTS
    times = decision_times(found, found.contestants[1:], threads=threads)
    used, plot = threads or torch.get_num_threads(), folder / "cost_gain.png"
    folder.mkdir(parents=True, exist_ok=True)
    sections, record = [_about(found, units)], {}
    for chosen in (None, *([list(tasks)] if tasks else [])):
        rows = {unit: shares(found, unit, times, tasks=chosen, keep=GAIN, level=level) for unit in units}
        first = rows[units[0]]
        best = pareto_front({r.contestant: (r.milliseconds.median, r.gain.mean) for r in first})
        scope = "all sets" if chosen is None else ", ".join(chosen)
        answer = "\n".join(f"* {_answer(r, unit)}" for unit, r in rows.items())
        sections += [f"## {scope}", answer, _table(found, rows, best)]
        print(f"{scope}\n{answer}\n")
        record[scope] = {"front": best, **{unit: [asdict(r) for r in r] for unit, r in rows.items()}}
    study_plots.cost_against_gain(
        found,
        [r.contestant for r in first],
        plot,
        times={k: (t.median, t.low, t.high) for k, t in times.items()},
        of=f"one environment, {used} threads; median, 20th and 80th percentile",
        tasks=list(tasks) or None,
        level=level,
    )
    options = ["--units", *units, *(["--tasks", *tasks] if tasks else []), *(["--threads", str(threads)] if threads else [])]
    made_by = command("cost_gain.py", study, *options)
    sections.append(f"![gain against cost]({plot.name})")
    path = write(
        "cost_gain.md",
        "How much of the gain is kept at a fraction of the cost?",
        made_by,
        [without_paths(s) for s in sections],
        folder,
    )
    result = {"command": made_by, "machine": machine(), "versions": versions(), "threads": used, "sets": record}
    (folder / "cost_gain.json").write_text(readable_json(result) + "\n", encoding="utf-8")
    print(f"written to {out or 'paper_checks/results'}: {path.name}")
    return path


def _about(study: Study, units: Sequence[str]) -> str:
    about = f" {study.config.about}" if study.config.about else ""
    references = "; ".join(f"**{unit}** is {describe(study, unit)}" for unit in units)
    return (
        f"Study {study.config.name}: {len(study.tasks)} data sets × training seeds {', '.join(map(str, study.seeds))}, "
        f"{study.config.evaluation.episodes} episodes each.{about} Shares are relative to {references}. Gains are points of "
        "normalised score over the run's own base policy, paired by environment seed. Times are per decision of a single "
        "environment, measured sequentially on the machine named in the record."
    )


def _answer(rows: list[Share], unit: str) -> str:
    goal = f"at least {GAIN:.0%} of {unit}'s gain at no more than {COST:.0%} of its cost per decision"
    if all(r.of_gain is None for r in rows):
        undefined = f"Goal, {goal}: shares are undefined, since {unit}'s own gain is not significant here."
        significant = [r for r in rows if r.of_cost <= COST and r.beyond and r.beyond.low > 0 and r.gain.low > 0]
        if not significant:
            return f"{undefined} No contestant at that cost has a significant gain."
        names = "; ".join(f"**{r.contestant}** {interval(r.beyond, signed=True)} at {r.of_cost:.1%}" for r in significant)
        return (
            f"{undefined} These have a significant gain and, paired, exceed {GAIN:.0%} of {unit}'s gain by the given number of "
            f"points: {names}."
        )
    enough = [r for r in rows if r.of_gain is not None and r.of_gain >= GAIN]
    cheap = [r for r in enough if r.of_cost <= COST]
    if cheap:
        names = "; ".join(f"**{r.contestant}** {r.of_gain:.0%} at {r.of_cost:.1%}" for r in cheap)
        return f"Goal, {goal}: reached by {names}."
    if not enough:
        return f"Goal, {goal}: NOT reached; no contestant keeps {GAIN:.0%} of the gain."
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
    return Sheet(head, body, ["Bold: on the Pareto front. A differentiated transition counts twice."]).markdown()


if __name__ == "__main__":
    tyro.cli(main)
