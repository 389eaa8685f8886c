"""`jacrec report RUN`."""

from pathlib import Path

import tyro
from tyro.conf import Positional

from jacrec.study.report import write_report


def report(run: Positional[Path], *, evaluation: Path | None = None, level: float = 0.95) -> int:
    """Write report.md and its plots.

    Args:
        run: the run's folder
        evaluation: folder of the evaluation (and of the report), the run's own unless told
        level: of the intervals
    """
    print(f"report: {write_report(run, evaluation, level=level)}")
    return 0


def run(args: list[str]) -> int:
    """The verb."""
    return tyro.cli(report, args=args, prog="jacrec report")
