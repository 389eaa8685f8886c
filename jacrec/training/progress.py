"""What a training shows in the terminal: bars, times, and a curve of the error or score so far."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from rich import get_console
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

BLOCKS = "▁▂▃▄▅▆▇█"


def make_progress(quiet: bool = False, console: Console | None = None) -> Progress:
    """The progress display: bar, count, elapsed and remaining time, and as much of the note as fits."""
    console = console or get_console()
    name = TextColumn("{task.description:>9}", table_column=Column(no_wrap=True))
    count = MofNCompleteColumn(table_column=Column(no_wrap=True))
    times = (kind(table_column=Column(no_wrap=True)) for kind in (TimeElapsedColumn, TimeRemainingColumn))
    columns = (name, BarColumn(8), count, *times, _NoteColumn(console))
    return Progress(*columns, console=console, disable=quiet, expand=True, speed_estimate_period=30)


class _NoteColumn(ProgressColumn):
    """The note, cut to what is left of the line; ASCII alone where the terminal knows no other characters."""

    def __init__(self, console: Console):
        self.ascii = console.options.ascii_only
        super().__init__(Column(no_wrap=True, overflow="crop" if self.ascii else "ellipsis", ratio=1))

    def render(self, task: Task) -> Text:
        note: str = task.fields["note"]
        return Text(note.encode("ascii", "ignore").decode().strip() if self.ascii else note)


class ProgressNote:
    """Lines of metrics, shortened for the progress display: a curve of the most telling number, and the latest values.

    Args:
        lines: those of earlier processes.
    """

    NAMES = ("eval_score", "eval_return", "one_step_rmse", "reward_rmse", "loss", "critic_loss", "bc")

    def __init__(self, lines: Iterable[dict[str, Any]] = ()):
        self.values: dict[str, list[float]] = {}
        for line in lines:
            self(line)

    def __call__(self, line: dict[str, Any]) -> str:
        """The note after one more line."""
        for name in self.NAMES:
            if name in line:
                self.values.setdefault(name, []).append(line[name])
        known = [name for name in self.NAMES if name in self.values]
        curve = [sparkline(self.values[known[0]])] if known else []
        return " ".join(curve + [f"{name} {self.values[name][-1]:.3g}" for name in known])


def sparkline(values: Sequence[float], width: int = 8) -> str:
    """Numbers as a curve of at most `width` blocks, each the mean of its share; of positive numbers, their logarithms."""
    y = np.asarray(values, np.float64)
    y = np.log(y) if (y > 0).all() else y
    y = np.array([part.mean() for part in np.array_split(y, min(width, len(y)))])
    height = (y - y.min()) / (np.ptp(y) or 1.0)
    return "".join(BLOCKS[round(x * (len(BLOCKS) - 1))] for x in height)
