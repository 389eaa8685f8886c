"""The printed values of the paper's Tables 1 to 5 (paper_values.yaml), and the row that a task belongs to."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePath

import yaml

from jacrec.training.config import published_name
from jacrec.util.errors import expect_one_of

OURS = "MPCwDWM"
"""the column of the paper's own method"""
BASE_COLUMN = "ReBRAC"
"""the column of its base policy"""


@dataclass(frozen=True)
class PaperTable:
    """One table as printed."""

    number: int
    caption: str
    columns: tuple[str, ...]
    rows: dict[str, tuple[tuple[float, ...], ...]]
    """task -> one cell per column: (mean,) or (mean, ±)"""
    average: tuple[tuple[float, ...], ...]
    """the printed last row"""
    notes: dict[str, str]
    """task -> remark of the paper on its row"""

    def cell(self, task: str, column: str) -> tuple[float, ...]:
        """One cell."""
        return self.rows[task][self.columns.index(column)]


@cache
def paper_tables() -> dict[int, PaperTable]:
    """All five tables, by number."""
    content = yaml.safe_load(Path(__file__).with_name("paper_values.yaml").read_text(encoding="utf-8"))
    return {
        n: PaperTable(
            n,
            t["caption"],
            tuple(t["columns"]),
            {k: tuple(map(tuple, row)) for k, row in t["rows"].items()},
            tuple(map(tuple, t["average"])),
            t.get("notes", {}),
        )
        for n, t in content.items()
    }


def paper_table(number: int) -> PaperTable:
    """The table with this number.

    Raises:
        ValueError: there is no such table.
    """
    expect_one_of("table", number, paper_tables())
    return paper_tables()[number]


def row_of(task: str, rows: Iterable[str]) -> str | None:
    """The longest row name that is a prefix of the task's, e.g. hopper-medium-replay for ``hopper_medium_replay-v2``, or None."""
    plain = re.sub(r"[_\s/]", "-", task.lower())
    matching = [row for row in rows if plain == row or plain.startswith(f"{row}-")]
    return max(matching, key=len, default=None)


def is_d4rl(data: str) -> bool:
    """Whether a data source is, by its name, one of D4RL's own files, on which the paper's columns are based."""
    return PurePath(data).suffix in (".hdf5", ".h5") and published_name(data) is not None
