"""Tables as Markdown and CSV."""

import csv
import io
import re
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Sheet:
    """A table of text."""

    head: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)
    """sentences below it"""

    def markdown(self) -> str:
        """The table with its notes; columns of numbers stand to the right."""
        marks = ["---:" if all(map(_is_number, column)) else "---" for column in zip(*self.rows, strict=True)]
        marks = marks or ["---"] * len(self.head)
        lines = ["| " + " | ".join(row) + " |" for row in (_escaped(self.head), marks, *map(_escaped, self.rows))]
        return "\n".join(["\n".join(lines), *(f"\n{note}" for note in self.notes)])

    def csv(self) -> str:
        """The table alone."""
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows([self.head, *self.rows])
        return out.getvalue()


def _is_number(cell: str) -> bool:
    """Whether a cell begins as a number does, or is a dash."""
    return bool(re.match(r"[*+-]*\d|–$|$", cell))


def _escaped(row: list[str]) -> list[str]:
    return [cell.replace("|", "\\|").replace("\n", " ") for cell in row]
