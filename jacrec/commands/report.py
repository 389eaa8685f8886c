"""`jacrec report RUN` and `jacrec report STUDY`: tables and plots."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from jacrec.evaluation.page import write_page
from jacrec.evaluation.run_report import write_run_report
from jacrec.studies.analysis.paper_figures import paper_figure
from jacrec.studies.analysis.paper_tables import table
from jacrec.studies.analysis.read import is_study, read_study
from jacrec.studies.analysis.study_report import FOLDER, write_study_report
from jacrec.studies.analysis.videos import record_study_videos


@dataclass(frozen=True)
class Report:
    """Write report.md with tables and plots for an evaluated run or a study."""

    folder: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN|STUDY")]
    """folder of a run, or of a study (with study.yaml)"""
    evaluation: Path | None = None
    """run only: folder of the evaluation and the report; None: the run's"""
    table: int | None = None
    """study only: print this table of the paper (1 to 5) beside the study's results, and nothing else"""
    figure: int | None = None
    """study only: draw this figure of the paper (2 or 3), and nothing else"""
    contestant: str | None = None
    """study only: the contestant to lead with; None: mpc, default, or the first with a world model"""
    html: bool = False
    """also write report.html: one page with everything in it, pictures and video included, whose tables can be sorted"""
    level: float = 0.95
    """confidence level of the intervals"""
    video: bool = False
    """study only: record base policy and best contestant side by side on every task, if this machine can render"""


COMMAND = Report


def run(args: list[str]) -> int:
    """Run the verb."""
    chosen = tyro.cli(COMMAND, args=args, prog="jacrec report")
    if not is_study(chosen.folder):
        asked = [name for name in ("table", "figure", "contestant") if getattr(chosen, name) is not None]
        if asked or chosen.video:
            raise ValueError(
                f"{chosen.folder}: expected a study's folder (with study.yaml) for --{(asked or ['video'])[0]}, got another folder"
            )
        return _written(write_run_report(chosen.folder, chosen.evaluation, level=chosen.level), chosen.html)
    if chosen.evaluation is not None:
        raise ValueError(f"{chosen.folder}: expected no --evaluation for a study: its evaluations are in its own folder")
    if chosen.html and not (chosen.table is None and chosen.figure is None):
        raise ValueError("--html: expected a whole report, got --table or --figure, which write none; leave one of them out")
    study = read_study(chosen.folder)
    if chosen.table is not None:
        print(table(study, chosen.table).markdown())
    if chosen.figure is not None:
        made = paper_figure(study, chosen.figure, study.path / FOLDER / "plots")
        print(f"figure: {' '.join(map(str, made))}" if made else f"no figure: no run of {study.path} has logged errors yet")
    if chosen.table is None and chosen.figure is None:
        videos = record_study_videos(study, study.path / FOLDER) if chosen.video else None
        report = write_study_report(study, contestant=chosen.contestant, level=chosen.level, videos=videos)
        return _written(report, chosen.html, root=study.path)
    return 0


def _written(report: Path, html: bool, root: Path | None = None) -> int:
    print(f"report: {report}")
    if html:
        print(f"page: {write_page(report, root)}")
    return 0
