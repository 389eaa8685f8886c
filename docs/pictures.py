"""The README's two pictures, from recorded results alone: docs/images/gain.svg and docs/images/speed.svg.

python docs/pictures.py
"""

import itertools
import json
import re
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

ROOT = Path(__file__).parent.parent
THINKING = ROOT / "paper_checks/results/thinking.md"
GAINS = ROOT / "paper_checks/results/gains.json"
SPEED = ROOT / "benchmarks/results/grad_speed_cpu_amd-epyc_2_cores.json"
TUNED = {"base policy": "base policy", "**H = 0, tuned**": "critic alone, tuned", "**MPC, tuned**": "MPC, tuned"}
"""rows of the record, with their labels"""
FIXED = {"h0": "critic alone", "h3": "MPC", "mpc-ensemble": "MPC after a rehearsal"}
PEERS = {"torch autograd": "torch autograd", "jax scan": "JAX jit", "auto": "jacrec"}
GREY, LIGHT, BLUE = "#8c8c8c", "#9ecae1", "#08519c"
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "jacrec",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def tuned_scores() -> tuple[list[str], dict[str, list[float]]]:
    """The HalfCheetah runs of the record on tuned thinking, and each contestant's scores."""
    runs: list[str] = []
    scores: dict[str, list[float]] = {label: [] for label in TUNED.values()}
    tables = re.finditer(r"(?:^\|.*\n)+", THINKING.read_text(encoding="utf-8"), re.MULTILINE)
    for table in itertools.islice(tables, 2):  # those of HalfCheetah
        head, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[0].splitlines()]
        columns = [i for i, name in enumerate(head) if "seed" in name]
        runs += [head[i] for i in columns]
        for row in rows:
            if row[0] in TUNED:
                scores[TUNED[row[0]]] += [float(re.match(r"[\d.]+", row[i])[0]) for i in columns]  # pyright: ignore
    return runs, scores


def fixed_gains() -> dict[str, tuple[float, float, float]]:
    """Average gain over the base on twelve data sets with its interval, of three contestants."""
    gains = json.loads(GAINS.read_text(encoding="utf-8"))["gains"]
    averages = {label: gains[name]["base"]["average"]["bootstrap"] for name, label in FIXED.items()}
    return {label: (x["mean"], x["low"], x["high"]) for label, x in averages.items()}


def gradient_times() -> tuple[list[int], dict[str, list[float]]]:
    """Particles, and each contestant's median milliseconds per gradient: hopper, diffusion, H = 3, K = 10."""
    rows = json.loads(SPEED.read_text(encoding="utf-8"))["rows"]
    rows = [row for row in rows if (row["task"], row["model"], row["H"], row["K"]) == ("hopper", "diffusion", 3, 10)]
    return [row["M"] for row in rows], {label: [row["ms"][name]["median"] for row in rows] for name, label in PEERS.items()}


def bars(ax: Axes, groups: list[str], values: dict[str, list[float]], form: str) -> None:
    """Grouped bars with their values above."""
    for i, ((label, heights), colour) in enumerate(zip(values.items(), (GREY, LIGHT, BLUE), strict=True)):
        at = [x + 0.27 * (i - 1) for x in range(len(groups))]
        drawn = ax.bar(at, heights, 0.25, color=colour, label=label)
        ax.bar_label(drawn, [form.format(x) for x in heights], padding=1, fontsize=7)
    ax.set_xticks(range(len(groups)), groups)


def draw_gain(path: Path) -> None:
    """Scores with tuned settings; average gains of fixed settings on twelve sets."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.2), width_ratios=(5, 2), layout="constrained")
    runs, scores = tuned_scores()
    bars(left, [run.replace(", ", "\n") for run in runs], scores, "{:.1f}")
    left.set(ylabel="normalised score", ylim=(0, 78))
    left.tick_params(axis="x", labelsize=7)
    left.set_title("HalfCheetah, settings tuned on other seeds", fontsize=9)
    left.legend(frameon=False, fontsize=8, ncols=3, loc="upper center")
    gains = fixed_gains()
    for i, (mean, low, high) in enumerate(gains.values()):
        right.errorbar(mean, i, xerr=[[mean - low], [high - mean]], fmt="o", color=(LIGHT, GREY, BLUE)[i], capsize=3)
        right.text(mean, i + 0.18, f"{mean:+.1f}", ha="center", fontsize=8)
    right.axvline(0, color="black", linewidth=0.8)
    right.set_yticks(range(len(gains)), list(gains))
    right.set(xlabel="average gain over the base, points", ylim=(-0.5, len(gains) - 0.4))
    right.set_title("twelve weak bases, settings fixed", fontsize=9)
    save(figure, path)


def draw_speed(path: Path) -> None:
    """Milliseconds per gradient against the number of particles."""
    figure, ax = plt.subplots(figsize=(6.2, 2.9), layout="constrained")
    particles, times = gradient_times()
    bars(ax, [f"M = {m}" for m in particles], times, "{:.2g}")
    ax.set(yscale="log", ylabel="ms per gradient", ylim=(0.4, 150))
    ax.set_title("one gradient: hopper, diffusion world model, H = 3, K = 10, two threads", fontsize=9)
    ax.legend(frameon=False, fontsize=8, loc="upper left")
    save(figure, path)


def save(figure: plt.Figure, path: Path) -> None:  # pyright: ignore[reportPrivateImportUsage]
    """Write the SVG, the same for the same results."""
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    # matplotlib leaves blanks at line ends
    path.write_text("".join(f"{line.rstrip()}\n" for line in path.read_text(encoding="utf-8").splitlines()), encoding="utf-8")


def main(folder: Path = ROOT / "docs/images") -> None:
    """Draw both."""
    with plt.rc_context(STYLE):
        draw_gain(folder / "gain.svg")
        draw_speed(folder / "speed.svg")


if __name__ == "__main__":
    main()
