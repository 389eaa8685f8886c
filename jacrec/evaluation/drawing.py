"""The style, colours and figure context shared by all plots."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jacrec.evaluation.statistics import Estimate

COLOURS = {
    "base": "#6b7280",
    "h0": "#d97706",
    "mpc": "#2563eb",
    "model": "#0f766e",
    "reference": "#9ca3af",
    "mppi": "#be185d",
    "cem": "#7c3aed",
    "best-of-return": "#65a30d",
    "best-of-q": "#0891b2",
    "action-gradient": "#78350f",
}
"""by contestant, model and reference line"""
PALETTE = (
    "#2563eb",
    "#d97706",
    "#0f766e",
    "#be185d",
    "#7c3aed",
    "#65a30d",
    "#0891b2",
    "#b91c1c",
    "#6b7280",
    "#a16207",
    "#4338ca",
    "#15803d",
)
"""for series without a colour of their own"""
ZERO_LINE: dict[str, Any] = {"color": "#374151", "linewidth": 1}
BAND: dict[str, Any] = {"alpha": 0.18, "linewidth": 0}
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e5e7eb",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.edgecolor": "#9ca3af",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}


@contextmanager
def figure(path: Path, size: tuple[float, float], columns: int, **options: Any) -> Iterator[Sequence[Axes]]:
    """A figure with one row of axes, saved when the block ends; pyplot's global state is not touched."""
    with matplotlib.rc_context(STYLE):
        drawn = Figure(figsize=size, layout="constrained")
        yield np.atleast_1d(np.asarray(drawn.subplots(1, columns, **options)))  # pyright: ignore[reportReturnType]
        drawn.savefig(path, dpi=130)


def error_bar(estimate: Estimate) -> list[list[float]]:
    """Distances from the mean to both ends of the interval, in the form that matplotlib's `errorbar` takes."""
    return [[max(estimate.mean - estimate.low, 0.0)], [max(estimate.high - estimate.mean, 0.0)]]
