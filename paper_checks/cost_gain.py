"""What share of a contestant's gain is left for what share of its cost? A finished study, its decisions timed again.

Run `python paper_checks/cost_gain.py STUDY --unit CONTESTANT` on a machine without other work; it keeps the answer in
results/cost_gain.md, cost_gain.json and cost_gain.png.
"""

from dataclasses import asdict
from pathlib import Path

import torch
import tyro
from record import RESULTS, command, readable_json, without_paths, write
from tyro.conf import Positional

from jacrec.study.markdown import Sheet
from jacrec.study.planners import model_calls
from jacrec.study.results import interval
from jacrec.study.summary import plots
from jacrec.study.summary.pareto import Share, decision_times, front, shares
from jacrec.study.summary.read import Study, read_study
from jacrec.study.summary.settings import describe
from jacrec.study.summary.tables import DASH
from jacrec.study.versions import machine, versions

GAIN, COST = 0.8, 0.1
"""the goal: this share of the unit's gain at this share of its cost"""


def main(study: Positional[Path], unit: str, threads: int | None = None, level: float = 0.95, out: Path | None = None) -> Path:
    """Time every contestant and write the table, the record and the picture; the table's path.

    Args:
        study: the study's folder
        unit: the contestant whose gain and cost are one
        threads: of torch; all that it takes unless told
        level: of the intervals
        out: another folder for the results than paper_checks/results
    """
    found, folder = read_study(study), out or RESULTS
    names = found.contestants[1:]
    times = decision_times(found, names, threads=threads)
    rows = shares(found, unit, times, level=level)
    folder.mkdir(parents=True, exist_ok=True)
    picture = folder / "cost_gain.png"
    used = threads or torch.get_num_threads()
    plots.cost_against_gain(
        found, [r.contestant for r in rows], picture, times={k: (t.median, t.low, t.high) for k, t in times.items()},
        of=f"one environment, {used} threads; median, 20th and 80th percentile", level=level,
    )  # fmt: skip
    best = front({r.contestant: (r.milliseconds.median, r.gain.mean) for r in rows})
    made_by = command("cost_gain.py", study, "--unit", unit)
    sections = [_about(found, unit), _answer(rows, unit), _table(found, rows, best), f"![gain against cost]({picture.name})"]
    path = write("cost_gain.md", "What is left of the gain at a fraction of the cost?", made_by,
                 [without_paths(s) for s in sections], folder)  # fmt: skip
    record = {"command": made_by, "unit": unit, "machine": machine(), "versions": versions(), "threads": used,
              "contestants": [asdict(r) for r in rows], "front": best}  # fmt: skip
    (folder / "cost_gain.json").write_text(readable_json(record) + "\n", encoding="utf-8")
    print(f"{sections[1]}\n\nkept in {out or 'paper_checks/results'}: {path.name}, cost_gain.json, {picture.name}")
    return path


def _about(study: Study, unit: str) -> str:
    about = f" {study.config.about}" if study.config.about else ""
    return (f"Study {study.config.name}: {len(study.tasks)} data sets × training seeds {', '.join(map(str, study.seeds))}, "
            f"{study.config.evaluation.episodes} episodes each.{about} The unit is **{unit}**, {describe(study, unit)}. Gains "
            "are points of normalised score over the run's own base policy, paired by environment seed; times are of one "
            "environment's decisions, answered one after the other on the machine named in the record.")  # fmt: skip


def _answer(rows: list[Share], unit: str) -> str:
    good = [r for r in rows if r.of_gain is not None and r.of_gain >= GAIN and r.of_cost <= COST]
    goal = f"at least {GAIN:.0%} of {unit}'s gain at no more than {COST:.0%} of its cost per decision"
    if good:
        told = "; ".join(f"**{r.contestant}** {r.of_gain:.0%} at {r.of_cost:.1%}" for r in good)
        return f"Goal, {goal}: reached by {told}."
    enough = [r for r in rows if r.of_gain is not None and r.of_gain >= GAIN]
    if not enough:
        return f"Goal, {goal}: NOT reached; nobody keeps {GAIN:.0%} of the gain."
    nearest = min(enough, key=lambda r: r.of_cost)
    return (f"Goal, {goal}: NOT reached; the cheapest that keeps {GAIN:.0%} of the gain is **{nearest.contestant}**, "
            f"{nearest.of_gain:.0%} at {nearest.of_cost:.1%}.")  # fmt: skip


def _table(study: Study, rows: list[Share], best: list[str]) -> str:
    head = ["contestant", "settings", "transitions per decision", "gain over base", "difference to the unit", "share of gain",
            "ms / decision", "share of cost"]  # fmt: skip
    body = []
    for r in rows:
        name = f"**{r.contestant}**" if r.contestant in best else r.contestant
        calls = str(model_calls(study.config.contestants[r.contestant].controller))
        body.append([name, describe(study, r.contestant), calls, interval(r.gain, signed=True), interval(r.left, signed=True),
                     DASH if r.of_gain is None else f"{r.of_gain:.0%}", f"{r.milliseconds.median:.3g}",
                     f"{r.of_cost:.1%}"])  # fmt: skip
    return Sheet(head, body, ["Bold: nobody gains more for less. A differentiated transition counts twice."]).markdown()


if __name__ == "__main__":
    tyro.cli(main)
