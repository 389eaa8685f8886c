"""Text and plot of the gradient benchmark's results."""

from pathlib import Path

from floor import percent, share
from goals import evaluate, median, sentence
from peers import CONTESTANTS
from problems import Case

from jacrec import Auto
from jacrec.engine.shapes import problem

MIB = 2**20


def chosen(case: Case) -> str:
    """The method that Auto chooses for a case."""
    return repr(Auto().choose(problem(*case.arguments)))


def peers(row: dict) -> list[str]:
    """The contestants of a row other than jacrec's methods."""
    return [name for name in row["ms"] if not CONTESTANTS[name].ours]


def block(row: dict, *, first: bool) -> str:
    """One size, with a line per contestant."""
    limit = row["floor"]
    lines = [
        f"{row['task']} (d {row['d']}, m {row['m']})  {row['model']}  M {row['M']}  H {row['H']}  K {row['K']}  "
        f"width {row['width']}  {row['dtype']}: floor {limit['ms']:.3f} ms (arithmetic {limit['arithmetic']:.3f}, "
        f"bytes {limit['bytes']:.3f}, latency {limit['latency']:.3f}); Auto takes {row['chosen']}"
    ]
    rates = row["rates"]
    if first:
        lines.append(
            f"  peak {rates['flops'] / 1e9:.0f} GFLOP/s, reads {rates['bytes'] / 1e9:.0f} GB/s; "
            f"torch's matrix products {rates['products'] / 1e9:.0f} GFLOP/s ({percent(share(rates['products'], rates['flops']))})"
        )
    others = peers(row)
    lines.append(f"  {'ms, median (p20-p80)':46s}{'MiB':>9s}{'error':>9s}{'floor':>7s}   times as fast as " + ", ".join(others))
    for name, ms in row["ms"].items():
        peak = row["peak_bytes"][name]
        ratios = "  ".join(f"{row['ms'][other]['median'] / ms['median']:6.2f}" for other in others)
        lines.append(
            f"  {name:25s}{ms['median']:9.3f} ({ms['p20']:.2f}-{ms['p80']:.2f})".ljust(48)
            + f"{'-' if peak is None else f'{peak / MIB:.2f}':>9s}{row['error'][name]:9.0e}"
            f"{percent(share(limit['ms'], ms['median'])):>7s}   {ratios}"
        )
    if row["others"] > 0.05:
        lines.append(f"    CROWDED: other processes used {row['others']:.0%} of the machine, so times are not reliable")
    for name, parts in row["phases"].items():
        if parts:
            lines.append(f"    phases of {name}: " + ", ".join(f"{phase} {ms:.2f}" for phase, ms in parts.items()))
    ready = {name: s for name, s in row["ready_seconds"].items() if s >= 0.5}
    if ready:
        lines.append("    seconds until ready: " + ", ".join(f"{name} {s:.1f}" for name, s in ready.items()))
    if first:
        lines += [f"  absent: {name}: {reason}" for name, reason in row["absent"].items()]
    return "\n".join(lines)


def summary(rows: list[dict], where: dict) -> str:
    """Agreement, Auto's regret, the goals, and the environment."""
    lines = [f"All gradients agree to {max(r['difference'] for r in rows):.0e} in float64. floor: share of the physical limit."]
    fair = [r for r in rows if "auto" in r["ms"] and any(CONTESTANTS[n].ours and n != "auto" for n in r["ms"])]
    if fair:
        regret = max((median(r, "auto") or 0.0) / (median(r, "best of ours") or 1.0) for r in fair)
        lines.append(f"Auto is at most {regret:.2f}× the best of jacrec's methods (timing noise included).")
    lines += [sentence(goal) for goal in evaluate(rows, "cuda" if "cuda" in where else "cpu")]
    lines.append(", ".join(f"{k} {v}" for k, v in where.items() if v is not None))
    return "\n".join(lines)


def plot(result: dict, path: Path) -> Path:
    """Plot milliseconds over M, both logarithmic, with a panel per task, H, K and width; the path."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    panels: dict[tuple, list[dict]] = {}
    for row in result["rows"]:
        panels.setdefault((row["task"], row["H"], row["K"], row["width"], row["model"]), []).append(row)
    columns = min(len(panels), 3)
    down = -(-len(panels) // columns)
    figure, axes = plt.subplots(down, columns, figsize=(5.4 * columns, 4.2 * down), squeeze=False, layout="constrained")
    names = list(dict.fromkeys(name for row in result["rows"] for name in row["ms"]))
    colours = plt.get_cmap("tab20")
    for ax, (panel, rows) in zip(axes.flat, panels.items(), strict=False):
        rows = sorted(rows, key=lambda row: row["M"])
        for i, name in enumerate(names):
            have = [row for row in rows if name in row["ms"]]
            low, mid, high = ([row["ms"][name][q] for row in have] for q in ("p20", "median", "p80"))
            M = [row["M"] for row in have]
            ours = CONTESTANTS[name].ours
            ax.plot(M, mid, "-o" if ours else "--s", color=colours(i % 20), markersize=3, linewidth=1.4, label=name)
            ax.fill_between(M, low, high, color=colours(i % 20), alpha=0.2)
        ax.plot([r["M"] for r in rows], [r["floor"]["ms"] for r in rows], ":", color="black", label="floor")
        ax.set(
            xscale="log",
            yscale="log",
            xlabel="particles M",
            ylabel="milliseconds per gradient",
            title=f"{panel[0]}, {panel[4]}, H = {panel[1]}, K = {panel[2]}, width {panel[3]}",
        )
        ax.set_xticks([r["M"] for r in rows], [str(r["M"]) for r in rows])
        ax.grid(alpha=0.3, which="both")
    for ax in axes.flat[len(panels) :]:
        ax.set_axis_off()
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8)
    where = result["environment"]
    figure.suptitle(
        f"One policy gradient on {where['machine']}, {where['threads']} threads, torch {where['torch']}, "
        f"commit {where['commit']}",
        fontsize=9,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
