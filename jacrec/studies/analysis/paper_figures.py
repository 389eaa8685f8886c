"""Figures 2 and 3 of the paper, drawn from a study's runs as PNG and CSV."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from jacrec.evaluation.drawing import BAND, PALETTE, figure
from jacrec.studies.analysis.read import Study
from jacrec.studies.analysis.runs import Curve, curves
from jacrec.studies.config import DEFAULT_MODEL
from jacrec.util.errors import expect_one_of

STAGE = {2: "dynamics", 3: "reward"}
TITLE = {2: "One-step RMSE of the world model", 3: "RMSE of the reward model"}
SHOWN = "medium-replay"  # the data sets in the paper's figures


def paper_figure(study: Study, number: int, folder: Path) -> tuple[Path, Path] | None:
    """Draw Figure 2 or 3 for a study; the paths of the PNG and the CSV, or None if no run has logged its errors.

    As in the paper, the PNG shows errors on held-out transitions over training for the medium-replay sets (or all sets, if
    the study has none of those), as means over training seeds with the standard error over transitions as a band. The CSV
    contains every task, seed and model.

    Raises:
        ValueError: there is no such figure.
    """
    expect_one_of("figure", number, STAGE)
    return write_paper_figure(curves(study, STAGE[number]), number, folder)


def write_paper_figure(found: Sequence[Curve], number: int, folder: Path) -> tuple[Path, Path] | None:
    """As `paper_figure`, from curves."""
    if not found:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    png, table = (folder / f"figure_{number}.{ending}" for ending in ("png", "csv"))
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["task", "seed", "model", "update", "rmse", "se", "without_model", "transitions"])
        for c in found:
            for point in zip(c.updates, c.rmse, c.se, c.reference, strict=True):
                writer.writerow([c.task, c.seed, c.model, *point, c.transitions])
    tasks = dict.fromkeys(c.task for c in found)
    shown = [t for t in tasks if SHOWN in t.replace("_", "-")] or list(tasks)
    with figure(png, (6.4, 3.9), 1) as (axes,):
        for i, task in enumerate(shown):
            mine = [c for c in found if c.task == task and c.model == DEFAULT_MODEL]
            if mine:
                draw_curve(axes, mine, PALETTE[i % len(PALETTE)], task)
        transitions = "–".join(sorted({str(c.transitions) for c in found if c.task in shown}))
        axes.set_xlabel("updates")
        axes.set_ylabel("RMSE")
        axes.set_ylim(bottom=0)
        axes.set_title(f"{TITLE[number]}, {transitions} held-out transitions")
        axes.legend()
    return png, table


def draw_curve(axes: Axes, mine: Sequence[Curve], colour: str, name: str) -> None:
    """Draw the mean over seeds at the updates logged by all of them, with the mean standard error as a band."""
    common = sorted(set.intersection(*(set(c.updates) for c in mine)))
    rows = [[c.updates.index(u) for u in common] for c in mine]
    rmse = np.mean([np.array(c.rmse)[row] for c, row in zip(mine, rows, strict=True)], axis=0)
    se = np.mean([np.array(c.se)[row] for c, row in zip(mine, rows, strict=True)], axis=0)
    axes.plot(common, rmse, color=colour, label=f"{name} ({len(mine)} seed{'s' if len(mine) > 1 else ''})")
    axes.fill_between(common, rmse - se, rmse + se, color=colour, **BAND)
