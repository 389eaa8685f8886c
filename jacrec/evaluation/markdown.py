"""Tables as text, Markdown, CSV and terminal output, and reports made of sections."""

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from jacrec.util.files import write_text


@dataclass(frozen=True)
class Sheet:
    """A table of text."""

    head: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)
    """paragraphs below the table"""

    def markdown(self) -> str:
        """The table and its notes; columns of numbers are right-aligned."""
        marks = ["---:" if all(map(_is_number, column)) else "---" for column in zip(*self.rows, strict=True)]
        marks = marks or ["---"] * len(self.head)
        lines = ["| " + " | ".join(row) + " |" for row in (_escaped(self.head), marks, *map(_escaped, self.rows))]
        return "\n".join(["\n".join(lines), *(f"\n{note}" for note in self.notes)])

    def csv(self) -> str:
        """The table without its notes."""
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows([self.head, *self.rows])
        return out.getvalue()


def _is_number(cell: str) -> bool:
    """Whether a cell starts like a number, or is empty or a dash."""
    return bool(re.match(r"[*+-]*\d|–$|$", cell))


def _escaped(row: list[str]) -> list[str]:
    return [cell.replace("|", "\\|").replace("\n", " ") for cell in row]


def terminal_table(head: Sequence[str], rows: Iterable[Sequence[str]], *, title: str | None = None, padding: int = 1) -> Table:
    """A table for a terminal: the first column left-aligned, the others right-aligned and folded, not cut, in a narrow one."""
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, padding), title_justify="left")
    for i, column in enumerate(head):
        table.add_column(column, justify="right" if i else "left", no_wrap=not i, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def terminal(*, quiet: bool = False) -> Console:
    """A console that prints text as it is: rich would read [video] as markup and :100: as an emoji."""
    return Console(markup=False, emoji=False, quiet=quiet)


def bullet_list(lines: Iterable[str]) -> str:
    """A Markdown list of the lines that are not empty."""
    return "\n".join(f"* {line}" for line in lines if line)


def key_values(*records: Mapping[str, Any]) -> str:
    """The plain values of each distinct record as "key value, key value", without nested mappings."""
    texts = (", ".join(f"{k} {v}" for k, v in record.items() if not isinstance(v, dict)) for record in records)
    return "; or ".join(dict.fromkeys(text for text in texts if text))


def write_sections(path: Path, sections: Iterable[str]) -> Path:
    """Write the sections that are not empty, separated by blank lines; the path."""
    write_text(path, "\n\n".join(section for section in sections if section) + "\n")
    return path
