"""The paper's Tables 1 to 5 recomputed: averages from their rows, gains with the uncertainty implied by their ±.

`python paper_checks/tables.py` prints its findings, writes them to results/tables.md, and exits with 1 if an average that is
known to add up does not, or vice versa.
"""

import math
import sys
from dataclasses import dataclass

import numpy as np
from record import command, write

from jacrec.evaluation.markdown import Sheet
from jacrec.evaluation.statistics import t_quantile
from jacrec.studies.analysis.paper_values import BASE_COLUMN, OURS, PaperTable, paper_tables

SEEDS = 10  # training seeds behind every cell, as the captions of Tables 1 and 2 say
DOES_NOT_ADD_UP = {(2, OURS)}


@dataclass(frozen=True)
class Average:
    """A printed average and the average of its rows."""

    table: int
    column: str
    printed: float
    of_rows: float
    digits: int
    """decimals printed"""

    @property
    def finding(self) -> str:
        """Whether the printed average adds up."""
        unit = 10.0**-self.digits
        if abs(self.printed - self.of_rows) <= 0.5 * unit + 1e-9:
            return "adds up"
        if 0 <= self.of_rows - self.printed < unit:
            return "adds up, cut off instead of rounded"
        return "does not add up"


def averages() -> list[Average]:
    """Every printed average of the five tables."""
    found = []
    for number, table in paper_tables().items():
        for i, column in enumerate(table.columns):
            printed = table.average[i][0]
            rows = float(np.mean([row[i][0] for row in table.rows.values()]))
            found.append(Average(number, column, printed, rows, len(f"{printed:g}".partition(".")[2]) or 1))
    return found


@dataclass(frozen=True)
class PaperGain:
    """MPCwDWM − ReBRAC on one task, with the half-width of an unpaired interval from the printed standard deviations."""

    task: str
    gain: float
    half: float


def gains(table: PaperTable, level: float = 0.95) -> list[PaperGain]:
    """The paper's gains over its base policy, each with Welch's interval for `SEEDS` seeds a side."""
    found = []
    for task in table.rows:
        (ours, s), (base, b) = table.cell(task, OURS), table.cell(task, BASE_COLUMN)
        u, v = s**2 / SEEDS, b**2 / SEEDS
        degrees = math.floor((u + v) ** 2 / (u**2 + v**2) * (SEEDS - 1))
        found.append(PaperGain(task, ours - base, t_quantile(0.5 + level / 2, degrees) * math.sqrt(u + v)))
    return found


def _averages_section(found: list[Average]) -> str:
    rows = [[str(a.table), a.column, f"{a.printed:g}", f"{a.of_rows:.4f}", a.finding] for a in found]
    wrong = [a for a in found if a.finding == "does not add up"]
    lines = [f"Table {a.table}, {a.column}: {a.printed:g} is printed, the rows give {a.of_rows:.2f}." for a in wrong]
    text = f"{len(wrong)} of {len(found)} printed averages do not add up. " + " ".join(lines)
    return "## Averages\n\n" + text + "\n\n" + Sheet(["table", "column", "printed", "of the rows", "finding"], rows).markdown()


def _gains_section() -> str:
    rows, lines = [], []
    for number in (1, 2):
        table = paper_tables()[number]
        found = gains(table)
        mean = np.mean([g.gain for g in found])
        half = math.sqrt(sum(g.half**2 for g in found)) / len(found)
        beyond = [g for g in found if g.gain > g.half]
        least, equal = min(g.gain for g in found), sum(g.gain == 0 for g in found)
        lines.append(
            f"Table {number}: {mean:+.2f} ± {half:.2f} on average over {len(found)} tasks, {least:+.2f} at the least; "
            f"{len(beyond)} tasks beyond noise, {equal} equal."
        )
        rows += [[str(number), g.task, f"{g.gain:+.2f}", f"± {g.half:.2f}", "yes" if g.gain > g.half else "no"] for g in found]
    how = (
        f"The half-widths are Welch's at 95 % from the printed standard deviations and {SEEDS} seeds a side, as the captions "
        "say. They treat the two columns as independent; how the printed runs were paired is not said, and ReBRAC's column is "
        "taken from another paper."
    )
    sheet = Sheet(["table", "task", f"{OURS} − {BASE_COLUMN}", "95 %", "beyond noise"], rows)
    return "## What the paper gains over its base policy\n\n" + " ".join(lines) + f"\n\n{how}\n\n{sheet.markdown()}"


def _consistency_section() -> str:
    tables = paper_tables()
    one, three, five = tables[1], tables[3], tables[5]
    same = all(five.cell(task, OURS) == one.cell(task, OURS) for task in five.rows)
    errors = {task: row[0][1] for task, row in three.rows.items()}
    cheetah = [e for task, e in errors.items() if task.startswith("halfcheetah")]
    others = [e for task, e in errors.items() if not task.startswith("halfcheetah")]
    means = np.array([row[0][0] for row in three.rows.values()])
    reward = np.array([row[0][0] for row in tables[4].rows.values()])
    spread = {n: x.std(ddof=1) / math.sqrt(x.size) for n, x in ((3, means), (4, reward))}
    worst = max((e * 1000 / three.rows[task][0][0], task) for task, e in errors.items())
    return "\n".join(
        [
            "## Other sums",
            "",
            f"* Table 5's column {OURS} is Table 1's, row by row: {'yes' if same else 'no'}.",
            f"* Table 4 prints {tables[4].average[0][1]:g} as the ± of its average: it is the standard error of the {reward.size} "
            f"rows ({spread[4]:.4f}), a spread between tasks and no error of measurement. Table 3's {three.average[0][1]:.6f} is "
            f"neither that ({spread[3]:.4f}) nor the mean of the rows' ± ({np.mean(list(errors.values())):.4f}).",
            f"* Table 3 heads its ± as standard error divided by the number of transitions. The halfcheetah rows "
            f"({min(cheetah):.6f} to {max(cheetah):.6f}) can be that; the others ({min(others):.6f} to {max(others):.6f}) can not: "
            f"for 1000 transitions {worst[1]} would have a standard error of {worst[0]:.0f} times its RMSE. They read as plain "
            "standard errors.",
            "* The text of Appendix C says that Table 3 is of the reward model and Table 4 of the world model; captions and "
            "headings say the opposite.",
        ]
    )


def main() -> list[Average]:
    """Recompute, print and record the averages."""
    found = averages()
    sections = [_averages_section(found), _gains_section(), _consistency_section()]
    path = write("tables.md", "The paper's tables, recomputed", command("tables.py"), sections)
    print("\n\n".join(sections))
    print(f"\nwritten to paper_checks/results/{path.name}")
    return found


if __name__ == "__main__":
    wrong = {(a.table, a.column) for a in main() if a.finding == "does not add up"}
    sys.exit(wrong != DOES_NOT_ADD_UP)
