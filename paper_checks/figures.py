"""Figures 2 and 3 by the paper's protocol: errors of world model and reward model on held-out transitions over training.

`python paper_checks/figures.py STUDY` (or RUN, the folder of a single run) draws results/figure_2.png and figure_3.png, writes
their numbers as CSV and a summary to results/figures.md, and exits with 1 if an error has not decreased.

The paper: medium-replay sets, errors at 20 000 to 200 000 updates on 1000 transitions, with their standard error as a band.
"""

import sys
from pathlib import Path

import tyro
from record import RESULTS, command, without_paths, write
from tyro.conf import Positional

from jacrec.evaluation.markdown import Sheet
from jacrec.studies.analysis.paper_figures import SHOWN, STAGE, TITLE, write_paper_figure
from jacrec.studies.analysis.paper_values import OURS, paper_table, row_of
from jacrec.studies.analysis.read import is_study, read_study
from jacrec.studies.analysis.runs import Curve, curves, run_curve, run_record
from jacrec.studies.config import DEFAULT_MODEL

TRANSITIONS, FIRST, LAST = 1000, 20_000, 200_000
PRINTED = {2: 3, 3: 4}  # the table that holds the error at the end of a figure's training


def main(folder: Positional[Path]) -> list[tuple[Curve, bool]]:
    """Draw the figures and write the summary; every curve with whether it decreased.

    Args:
        folder: folder of a study or of a run

    Raises:
        ValueError: no errors have been logged there.
    """
    sections, judged = [], []
    for number, stage in STAGE.items():
        found = _curves(folder, stage)
        if not found:
            continue
        write_paper_figure(found, number, RESULTS)
        mine = [(curve, curve.rmse[-1] < curve.rmse[start(curve)]) for curve in found]
        judged += mine
        sections.append(_section(number, mine))
    if not judged:
        raise ValueError(f"{folder}: expected a study or a run whose models have logged errors in metrics.jsonl, got none")
    path = write("figures.md", "Figures 2 and 3", command("figures.py", folder), [without_paths(s) for s in sections])
    print("\n\n".join(sections) + f"\n\nwritten to paper_checks/results/{path.name}")
    return judged


def start(curve: Curve) -> int:
    """Index of the figure's first measurement: the paper's first, or the training's own if it is shorter."""
    return next((i for i, update in enumerate(curve.updates[:-1]) if update >= FIRST), 0)


def _curves(folder: Path, stage: str) -> list[Curve]:
    if is_study(folder):
        return curves(read_study(folder), stage)
    record = run_record(folder)
    name = str(record.get("data", {}).get("name", folder.name))
    found = run_curve(folder, stage, task=name, seed=int(record.get("settings", {}).get("seed", 0)))
    return [] if found is None else [found]


def _section(number: int, judged: list[tuple[Curve, bool]]) -> str:
    printed = paper_table(PRINTED[number])
    rows = []
    for c, fell in judged:
        row = row_of(c.task, printed.rows)
        paper = f"{printed.cell(row, OURS)[0]:.4f}" if row else "–"
        ends = start(c), len(c.rmse) - 1, min(range(len(c.rmse)), key=c.rmse.__getitem__)
        first, last, lowest = (f"{c.rmse[i]:.4f} at {c.updates[i]}" for i in ends)
        rows.append(
            [
                c.task,
                str(c.seed),
                c.model,
                first,
                last,
                f"{c.se[-1]:.4f}",
                lowest,
                f"{c.reference[-1]:.4f}",
                str(c.transitions),
                "yes" if fell else "no",
                paper,
            ]
        )
    reference = "s' = s" if number == 2 else "spread of the rewards"
    head = ["set", "seed", "model", "first", "last", "± SE", "lowest", reference, "transitions", "fell", "paper, last"]
    return (
        f"## Figure {number}: {TITLE[number]}\n\n{_protocol(judged)}\n\n"
        f"![Figure {number}](figure_{number}.png)\n\n{Sheet(head, rows).markdown()}"
    )


def _protocol(judged: list[tuple[Curve, bool]]) -> str:
    """How far these curves follow the paper's protocol."""
    found = [c for c, _ in judged]
    notes = [f"The error fell from the first to the last measurement in {sum(x for _, x in judged)} of {len(found)} trainings."]
    if short := [c for c in found if c.transitions != TRANSITIONS]:
        notes.append(
            f"{len(short)} are measured on {', '.join(sorted({str(c.transitions) for c in short}))} transitions, the "
            f"paper's on {TRANSITIONS}."
        )
    span = {(c.updates[start(c)], c.updates[-1]) for c in found}
    if span != {(FIRST, LAST)}:
        texts = ", ".join(f"{a} to {b}" for a, b in sorted(span))
        notes.append(f"Updates {texts}; the paper's {FIRST} to {LAST}.")
    if not any(SHOWN in c.task.replace("_", "-") and c.model == DEFAULT_MODEL for c in found):
        notes.append(f"None is a {SHOWN} set, which the paper's are.")
    return " ".join(notes)


if __name__ == "__main__":
    sys.exit(not all(fell for _, fell in tyro.cli(main)))
