"""The paper's five tables with a study's results next to the printed values: `jacrec report STUDY --table 1`."""

from collections.abc import Sequence

import numpy as np

from jacrec.evaluation.markdown import Sheet
from jacrec.studies.analysis.paper_values import OURS, PaperTable, is_d4rl, paper_table, row_of
from jacrec.studies.analysis.read import Study
from jacrec.studies.analysis.runs import Curve, curves, data_of
from jacrec.studies.analysis.settings import control_of, main_contestant
from jacrec.studies.config import BASE, DEFAULT_MODEL

DASH = "–"
OTHER_DATA = "†"
OTHER_DATA_NOTE = f"{OTHER_DATA} not one of D4RL's own files: the paper's columns are based on other data."
MANY = 4
SCORES = (1, 2, 5)
STAGES = {3: "dynamics", 4: "reward"}


def table(study: Study, number: int, contestants: Sequence[str] | None = None) -> Sheet:
    """One of the paper's tables: printed columns, then the study's; a dash for results that are missing.

    Args:
        contestants: the contestants shown in Tables 1, 2 and 5 (default: `shown_contestants`).

    Raises:
        ValueError: there is no such table or contestant.
    """
    printed = paper_table(number)
    if number in SCORES:
        return _scores(study, printed, shown_contestants(study) if contestants is None else list(contestants))
    return _errors(study, printed, STAGES[number])


def shown_contestants(study: Study, main: str | None = None) -> list[str]:
    """Base, the H = 0 control and the main contestant; all contestants if there are at most `MANY`."""
    if len(study.contestants) <= MANY and main is None:
        return study.contestants
    chosen = main_contestant(study, main)
    if chosen is None:
        return study.contestants
    control = control_of(study, chosen)
    return [BASE, *([control[0]] if control else []), chosen]


def mean_std(study: Study, task: str, contestant: str) -> str:
    """Mean ± standard deviation over training seeds of the task's score, or of its return; a dash if there are no plays."""
    runs = [float(x.mean()) for x in study.runs(task, contestant).values()]
    if not runs:
        return DASH
    return f"{np.mean(runs):.1f}" + (f" ± {np.std(runs, ddof=1):.1f}" if len(runs) > 1 else "")


def seeds_episodes(study: Study, task: str, contestants: Sequence[str]) -> str:
    """ "3 × 10": numbers of training seeds and of episodes per seed, as ranges if they differ."""
    plays = [study.of(task, c) for c in contestants]
    seeds = {len(p) for p in plays if p}
    episodes = {len(play.record["returns"]) for p in plays for play in p.values()}
    return f"{_range(seeds)} × {_range(episodes)}" if seeds else DASH


def tasks_of_rows(study: Study, printed: PaperTable) -> dict[str, list[str]]:
    """The study's tasks by the row of the paper's table; includes rows without tasks."""
    found: dict[str, list[str]] = {row: [] for row in printed.rows}
    for task in study.tasks:
        row = row_of(task, printed.rows)
        if row is not None:
            found[row].append(task)
    return found


def _scores(study: Study, printed: PaperTable, contestants: list[str]) -> Sheet:
    unknown = [c for c in contestants if c not in study.contestants]
    if unknown:
        raise ValueError(f"contestants: expected some of {', '.join(study.contestants)}, got {', '.join(unknown)}")
    head = ["task", *printed.columns, *(f"{c} (ours)" for c in contestants), "seeds × episodes"]
    rows, measured = [], []
    for row, tasks in tasks_of_rows(study, printed).items():
        paper = [_cell(x) for x in printed.rows[row]]
        for task in tasks or [None]:
            ours, count, mark = [DASH] * len(contestants), DASH, ""
            if task is not None and study.unit(task) == "score":
                ours = [mean_std(study, task, c) for c in contestants]
                count = seeds_episodes(study, task, contestants)
                measured += [(row, task)] if any(x != DASH for x in ours) else []
                mark = _mark(study, task)
            rows.append([(task or row) + mark, *paper, *ours, count])
    rows.append(["average as printed", *(_cell(x) for x in printed.average), *[DASH] * len(contestants), DASH])
    if measured:
        rows.append(_average_row(study, printed, contestants, measured))
    notes = [
        f"Table {printed.number}: {printed.caption}. Scores are in percent of the reference: 0 random policy, 100 expert. "
        "Ours: last evaluation, mean ± standard deviation over training seeds (no ± for a single seed), each seed being the "
        "mean of its episodes; – if not measured."
    ]
    notes += [f"The paper on {task}: {note}." for task, note in printed.notes.items()]
    if any(row[0].endswith(OTHER_DATA) for row in rows):
        notes.append(OTHER_DATA_NOTE)
    return Sheet(head, rows, notes)


def _mark(study: Study, task: str) -> str:
    return "" if is_d4rl(str(data_of(study, task).get("path", ""))) else f" {OTHER_DATA}"


def _average_row(study: Study, printed: PaperTable, contestants: list[str], measured: list[tuple[str, str]]) -> list[str]:
    """Averages over the measured tasks, for the paper's columns and for ours."""
    rows = [row for row, _ in measured]
    paper = [f"{np.mean([printed.cell(row, column)[0] for row in rows]):.1f}" for column in printed.columns]
    ours = []
    for c in contestants:
        means = [[x.mean() for x in study.runs(task, c).values()] for _, task in measured]
        complete = all(means)
        ours.append(f"{np.mean([np.mean(m) for m in means]):.1f}" if complete else DASH)
    return [f"average of the {len(rows)} measured", *paper, *ours, DASH]


def _errors(study: Study, printed: PaperTable, stage: str) -> Sheet:
    per_transition = stage == "dynamics"
    error = "± SE / transitions" if per_transition else "± SE"
    without = "s' = s" if per_transition else "spread of the rewards"
    head = ["task", f"paper ({error})", f"ours ({error})", "± std over seeds", without, "transitions", "seeds"]
    head += ["norm of the error"] if per_transition else []
    found = curves(study, stage)
    rows, means = [], []
    for row, tasks in tasks_of_rows(study, printed).items():
        paper = _precise(printed.cell(row, OURS))
        if not tasks:
            rows.append([row, paper, *[DASH] * (len(head) - 2)])
        for task in tasks:
            models = dict.fromkeys([DEFAULT_MODEL, *(c.model for c in found if c.task == task)])
            for model in models:
                mine = [c for c in found if (c.task, c.model) == (task, model)]
                if mine and model == DEFAULT_MODEL:
                    means.append(float(np.mean([c.rmse[-1] for c in mine])))
                name = task if model == DEFAULT_MODEL else f"{task}, {model}"
                rows.append(
                    [name + (_mark(study, task) if mine else ""), paper, *_error_cells(mine, per_transition, len(head) - 2)]
                )
    ours = f"{np.mean(means):.4f} (of {len(means)} tasks)" if means else DASH
    rows.append(["average", _precise(printed.average[printed.columns.index(OURS)]), ours, *[DASH] * (len(head) - 3)])
    notes = [
        f"Table {printed.number}: {printed.caption}. Ours: held-out episodes at the last update; mean over training seeds of "
        "the error and of its standard error over the transitions."
    ]
    if per_transition:
        notes.append(
            "The paper does not specify whether its error is per dimension or the norm over the state. Ours is per dimension, "
            "√ mean (ŝ' − s')² over transitions, samples and dimensions; the norm is √d times as large."
        )
    else:
        notes.append("Rewards are on the critic's scale.")
    if any(row[0].endswith(OTHER_DATA) for row in rows):
        notes.append(OTHER_DATA_NOTE)
    return Sheet(head, rows, notes)


def _error_cells(mine: list[Curve], per_transition: bool, width: int) -> list[str]:
    if not mine:
        return [DASH] * width
    last = np.array([c.rmse[-1] for c in mine])
    se = float(np.mean([c.se[-1] for c in mine]))
    n = max(c.transitions for c in mine)
    error = f"{se / max(n, 1):.6f}" if per_transition else f"{se:.4f}"
    spread = f"{last.std(ddof=1):.4f}" if last.size > 1 else DASH
    reference = f"{np.mean([c.reference[-1] for c in mine]):.4f}"
    norm = [f"{np.mean([c.rmse[-1] * c.state_dim**0.5 for c in mine]):.4f}" if mine[0].state_dim else DASH]
    cells = [f"{last.mean():.4f} ± {error}", spread, reference, str(n), str(last.size)]
    return cells + (norm if per_transition else [])


def _cell(value: Sequence[float]) -> str:
    """At least one decimal, and as many as printed."""
    texts = [f"{x:.1f}" if round(x, 1) == x else f"{x:g}" for x in value]
    return " ± ".join(texts)


def _precise(value: Sequence[float]) -> str:
    mean, *error = value
    return f"{mean:.4f}" + "".join(f" ± {e:.6f}" if e < 1e-4 or round(e, 4) != e else f" ± {e:.4f}" for e in error)


def _range(counts: set[int]) -> str:
    return str(*counts) if len(counts) == 1 else f"{min(counts)}–{max(counts)}"
