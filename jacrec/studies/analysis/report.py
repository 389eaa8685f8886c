"""report.md of a whole study, its tables as Markdown and CSV, gains as JSON, pictures as PNG.

write_study_report(study) -> Path of STUDY/report/report.md
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jacrec.evaluation.markdown import Sheet
from jacrec.evaluation.results import interval, verdict
from jacrec.evaluation.statistics import Estimate
from jacrec.evaluation.versions import versions
from jacrec.studies.analysis import overview, plots
from jacrec.studies.analysis.factors import centre_of, factors
from jacrec.studies.analysis.figures import error_figure
from jacrec.studies.analysis.foresight import agreement, choices, findings, regret, rehearsal_note
from jacrec.studies.analysis.gains import Gain, average_gain, paired
from jacrec.studies.analysis.paper import paper_tables
from jacrec.studies.analysis.read import Study
from jacrec.studies.analysis.runs import curves, run_record
from jacrec.studies.analysis.settings import choosers, control_of, main_contestant
from jacrec.studies.analysis.tables import shown_contestants, table, tasks_of_rows
from jacrec.studies.config import BASE

GROUP = 4
FOLDER = "report"


def write_study_report(
    study: Study, *, contestant: str | None = None, level: float = 0.95, films: dict[str, str] | None = None
) -> Path:
    """Write STUDY/report/report.md with its tables and pictures; its path.

    Args:
        contestant: the one that the report leads with (`main_contestant` unless told).
        level: of the intervals.
        films: file in the report's folder, or why there is none, by task.

    Raises:
        ValueError: no such contestant, or nothing is finished yet.
    """
    if not study.plays and not curves(study, "dynamics") and not curves(study, "reward"):
        raise ValueError(
            f"{study.path}: expected something finished, got neither an evaluation nor a trained model; go on "
            f"with `jacrec sweep {study.path}`"
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
        _films(films),
        _missing(study, folder),
        _provenance(study, folder),
    ]
    path = folder / "report.md"
    path.write_text("\n\n".join(s for s in sections if s) + "\n", encoding="utf-8")
    return path


def _played(study: Study, main: str | None, shown: Sequence[str], folder: Path, level: float) -> list[str]:
    """The sections on who scored what."""
    sheets = {
        "Scores": ("scores", overview.scores(study, shown)),
        "Paired gains": ("gains", overview.gains(study, main, level=level) if main else None),
        "Contestants": ("contestants", overview.contestants(study, level=level)),
    }
    texts = {title: f"## {title}\n\n" + _saved(sheet, folder, name) for title, (name, sheet) in sheets.items() if sheet}
    if main is None:
        return list(texts.values())
    (folder / "gains.json").write_text(json.dumps(gains_record(study, level=level), indent=1), encoding="utf-8")
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
    """Every paired gain over base and over the H = 0 control, per task and on average, ready for JSON."""
    found: dict[str, Any] = {}
    for name in study.contestants[1:]:
        control = control_of(study, name)
        found[name] = {}
        for against in (BASE, *([control[0]] if control else [])):
            per_task = {t: paired(study, t, name, against, level=level) for t in study.tasks}
            whole = average_gain(study, name, against, level=level)
            found[name][against] = {
                "tasks": {t: gain_record(g) for t, g in per_task.items() if g is not None},
                "average": None
                if whole is None
                else {
                    "bootstrap": estimate_record(whole.estimate),
                    "t": estimate_record(whole.t),
                    "tasks": len(whole.gains),
                    "absent": list(whole.absent),
                    "worse_than_minus_1": [g.task for g in whole.harmed],
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
    """An estimate, ready for JSON: an infinite bound is null."""
    return {k: v if math.isfinite(v) else None for k, v in estimate.as_dict().items()}


def _head(study: Study) -> str:
    seeds = f"{len(study.tasks)} tasks × {len(study.seeds)} training seeds ({', '.join(map(str, study.seeds))})"
    if not study.contestants:
        return f"# {study.config.name}\n\n{seeds}, of which {', '.join(study.config.stages)} alone is trained; nobody plays."
    asked = len(study.tasks) * len(study.seeds) * len(study.contestants)
    missing = asked - len(study.plays)
    state = "all of them finished" if not missing else f"{missing} of them without a result (listed below)"
    return (
        f"# {study.config.name}\n\n{seeds} × {len(study.contestants)} contestants: {asked} evaluations, {state}. Each is the "
        "last evaluation of its training (not the best one), over the same environment seeds for every contestant."
    )


def _findings(study: Study, main: str, level: float) -> str:
    lines = []
    gain = average_gain(study, main, level=level)
    points = "points of normalised score"
    if gain is not None:
        n = f" on average over {len(gain.gains)} tasks"
        lines.append(sentence(gain.estimate, main, "the base policy", points + n) + f" Student's t: {overview.finite(gain.t)}.")
        lines.append(overview.harm(gain))
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
                + f" Student's t: {overview.finite(over.t)}."
            )
    if control:
        lines.append(rehearsal_note(study, control[0]))
    lines = [line for line in (*lines, overview.few_seeds(study)) if line]
    return "## Findings\n\n" + "\n".join(f"* {line}" for line in lines) if lines else ""


def sentence(estimate: Estimate, subject: str, reference: str, what: str) -> str:
    """`verdict`, without its remark on few episodes: n is no number of episodes here."""
    return verdict(estimate, subject, reference, what, few_below=0)


def _forests(study: Study, main: str, shown: Sequence[str], folder: Path, level: float) -> str:
    first = [main, *(c for c in shown if c not in (BASE, main))]
    rest = [c for c in study.contestants[1:] if c not in first]
    groups = [first, *(rest[i : i + GROUP] for i in range(0, len(rest), GROUP))]
    pictures = []
    for i, group in enumerate(groups):
        name = f"plots/gains_{i + 1}.png"
        if plots.forest(study, group, folder / name, level=level):
            pictures.append(f"![paired gains of {', '.join(group)}]({name})")
    return "\n\n".join(pictures)


def _rehearsals(study: Study, folder: Path, level: float) -> str:
    """What rehearsals chose, what they foresaw, and what another choice would have brought."""
    parts = []
    for name in choosers(study):
        if not any(chooser == name for _, _, chooser in study.rehearsals):
            continue
        sheets = {
            "choices": choices(study, name),
            "agreement": agreement(study, name),
            "regret": regret(study, name, level=level),
        }
        texts = [_saved(sheet, folder, f"rehearsal_{name}_{what}") for what, sheet in sheets.items() if sheet]
        lines = "\n".join(f"* {line}" for line in (*findings(study, name), rehearsal_note(study, name)) if line)
        picture = f"plots/rehearsal_{name}.png"
        drawn = [f"![imagined and real gains]({picture})"] if plots.foresight(study, name, folder / picture) else []
        parts.append("\n\n".join([f"### {name}", *texts, *([lines] if lines else []), *drawn]))
    return "## Rehearsals: chosen and foreseen\n\n" + "\n\n".join(parts) if parts else ""


def _factors(study: Study, main: str, folder: Path, level: float) -> str:
    centre = centre_of(study, main)
    found = factors(study, centre)
    if not found:
        return ""
    parts = []
    for name, levels in found.items():
        sheet = overview.factor(study, name, levels, level=level)
        parts.append(f"### {name}\n\n" + _saved(sheet, folder, f"factor_{name.replace(' ', '_')}"))
    return f"## One factor at a time\n\nAll else as {centre}, whose own value is set in bold.\n\n" + "\n\n".join(parts)


def _cost(study: Study, folder: Path, level: float) -> str:
    drawn = plots.cost_against_gain(study, study.contestants[1:], folder / "plots" / "cost.png", level=level)
    return "![gain against cost](plots/cost.png)" if drawn else ""


def _paper(study: Study, shown: Sequence[str], folder: Path) -> str:
    parts = []
    for number, printed in paper_tables().items():
        text = _saved(table(study, number, shown), folder, f"table_{number}")
        if any(tasks_of_rows(study, printed).values()):
            parts.append(f"### Table {number}\n\n{text}")
        else:
            parts.append(
                f"### Table {number}\n\nNone of its tasks is in this study; as printed: [tables/table_{number}.md]"
                f"(tables/table_{number}.md)."
            )
    return "## The paper's tables\n\n" + "\n\n".join(parts)


def _figures(study: Study, folder: Path) -> str:
    lines = []
    for number in (2, 3):
        made = error_figure(study, number, folder / "plots")
        if made:
            png, table_file = (f"plots/{path.name}" for path in made)
            lines.append(f"![Figure {number}]({png})\n\nFigure {number}; numbers: [{table_file}]({table_file}).")
    return "## The paper's Figures 2 and 3\n\n" + "\n\n".join(lines) if lines else ""


def _films(films: dict[str, str] | None) -> str:
    if not films:
        return ""
    lines = [
        f"* {task}: " + (f"[{Path(x).name}]({x})" if Path(x).suffix in (".gif", ".mp4") else x) for task, x in films.items()
    ]
    return "## Videos\n\nBase on the left, the best contestant on the right.\n\n" + "\n".join(lines)


def _missing(study: Study, folder: Path) -> str:
    sheet = overview.gaps(study)
    if sheet is None:
        return ""
    return "## Missing, failed or not comparable\n\nNone of these is in any number above.\n\n" + _saved(
        sheet, folder, "missing"
    )


def _provenance(study: Study, folder: Path) -> str:
    def listing(records: list[dict[str, Any]]) -> str:
        texts = dict.fromkeys(", ".join(f"{k} {v}" for k, v in r.items() if not isinstance(v, dict)) for r in records if r)
        return "; or ".join(texts)

    plays = [p.record for p in study.plays.values()]
    runs = [run_record(study.cell(task, seed) / "run").get("versions", {}) for task in study.tasks for seed in study.seeds]
    rows = [
        ["trained with", listing(runs)],
        ["played with", listing([p["versions"] for p in plays])],
        ["machine", listing([p["machine"] for p in plays])],
        ["environments", listing([p["environment"] for p in plays])],
        ["evaluation", listing([p["settings"] for p in plays])],
        ["report written with", listing([versions()])],
    ]
    rows = [row for row in rows if row[1]]
    settings = "[study.yaml](../study.yaml) holds every setting."
    return (
        f"## Data, versions and machine\n\n{_saved(overview.data(study), folder, 'data')}\n\n"
        f"{Sheet(['part', 'values'], rows).markdown()}\n\n{settings}"
    )


def _saved(sheet: Sheet, folder: Path, name: str) -> str:
    text = sheet.markdown()
    (folder / "tables" / f"{name}.md").write_text(text + "\n", encoding="utf-8")
    (folder / "tables" / f"{name}.csv").write_text(sheet.csv(), encoding="utf-8")
    return text
