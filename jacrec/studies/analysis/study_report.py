"""report.md of a whole study, with tables as Markdown and CSV, gains as JSON, and plots as PNG."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jacrec.evaluation.markdown import Sheet, bullet_list, key_values, write_sections
from jacrec.evaluation.results import interval, verdict
from jacrec.evaluation.statistics import Estimate
from jacrec.evaluation.versions import versions
from jacrec.studies.analysis import study_plots, study_tables
from jacrec.studies.analysis.factors import centre_of, factors
from jacrec.studies.analysis.gains import Gain, average_gain, paired
from jacrec.studies.analysis.paper_figures import paper_figure
from jacrec.studies.analysis.paper_tables import shown_contestants, table, tasks_of_rows
from jacrec.studies.analysis.paper_values import paper_tables
from jacrec.studies.analysis.read import Study
from jacrec.studies.analysis.rehearsal_accuracy import agreement, choices, findings, regret, rehearsal_note
from jacrec.studies.analysis.runs import curves, run_record
from jacrec.studies.analysis.settings import control_of, main_contestant, rehearsed_contestants
from jacrec.studies.config import BASE
from jacrec.util.files import write_text

GROUP = 4
FOLDER = "report"


def write_study_report(
    study: Study, *, contestant: str | None = None, level: float = 0.95, videos: dict[str, str] | None = None
) -> Path:
    """Write STUDY/report/report.md with its tables and plots; the path.

    Args:
        contestant: the contestant to feature (default: `main_contestant`).
        level: confidence level of the intervals.
        videos: by task, a file in the report's folder or the reason why there is none.

    Raises:
        ValueError: there is no such contestant, or nothing is finished yet.
    """
    if not study.plays and not curves(study, "dynamics") and not curves(study, "reward"):
        raise ValueError(
            f"{study.path}: expected finished evaluations or trained models, got neither; resume the study with "
            f"`jacrec sweep {study.path}`"
        )
    main = main_contestant(study, contestant)
    folder = study.path / FOLDER
    (folder / "tables").mkdir(parents=True, exist_ok=True)
    (folder / "plots").mkdir(exist_ok=True)
    shown = shown_contestants(study, contestant)
    sections = [
        _head(study),
        *(_played(study, main, shown, folder, level) if study.plays else ()),
        _paper(study, shown, folder),
        _figures(study, folder),
        _videos(videos),
        _missing(study, folder),
        _provenance(study, folder),
    ]
    return write_sections(folder / "report.md", sections)


def _played(study: Study, main: str | None, shown: Sequence[str], folder: Path, level: float) -> list[str]:
    """The sections on scores and gains."""
    sheets = {
        "Scores": ("scores", study_tables.scores(study, shown)),
        "Paired gains": ("gains", study_tables.gains(study, main, level=level) if main else None),
        "Contestants": ("contestants", study_tables.contestants(study, level=level)),
    }
    texts = {title: f"## {title}\n\n" + _saved(sheet, folder, name) for title, (name, sheet) in sheets.items() if sheet}
    if main is None:
        return list(texts.values())
    write_text(folder / "gains.json", json.dumps(gains_record(study, level=level), indent=1))
    return [
        _findings(study, main, level),
        texts["Scores"],
        texts["Paired gains"],
        _forests(study, main, shown, folder, level),
        texts["Contestants"],
        _rehearsals(study, folder, level),
        _factors(study, main, folder, level),
        _cost(study, folder, level),
    ]


def gains_record(study: Study, *, level: float = 0.95) -> dict[str, Any]:
    """All paired gains over base and over the H = 0 control, per task and on average, ready for JSON."""
    found: dict[str, Any] = {}
    for name in study.contestants[1:]:
        control = control_of(study, name)
        found[name] = {}
        for against in (BASE, *([control[0]] if control else [])):
            per_task = {t: paired(study, t, name, against, level=level) for t in study.tasks}
            average = average_gain(study, name, against, level=level)
            found[name][against] = {
                "tasks": {t: gain_record(g) for t, g in per_task.items() if g is not None},
                "average": None
                if average is None
                else {
                    "bootstrap": estimate_record(average.estimate),
                    "t": estimate_record(average.t),
                    "tasks": len(average.gains),
                    "absent": list(average.absent),
                    "worse_than_minus_1": [g.task for g in average.harmed],
                },
            }
    return {"level": level, "gains": found}


def gain_record(gain: Gain) -> dict[str, Any]:
    """One gain, ready for JSON."""
    return {
        "unit": gain.unit,
        "seeds": list(gain.seeds),
        "episodes": gain.episodes,
        "per_seed": [float(x.mean()) for x in gain.runs],
        "bootstrap": estimate_record(gain.estimate),
        "t": estimate_record(gain.t),
    }


def estimate_record(estimate: Estimate) -> dict[str, float | int | None]:
    """An estimate, ready for JSON; infinite bounds become null."""
    return {k: v if math.isfinite(v) else None for k, v in estimate.as_dict().items()}


def _head(study: Study) -> str:
    seeds = f"{len(study.tasks)} tasks × {len(study.seeds)} training seeds ({', '.join(map(str, study.seeds))})"
    if not study.contestants:
        return f"# {study.config.name}\n\n{seeds}. Trained: {', '.join(study.config.stages)} only; no episodes are played."
    expected = len(study.tasks) * len(study.seeds) * len(study.contestants)
    missing = expected - len(study.plays)
    state = "all of them finished" if not missing else f"{missing} of them without a result (listed below)"
    return (
        f"# {study.config.name}\n\n{seeds} × {len(study.contestants)} contestants: {expected} evaluations, {state}. Each is the "
        "last evaluation of its training (not the best one), on the same environment seeds for every contestant."
    )


def _findings(study: Study, main: str, level: float) -> str:
    lines = []
    gain = average_gain(study, main, level=level)
    points = "points of normalised score"
    if gain is not None:
        n = f" on average over {len(gain.gains)} tasks"
        lines.append(
            sentence(gain.estimate, main, "the base policy", points + n) + f" Student's t: {study_tables.finite(gain.t)}."
        )
        lines.append(study_tables.harm(gain))
    control = control_of(study, main)
    if control:
        over, alone = (average_gain(study, *pair, level=level) for pair in ((main, control[0]), (control[0], BASE)))
        if alone is not None:
            lines.append(
                f"The control without a world model, {control[0]}, over the base policy: "
                f"{interval(alone.estimate, signed=True)}."
            )
        if over is not None:
            lines.append(
                "What the world model adds: "
                + sentence(over.estimate, main, control[0], points)
                + f" Student's t: {study_tables.finite(over.t)}."
            )
    if control:
        lines.append(rehearsal_note(study, control[0]))
    text = bullet_list([*lines, study_tables.few_seeds(study)])
    return f"## Findings\n\n{text}" if text else ""


def sentence(estimate: Estimate, subject: str, reference: str, what: str) -> str:
    """`verdict` without its remark on few episodes, since n does not count episodes here."""
    return verdict(estimate, subject, reference, what, few_below=0)


def _forests(study: Study, main: str, shown: Sequence[str], folder: Path, level: float) -> str:
    first = [main, *(c for c in shown if c not in (BASE, main))]
    rest = [c for c in study.contestants[1:] if c not in first]
    groups = [first, *(rest[i : i + GROUP] for i in range(0, len(rest), GROUP))]
    images = []
    for i, group in enumerate(groups):
        name = f"plots/gains_{i + 1}.png"
        if study_plots.forest(study, group, folder / name, level=level):
            images.append(f"![paired gains of {', '.join(group)}]({name})")
    return "\n\n".join(images)


def _rehearsals(study: Study, folder: Path, level: float) -> str:
    """Choices of the rehearsals, accuracy of the predicted gains, and regret."""
    parts = []
    for name in rehearsed_contestants(study):
        sheets = {
            "choices": choices(study, name),
            "agreement": agreement(study, name),
            "regret": regret(study, name, level=level),
        }
        texts = [_saved(sheet, folder, f"rehearsal_{name}_{what}") for what, sheet in sheets.items() if sheet]
        lines = bullet_list([*findings(study, name), rehearsal_note(study, name)])
        plot = f"plots/rehearsal_{name}.png"
        drawn = study_plots.predicted_against_real(study, name, folder / plot)
        image = f"![imagined and real gains]({plot})" if drawn else ""
        parts.append("\n\n".join(text for text in (f"### {name}", *texts, lines, image) if text))
    return "## Rehearsals: choices and accuracy\n\n" + "\n\n".join(parts) if parts else ""


def _factors(study: Study, main: str, folder: Path, level: float) -> str:
    centre = centre_of(study, main)
    found = factors(study, centre)
    if not found:
        return ""
    parts = []
    for name, levels in found.items():
        sheet = study_tables.factor(study, name, levels, level=level)
        parts.append(f"### {name}\n\n" + _saved(sheet, folder, f"factor_{name.replace(' ', '_')}"))
    return f"## One factor at a time\n\nAll other settings as in {centre}, whose value is in bold.\n\n" + "\n\n".join(parts)


def _cost(study: Study, folder: Path, level: float) -> str:
    drawn = study_plots.cost_against_gain(study, study.contestants[1:], folder / "plots" / "cost.png", level=level)
    return "![gain against cost](plots/cost.png)" if drawn else ""


def _paper(study: Study, shown: Sequence[str], folder: Path) -> str:
    parts = []
    for number, printed in paper_tables().items():
        text = _saved(table(study, number, shown), folder, f"table_{number}")
        if any(tasks_of_rows(study, printed).values()):
            parts.append(f"### Table {number}\n\n{text}")
        else:
            parts.append(
                f"### Table {number}\n\nNone of its tasks is in this study. Printed values: [tables/table_{number}.md]"
                f"(tables/table_{number}.md)."
            )
    return "## The paper's tables\n\n" + "\n\n".join(parts)


def _figures(study: Study, folder: Path) -> str:
    lines = []
    for number in (2, 3):
        files = paper_figure(study, number, folder / "plots")
        if files:
            png, table_file = (f"plots/{path.name}" for path in files)
            lines.append(f"![Figure {number}]({png})\n\nFigure {number}; numbers: [{table_file}]({table_file}).")
    return "## The paper's Figures 2 and 3\n\n" + "\n\n".join(lines) if lines else ""


def _videos(videos: dict[str, str] | None) -> str:
    if not videos:
        return ""
    links = {task: f"[{Path(x).name}]({x})" if Path(x).suffix in (".gif", ".mp4") else x for task, x in videos.items()}
    text = bullet_list(f"{task}: {link}" for task, link in links.items())
    return f"## Videos\n\nBase on the left, the best contestant on the right.\n\n{text}"


def _missing(study: Study, folder: Path) -> str:
    sheet = study_tables.gaps(study)
    if sheet is None:
        return ""
    text = _saved(sheet, folder, "missing")
    return f"## Missing, failed or not comparable\n\nNone of these is included in the results above.\n\n{text}"


def _provenance(study: Study, folder: Path) -> str:
    plays = [p.record for p in study.plays.values()]
    runs = [run_record(study.cell(task, seed) / "run").get("versions", {}) for task in study.tasks for seed in study.seeds]
    rows = [
        ["trained with", key_values(*runs)],
        ["played with", key_values(*(p["versions"] for p in plays))],
        ["machine", key_values(*(p["machine"] for p in plays))],
        ["environments", key_values(*(p["environment"] for p in plays))],
        ["evaluation", key_values(*(p["settings"] for p in plays))],
        ["report written with", key_values(versions())],
    ]
    rows = [row for row in rows if row[1]]
    settings = "[study.yaml](../study.yaml) contains all settings."
    return (
        f"## Data, versions and machine\n\n{_saved(study_tables.data(study), folder, 'data')}\n\n"
        f"{Sheet(['part', 'values'], rows).markdown()}\n\n{settings}"
    )


def _saved(sheet: Sheet, folder: Path, name: str) -> str:
    text = sheet.markdown()
    write_text(folder / "tables" / f"{name}.md", text + "\n")
    write_text(folder / "tables" / f"{name}.csv", sheet.csv())
    return text
