"""A table of numerical comparisons: claim, implementing file, and largest relative error."""

import unicodedata
from dataclasses import dataclass, field

from torch import Tensor


def distance(ours: Tensor, theirs: Tensor) -> float:
    """max |ours − theirs| / max |theirs|; infinite if the shapes differ or a NaN occurs."""
    if ours.shape != theirs.shape:
        return float("inf")
    if not ours.numel():
        return 0.0
    size = float(theirs.detach().abs().max())
    error = float((ours.detach() - theirs.detach()).abs().max()) / (size or 1.0)
    return error if error == error else float("inf")


def shown_width(text: str) -> int:
    """Width of `text` on a terminal; combining characters such as the tilde of s̃ have none."""
    return sum(not unicodedata.combining(c) for c in text)


def padded(text: str, width: int) -> str:
    """`text` padded with spaces to `width` columns."""
    return text + " " * (width - shown_width(text))


@dataclass
class Row:
    """One claim and its largest error over all worlds in which it was checked."""

    label: str
    says: str
    file: str
    error: float = 0.0


@dataclass
class Ledger:
    """Collects claims, in order of first appearance."""

    tolerance: float
    """largest relative error at which a claim holds"""
    rows: dict[str, Row] = field(default_factory=dict)

    def check(self, label: str, says: str, file: str, *pairs: tuple[Tensor, Tensor]) -> None:
        """Record claim `label`: both tensors of every pair (jacrec's, independent) are equal."""
        row = self.rows.setdefault(label, Row(label, says, file))
        row.error = max(row.error, *(distance(ours, theirs) for ours, theirs in pairs))

    @property
    def failed(self) -> list[Row]:
        """The claims that do not hold."""
        return [row for row in self.rows.values() if not row.error <= self.tolerance]

    def table(self, first: str) -> str:
        """The claims as text, one per line; `first` is the heading of the labels."""
        rows = list(self.rows.values())
        head = (first, "what it says", "file that implements it", "largest error")
        cells = [(row.label, row.says, row.file, f"{row.error:.1e}") for row in rows]
        widths = [max(shown_width(line[i]) for line in [head, *cells]) for i in range(len(head))]
        lines = [" | ".join(map(padded, line, widths)) for line in [head, *cells]]
        lines.insert(1, "-|-".join("-" * width for width in widths))
        failed = {row.label for row in self.failed}
        marks = ["", "", *("   DOES NOT HOLD" if row.label in failed else "" for row in rows)]
        return "\n".join(line.rstrip() + mark for line, mark in zip(lines, marks, strict=True))

    def conclusion(self, noun: str) -> str:
        """One line: all claims hold, or which do not."""
        if self.failed:
            names = ", ".join(row.label for row in self.failed)
            return f"{len(self.failed)} of {len(self.rows)} {noun} do not hold within {self.tolerance:.0e}: {names}"
        worst = max(row.error for row in self.rows.values())
        return (
            f"All {len(self.rows)} {noun} hold (largest relative error {worst:.1e}, float64, tolerance {self.tolerance:.0e})."
        )
