"""The tables of a study's report: scores, paired gains, contestants, factors, data and gaps."""

from collections.abc import Sequence

import numpy as np

from jacrec.evaluation.markdown import Sheet
from jacrec.evaluation.results import interval
from jacrec.studies.analysis.factors import Level
from jacrec.studies.analysis.gains import HARM, Average, Gain, aggregate, average_gain, cost, paired
from jacrec.studies.analysis.hierarchy import FEW_SEEDS
from jacrec.studies.analysis.paper_tables import DASH, mean_std, seeds_episodes
from jacrec.studies.analysis.read import Study
from jacrec.studies.analysis.runs import data_of
from jacrec.studies.analysis.settings import control_of, describe, main_contestant, settings_of
from jacrec.studies.config import BASE


def scores(study: Study, contestants: Sequence[str]) -> Sheet:
    """Normalised score and raw return of each contestant per task, mean ± std over training seeds."""
    head = ["task"]
    for c in contestants:
        head += [f"{c}: score", f"{c}: return"]
    rows = []
    for task in study.tasks:
        row = [task]
        for c in contestants:
            row += [mean_std(study, task, c) if study.unit(task) == "score" else DASH, _returns(study, task, c)]
        rows.append([*row, seeds_episodes(study, task, contestants)])
    rows.append(["average", *(x for c in contestants for x in (average_score(study, c), DASH)), DASH])
    return Sheet(
        [*head, "seeds × episodes"],
        rows,
        [
            "Scores are in percent of the reference (0 random policy, 100 expert), returns are undiscounted sums of the "
            "environment's rewards. Both are mean ± standard deviation over training seeds, each seed being the mean of its "
            f"episodes. Averages are over all {len(study.scored_tasks)} tasks with normalised scores; {DASH} if one is missing.",
        ],
    )


def gains(study: Study, contestant: str, *, level: float = 0.95) -> Sheet:
    """Paired gain over base and over the H = 0 control per task, each with both intervals."""
    control = control_of(study, contestant)
    against = [BASE] + ([control[0]] if control else [])
    head = ["task"]
    for name in against:
        head += [f"{contestant} − {name}, bootstrap", "Student's t over seeds"]
    rows = []
    for task in study.tasks:
        row = [task if study.unit(task) == "score" else f"{task} (return)"]
        for name in against:
            gain = paired(study, task, contestant, name, level=level)
            row += [interval(gain and gain.estimate, signed=True), finite(gain and gain.t)]
        rows.append([*row, seeds_episodes(study, task, [contestant])])
    averages = [average_gain(study, contestant, name, level=level) for name in against]
    count = max((len(a.gains) for a in averages if a), default=0)
    cells = [x for a in averages for x in (interval(a and a.estimate, signed=True), finite(a and a.t))]
    rows.append([f"average of {count}", *cells, DASH])
    return Sheet(
        [*head, "seeds × episodes"],
        rows,
        [
            f"Differences of episodes with the same training seed and environment seed. {level:.0%} intervals: hierarchical "
            "bootstrap (training seeds, then episodes), and Student's t with one number per training seed.",
        ],
    )


def contestants(study: Study, *, level: float = 0.95) -> Sheet:
    """All contestants: settings, averages over tasks, gains, worst task, cost."""
    main = main_contestant(study)
    head = [
        "contestant",
        "settings",
        "mean score",
        "IQM",
        "P(improvement)",
        "gain over base",
        "gain over H = 0",
        "worst task",
        "tasks",
        "ms / decision",
    ]
    rows = []
    for name in study.contestants:
        whole = aggregate(study, name, level=level)
        gain = None if name == BASE else average_gain(study, name, level=level)
        control = control_of(study, name)
        over = average_gain(study, name, control[0], level=level) if control else None
        measured = f"{len(whole.tasks) if whole else 0} of {len(study.scored_tasks)}"
        rows.append(
            [
                name,
                describe(study, name, None if name in (BASE, main) else main),
                interval(whole and whole.mean),
                interval(whole and whole.iqm),
                _probability(whole and whole.improvement),
                interval(gain and gain.estimate, signed=True),
                _over_control(over, control),
                _worst(gain),
                measured,
                cost_text(study, name),
            ]
        )
    rows_in_step = {p.record["settings"].get("rows") or len(p.record["returns"]) for p in study.plays.values()}
    lockstep = " or ".join(map(str, sorted(rows_in_step))) or "no"
    relative = bool(main and settings_of(study, main))
    note = f"Settings are those in which a contestant differs from {main}. " if relative else ""
    return Sheet(
        head,
        rows,
        [
            f"{note}IQM: interquartile mean over all runs of all tasks. P(improvement): probability that a run scores above an "
            "independent run of the base policy, averaged over tasks. Worst task: lowest mean gain. "
            f"{level:.0%} intervals by the stratified hierarchical bootstrap (tasks are strata; training seeds, then episodes are "
            "drawn). ms / decision: the controller's time per action, median (minimum–maximum) over cells, with "
            f"{lockstep} episodes in lock-step, on a machine that may have been running other work.",
        ],
    )


def factor(study: Study, name: str, levels: Sequence[Level], *, level: float = 0.95) -> Sheet:
    """Gain over base of each value of a factor; all other settings equal those of the centre."""
    head = [
        name,
        "contestant",
        "gain over base",
        "Student's t over seeds",
        "worst task",
        f"worse than {HARM:+g}",
        "ms / decision",
    ]
    rows = []
    for own in levels:
        gain = average_gain(study, own.contestant, level=level)
        harmed = DASH if gain is None else f"{len(gain.harmed)} of {len(gain.gains)}"
        centre = f"**{own.value}**" if own.centre else own.value
        rows.append(
            [
                centre,
                own.contestant,
                interval(gain and gain.estimate, signed=True),
                finite(gain and gain.t),
                _worst(gain),
                harmed,
                cost_text(study, own.contestant),
            ]
        )
    return Sheet(head, rows)


def data(study: Study) -> Sheet:
    """The data that each task's runs were trained on."""
    rows = []
    for task in study.tasks:
        found = data_of(study, task)
        size = [f"{found[k]:,}" if k in found else DASH for k in ("transitions", "episodes")]
        rows.append([task, str(found.get("name") or found["path"].rpartition("/")[2]), *size, str(found.get("digest", DASH))])
    return Sheet(["task", "data", "transitions", "episodes", "digest"], rows)


def gaps(study: Study) -> Sheet | None:
    """Missing, failed and incomparable results with the cells concerned; None if there are none."""
    if not study.gaps:
        return None
    order = {"failed": 0, "not comparable": 1, "missing": 2}
    groups: dict[tuple[str, str, str], dict[str, list[int]]] = {}
    for gap in sorted(study.gaps, key=lambda g: order[g.state]):
        groups.setdefault((gap.state, gap.what, gap.reason), {}).setdefault(gap.task, []).append(gap.seed)
    rows = [
        [state, what, reason, str(sum(map(len, cells.values()))), _cells(study, cells)]
        for (state, what, reason), cells in groups.items()
    ]
    return Sheet(["state", "what", "reason", "cells", "task: seeds"], rows)


def _cells(study: Study, cells: dict[str, list[int]]) -> str:
    if sum(map(len, cells.values())) == len(study.tasks) * len(study.seeds):
        return "all"
    return "; ".join(f"{task}: {', '.join(map(str, sorted(seeds)))}" for task, seeds in cells.items())


def few_seeds(study: Study) -> str:
    """A warning about intervals from few training seeds; empty if there are enough."""
    counts = [len(study.of(task, BASE)) for task in study.tasks if study.of(task, BASE)]
    least = min(counts, default=0)
    if least >= FEW_SEEDS or not counts:
        return ""
    count = f"{least} training seed{'s' if least != 1 else ''} (fewer than {FEW_SEEDS})"
    return (
        f"With {count} the bootstrap intervals are too narrow: they cannot reflect more variation between trainings than these "
        "few seeds show. Student's t over seeds does not have this defect but is wide; rely on what both intervals show."
    )


def harm(average: Average) -> str:
    """Whether any task is significantly worse than `HARM`, in sentences."""

    def listed(gains: Sequence[Gain]) -> str:
        return ", ".join(f"{g.task} {interval(g.estimate, signed=True)}" for g in gains)

    n = len(average.gains)
    sentences = [
        f"Worse than {HARM:+g} beyond noise: {listed(average.harmed)}."
        if average.harmed
        else f"No task of {n} is worse than {HARM:+g} beyond noise.",
        f"Shown to be no worse: {len(average.harmless)} of {n}.",
    ]
    if average.undecided:
        sentences.append(f"Undecided, since the interval contains {HARM:+g}: {listed(average.undecided)}.")
    if average.absent:
        sentences.append(f"Not measured: {', '.join(average.absent)}.")
    return " ".join(sentences)


def finite(estimate) -> str:
    """The interval in brackets; a dash if there is none or it is infinite."""
    if estimate is None or not np.isfinite([estimate.low, estimate.high]).all():
        return DASH
    return interval(estimate, signed=True).partition(" ")[2]


def cost_text(study: Study, contestant: str) -> str:
    """Milliseconds per decision, "1.8 (1.2–2.9)"."""
    times = cost(study, contestant)
    if times is None:
        return DASH
    middle, low, high = (f"{t:.3g}" for t in times)
    return middle if low == high else f"{middle} ({low}–{high})"


def _probability(estimate) -> str:
    return DASH if estimate is None else f"{estimate.mean:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def _over_control(over: Average | None, control: tuple[str, list[str]] | None) -> str:
    if over is None or control is None:
        return DASH
    also = f", which also differs in {' and '.join(control[1])}" if control[1] else ""
    return f"{interval(over.estimate, signed=True)} ({control[0]}{also})"


def _worst(gain: Average | None) -> str:
    return DASH if gain is None else f"{gain.worst.task} {interval(gain.worst.estimate, signed=True)}"


def average_score(study: Study, contestant: str) -> str:
    """The mean score over all scored tasks; a dash if one is missing."""
    means = [[x.mean() for x in study.runs(task, contestant).values()] for task in study.scored_tasks]
    return f"{np.mean([np.mean(m) for m in means]):.1f}" if means and all(means) else DASH


def _returns(study: Study, task: str, contestant: str) -> str:
    runs = [float(np.mean(p.record["returns"])) for p in study.of(task, contestant).values()]
    if not runs:
        return DASH
    return f"{np.mean(runs):.0f}" + (f" ± {np.std(runs, ddof=1):.0f}" if len(runs) > 1 else "")
