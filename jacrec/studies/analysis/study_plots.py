"""Plots of a study's report: paired gains, predicted against real gains, and gain against cost."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from jacrec.evaluation.drawing import PALETTE, ZERO_LINE, error_bar, figure
from jacrec.studies.analysis.gains import HARM, average_gain, cost, paired
from jacrec.studies.analysis.pareto import pareto_front
from jacrec.studies.analysis.read import Study
from jacrec.studies.analysis.rehearsal_accuracy import predicted_gains
from jacrec.studies.config import BASE

Times = Mapping[str, tuple[float, float, float]]
IN_LOCKSTEP = "controller only, in lock-step; median, minimum and maximum over cells"


def forest(study: Study, contestants: Sequence[str], path: Path, *, level: float = 0.95) -> bool:
    """Draw the paired gains over base of every task and their average, with intervals; False if there are none."""
    rows = []
    for task in study.scored_tasks:
        gains = [paired(study, task, c, BASE, level=level) for c in contestants]
        rows.append((task, [g and g.estimate for g in gains]))
    averages = [average_gain(study, c, level=level) for c in contestants]
    rows.append(("average", [a and a.estimate for a in averages]))
    rows = [(name, estimates) for name, estimates in rows if any(e is not None for e in estimates)]
    if not rows:
        return False
    step = 0.8 / len(contestants)
    with figure(path, (8.0, 1.4 + len(rows) * max(0.36, 0.2 * len(contestants))), 1) as (axes,):
        for j, name in enumerate(contestants):
            colour, labelled = PALETTE[j % len(PALETTE)], False
            for i, (_, estimates) in enumerate(rows):
                if (e := estimates[j]) is None:
                    continue
                y = i + (j - (len(contestants) - 1) / 2) * step
                last = rows[i][0] == "average"
                axes.errorbar(
                    e.mean,
                    y,
                    xerr=error_bar(e),
                    fmt="D" if last else "o",
                    color=colour,
                    capsize=3,
                    markersize=6 if last else 5,
                    label=None if labelled else f"{name} − base",
                )
                labelled = True
        axes.axvline(0, **ZERO_LINE)
        axes.axvline(HARM, color="#dc2626", linewidth=1, linestyle=":", label=f"{HARM:+g}")
        axes.set_yticks(range(len(rows)), [name for name, _ in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(f"paired gain in points of normalised score, {level:.0%} interval")
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return True


def predicted_against_real(study: Study, contestant: str, path: Path) -> bool:
    """Draw real against imagined gains, one point per candidate and cell; False if there are none."""
    found = predicted_gains(study, contestant)
    if not found:
        return False
    with figure(path, (7.2, 4.6), 1) as (axes,):
        for i, name in enumerate(dict.fromkeys(x.candidate for x in found)):
            mine, colour = [x for x in found if x.candidate == name], PALETTE[i % len(PALETTE)]
            at = [x.imagined for x in mine], [x.real for x in mine]
            axes.errorbar(*at, xerr=[x.standard_error for x in mine], fmt="none", ecolor=colour, elinewidth=0.8, alpha=0.5)
            axes.scatter(
                *at, s=34, facecolors=[colour if x.chosen else "white" for x in mine], edgecolors=colour, zorder=3, label=name
            )
        axes.axhline(0, **ZERO_LINE)
        axes.axvline(0, **ZERO_LINE)
        axes.set_xlabel("imagined gain over base ± standard error, points of normalised score")
        axes.set_ylabel("real gain over base, points")
        axes.set_title(f"Candidates of {contestant}: imagined and real gains (filled: chosen)")
        axes.legend()
    return True


def cost_against_gain(
    study: Study,
    contestants: Sequence[str],
    path: Path,
    *,
    times: Times | None = None,
    of: str = IN_LOCKSTEP,
    tasks: Sequence[str] | None = None,
    level: float = 0.95,
) -> bool:
    """Draw the average paired gain against milliseconds per decision, one point per contestant, and the Pareto front.

    Args:
        times: median, lower and upper milliseconds by contestant (default: as recorded with the plays).
        of: description of the times, for the axis label.
        tasks: tasks to average over (default: all with normalised scores).

    Returns:
        False if there is nothing to draw.
    """
    points = []
    for name in contestants:
        gain = average_gain(study, name, tasks=tasks, level=level)
        taken = cost(study, name) if times is None else times.get(name)
        if gain is not None and taken is not None:
            points.append((name, gain, taken))
    if not points:
        return False
    with figure(path, (7.2, 4.4), 1) as (axes,):
        for i, (name, gain, (middle, low, high)) in enumerate(points):
            at = middle, gain.estimate.mean
            axes.errorbar(
                *at,
                yerr=error_bar(gain.estimate),
                xerr=[[middle - low], [high - middle]],
                fmt="o",
                capsize=3,
                color=PALETTE[i % len(PALETTE)],
                elinewidth=1,
            )
            axes.annotate(name, at, xytext=(6, 5), textcoords="offset points", fontsize=8)
        at = {name: (ms[0], gain.estimate.mean) for name, gain, ms in points}
        best = [at[name] for name in pareto_front(at)]
        axes.plot(*zip(*best, strict=True), color="#9ca3af", linewidth=1.2, linestyle="--", zorder=0, label="front")
        axes.axhline(0, **ZERO_LINE)
        axes.set_xscale("log")
        axes.set_xlabel(f"milliseconds per decision ({of})")
        axes.legend()
        axes.set_ylabel("average paired gain over base")
        where = "" if tasks is None else f" ({len(tasks)} of {len(study.scored_tasks)} sets)"
        axes.set_title(f"Gain against cost{where}, {level:.0%} intervals")
    return True
