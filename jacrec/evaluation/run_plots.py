"""Plots of one run's report: each function draws one PNG from a record."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from jacrec.evaluation.drawing import BAND, COLOURS, ZERO_LINE, error_bar, figure
from jacrec.evaluation.results import LABELS, compare, interval, unit


def learning_curves(metrics: list[dict[str, Any]], path: Path) -> bool:
    """Draw what was trained of policy, world model and reward model, and the evaluations meanwhile; False if nothing was logged."""
    stages = {name: [line for line in metrics if line["stage"] == name] for name in ("rebrac", "dynamics", "reward")}
    stages["played"] = [line for line in stages["rebrac"] if "eval_score" in line or "eval_return" in line]
    draw = {"rebrac": _policy, "dynamics": _model, "reward": _reward, "played": _played}
    logged = [name for name in draw if stages[name]]
    if not logged:
        return False
    with figure(path, (4 * len(logged), 3.3), len(logged)) as panels:
        for name, axes in zip(logged, panels, strict=True):
            draw[name](axes, stages[name])
            axes.set_xlabel("updates")
            axes.legend()
    return True


def _policy(axes: Axes, lines: list[dict[str, Any]]) -> None:
    _curve(axes, lines, "q_policy", COLOURS["mpc"], "mean Q of the policy's actions")
    _curve(axes, lines, "data_return", COLOURS["reference"], "mean discounted return in the data", dashed=True)
    axes.set_title("Critic's value of the policy")
    axes.set_ylabel("Q")


def _model(axes: Axes, lines: list[dict[str, Any]]) -> None:
    _curve(axes, lines, "one_step_rmse", COLOURS["model"], "world model")
    _curve(axes, lines, "still_rmse", COLOURS["reference"], "s' = s", dashed=True)
    axes.set_title("One-step RMSE, held-out")
    axes.set_yscale("log")


def _reward(axes: Axes, lines: list[dict[str, Any]]) -> None:
    _curve(axes, lines, "reward_rmse", COLOURS["h0"], "reward model")
    _curve(axes, lines, "reward_std", COLOURS["reference"], "spread of the rewards", dashed=True)
    axes.set_title("Reward RMSE, held-out")
    axes.set_yscale("log")


def _played(axes: Axes, lines: list[dict[str, Any]]) -> None:
    scored = any("eval_score" in line for line in lines)
    _curve(axes, lines, "eval_score" if scored else "eval_return", COLOURS["base"], "mean, 95 % interval of the episodes")
    axes.set_title("Policy in the environment")
    axes.set_ylabel("normalised score" if scored else "return")


def _curve(axes: Axes, lines: list[dict[str, Any]], key: str, colour: str, label: str, *, dashed: bool = False) -> None:
    lines = [line for line in lines if key in line]
    if not lines:
        return
    x, y = np.array([line["update"] for line in lines]), np.array([line[key] for line in lines])
    error = np.array([line.get(f"{key}_se", 0.0) for line in lines])
    axes.plot(x, y, color=colour, label=label, linestyle="--" if dashed else "-")
    if error.any():
        axes.fill_between(x, y - 1.96 * error, y + 1.96 * error, color=colour, **BAND)


def scores(record: dict[str, Any], path: Path, *, level: float = 0.95) -> None:
    """Draw every episode, joined by seed, with means and intervals, next to the paired gains."""
    results, what = compare(record, level=level), unit(record)
    key = "scores" if what == "score" else "returns"
    with figure(path, (10, 3.8), 2, width_ratios=[3, 2]) as (left, right):
        values = np.array([record["contestants"][r.name][key] for r in results])
        x = np.arange(len(results))
        left.plot(x, values, color="#cbd5e1", linewidth=0.9, zorder=1)
        for i, r in enumerate(results):
            colour, at = COLOURS[r.name], (i + 0.13, r.value.mean)
            left.scatter(np.full(values.shape[1], i), values[i], s=18, color=colour, alpha=0.45, zorder=2, linewidth=0)
            left.errorbar(*at, yerr=error_bar(r.value), fmt="o", color=colour, markersize=8, capsize=4, zorder=3)
            left.annotate(f"{r.value.mean:.1f}", at, xytext=(9, -3), textcoords="offset points", weight="bold")
        left.set_xticks(x, [r.label for r in results])
        left.set_xlim(-0.4, len(results) - 0.5)
        left.set_ylabel("normalised score" if what == "score" else "return")
        left.set_title(f"{values.shape[1]} episodes each, joined by seed")
        bars = [(f"{r.label}\n− base", r.gain, COLOURS[r.name]) for r in results if r.gain is not None]
        bars += [(f"{r.label}\n− H = 0", r.over_h0, COLOURS["model"]) for r in results if r.over_h0 is not None]
        for i, (_, gain, colour) in enumerate(bars):
            text = interval(gain, signed=True)
            right.errorbar(gain.mean, i, xerr=error_bar(gain), fmt="o", color=colour, markersize=8, capsize=4)
            right.annotate(text, (gain.mean, i), xytext=(0, 9), textcoords="offset points", ha="center", fontsize=9)
        right.axvline(0, **ZERO_LINE)
        right.set_yticks(range(len(bars)), [bar[0] for bar in bars])
        right.set_ylim(len(bars) - 0.4, -0.6)
        right.margins(x=0.3)
        right.locator_params(axis="x", nbins=5)
        right.ticklabel_format(axis="x", style="plain", useOffset=False)
        right.tick_params(axis="x", labelsize=9)
        right.grid(axis="y", visible=False)
        right.set_title(f"Paired difference, {level:.0%} interval")


def objective(record: dict[str, Any], path: Path) -> bool:
    """Draw Ĵ along the episode, for ψ relative to ψ₀ and across one decision; False if nothing was measured."""
    probes = {n: record["contestants"].get(n, {}).get("thinking") for n in ("h0", "mpc")}
    probed = [name for name, thinking in probes.items() if thinking and thinking["probe_steps"]]
    if not probed:
        return False
    with figure(path, (12, 3.5), 3) as (level, total, step):
        for name in probed:
            thinking = record["contestants"][name]["thinking"]
            colour, label = COLOURS[name], LABELS[name]
            if name == "mpc" or "mpc" not in probed:
                _band(level, *_by_step(thinking, "pretrained"), COLOURS["base"], "pretrained ψ₀")
                _band(level, *_by_step(thinking, "after"), colour, f"{label}, after")
            _band(total, *_by_step(thinking, "after", "pretrained"), colour, label)
            _band(step, *_by_step(thinking, "after", "before"), colour, label)
        level.set_title("Imagined return Ĵ at visited states")
        total.set_title("Ĵ(ψ) − Ĵ(ψ₀)")
        step.set_title("Ĵ after − before one decision")
        for axes in (level, total, step):
            axes.set_xlabel("step of the episode")
            axes.legend()
        for axes in (total, step):
            axes.axhline(0, **ZERO_LINE)
    return True


def _by_step(thinking: dict[str, Any], key: str, minus: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Steps (n,) and quartiles over episodes (n, 3) of Ĵ, or of the difference of two Ĵ."""
    values = defaultdict(list)
    second = thinking["objective"][minus] if minus else None
    for i, (steps, row) in enumerate(zip(thinking["probe_steps"], thinking["objective"][key], strict=True)):
        for j, (t, value) in enumerate(zip(steps, row, strict=True)):
            other = second[i][j] if second else 0.0
            if value is not None and other is not None:
                values[t].append(value - other)
    steps = sorted(values)
    return np.array(steps), np.array([np.quantile(values[t], [0.25, 0.5, 0.75]) for t in steps]).reshape(-1, 3)


def _band(axes: Axes, x: np.ndarray, quartiles: np.ndarray, colour: str, label: str) -> None:
    axes.plot(x, quartiles[:, 1], color=colour, label=label)
    axes.fill_between(x, quartiles[:, 0], quartiles[:, 2], color=colour, **BAND)


def growth(record: dict[str, Any], path: Path) -> bool:
    """Draw ‖ds̃_j/ds̃_0‖₂ over the imagined steps; False if it was not measured."""
    data = record["growth"]
    if data is None:
        return False
    with figure(path, (5.4, 3.5), 1) as (axes,):
        j = np.arange(len(data["median"]))
        axes.plot(j, data["median"], "o-", color=COLOURS["model"], markersize=4, label="median")
        axes.fill_between(j, data["low"], data["high"], color=COLOURS["model"], **BAND, label="quartiles")
        axes.set_yscale("log")
        axes.axhline(1, **ZERO_LINE)
        if (record.get("rehearsal") or {}).get("choice") != "base":
            horizon = record["settings"]["mpc"]["horizon"]
            axes.axvline(horizon, color=COLOURS["mpc"], linestyle=":", label=f"H = {horizon} of this evaluation")
        axes.set_xlabel("imagined step j")
        axes.set_ylabel("‖ds̃ⱼ / ds̃₀‖")
        axes.set_title("Growth of the closed-loop Jacobian")
        axes.legend()
    return True
