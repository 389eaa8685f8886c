"""What the gradient benchmark prints and draws, from the rows of its results."""

from pathlib import Path

from peers import CONTESTANTS
from problems import Case

from jacrec import Auto
from jacrec.shapes import problem

MIB = 2**20
GOALS = {
    "cpu": (
        (lambda r: r["M"] in (1, 4, 16) and r["H"] in (3, 4, 5) and r["K"] == 10, "jax scan", 2.0),
        (lambda r: r["M"] in (1, 4, 16) and r["H"] in (3, 4, 5) and r["K"] == 10, "torch autograd", 5.0),
        (lambda r: r["M"] in (64, 256), "best peer", 1.5),
    ),
    "cuda": (
        (lambda r: r["M"] <= 64 and r["K"] == 20 and r["H"] == 5, "torch autograd", 15.0),
        (lambda r: r["M"] <= 64 and r["K"] == 20 and r["H"] == 5, "best peer", 3.0),
        (lambda r: r["M"] == 4096, "torch autograd", 5.0),
        (lambda r: r["M"] == 4096, "best peer", 1.5),
    ),
}
"""by device: which rows, against whom, how many times faster"""


def chosen(case: Case) -> str:
    """What Auto takes for a case."""
    return repr(Auto().choose(problem(*case.arguments)))


def median(row: dict, name: str) -> float:
    """A contestant's median in milliseconds; "best peer" and "best of ours" are the least of those."""
    if name in ("best peer", "best of ours"):
        ours = name == "best of ours"
        return min(ms["median"] for c, ms in row["ms"].items() if CONTESTANTS[c].ours == ours)
    return row["ms"][name]["median"]


def peers(row: dict) -> list[str]:
    """The contestants of a row that are not jacrec's."""
    return [name for name in row["ms"] if not CONTESTANTS[name].ours]


def block(row: dict, *, first: bool) -> str:
    """A size with a line for each contestant."""
    limit = row["floor"]
    lines = [f"{row['task']} (d {row['d']}, m {row['m']})  M {row['M']}  H {row['H']}  K {row['K']}  width {row['width']}  "
             f"{row['dtype']}: floor {limit['ms']:.3f} ms (arithmetic {limit['arithmetic']:.3f}, bytes {limit['bytes']:.3f}, "
             f"latency {limit['latency']:.3f}); Auto takes {row['chosen']}"]  # fmt: skip
    others = peers(row)
    lines.append(f"  {'ms, median (p20-p80)':46s}{'MiB':>9s}{'error':>9s}{'floor':>7s}   times as fast as "
                 + ", ".join(others))  # fmt: skip
    for name, ms in row["ms"].items():
        peak = row["peak_bytes"][name]
        ratios = "  ".join(f"{row['ms'][other]['median'] / ms['median']:6.2f}" for other in others)
        lines.append(f"  {name:25s}{ms['median']:9.3f} ({ms['p20']:.2f}-{ms['p80']:.2f})".ljust(48)
                     + f"{'-' if peak is None else f'{peak / MIB:.2f}':>9s}{row['error'][name]:9.0e}"
                     f"{limit['ms'] / ms['median']:7.1%}   {ratios}")  # fmt: skip
    for name, parts in row["phases"].items():
        if parts:
            lines.append(f"    phases of {name}: " + ", ".join(f"{phase} {ms:.2f}" for phase, ms in parts.items()))
    ready = {name: s for name, s in row["ready_seconds"].items() if s >= 0.5}
    if ready:
        lines.append("    seconds until ready: " + ", ".join(f"{name} {s:.1f}" for name, s in ready.items()))
    if first:
        lines += [f"  absent: {name}: {reason}" for name, reason in row["absent"].items()]
    return "\n".join(lines)


def goals(rows: list[dict], device: str) -> list[dict]:
    """Each goal with the least ratio that was reached, by what Auto takes and by the best of jacrec's methods."""
    found = []
    for applies, peer, goal in GOALS[device]:
        timed = [r for r in rows if applies(r) and "auto" in r["ms"] and peers(r)]
        counted = [r for r in timed if peer == "best peer" or peer in r["ms"]]
        if not counted:
            continue
        ratios = [median(r, peer) / median(r, "auto") for r in counted]
        worst = counted[ratios.index(min(ratios))]
        found.append({
            "peer": peer, "goal": goal, "sizes": len(counted), "M": sorted({r["M"] for r in counted}),
            "least": round(min(ratios), 2), "most": round(max(ratios), 2),
            "least_at": f"{worst['task']} M {worst['M']} H {worst['H']}",
            "least_best_of_ours": round(min(median(r, peer) / median(r, "best of ours") for r in counted), 2),
        })  # fmt: skip
    return found


def summary(rows: list[dict], where: dict) -> str:
    """Agreement, Auto's regret, the goals, what ran where."""
    lines = [f"All gradients agree to {max(r['difference'] for r in rows):.0e} in float64. floor: share of the physical limit."]
    fair = [r for r in rows if "auto" in r["ms"] and any(CONTESTANTS[n].ours and n != "auto" for n in r["ms"])]
    if fair:
        regret = max(median(r, "auto") / min(ms["median"] for n, ms in r["ms"].items() if CONTESTANTS[n].ours) for r in fair)
        lines.append(f"Auto is at most {regret:.2f}× the best of jacrec's methods (timing noise included).")
    for g in goals(rows, "cuda" if "cuda" in where else "cpu"):
        met = "reached" if g["least"] >= g["goal"] else "NOT reached"
        lines.append(f"goal: M in {g['M']}, {g['goal']:g}× as fast as {g['peer']}: {met}; {g['least']:.2f}× "
                     f"(at {g['least_at']}) to {g['most']:.2f}×; "
                     f"the best of jacrec's methods at least {g['least_best_of_ours']:.2f}×")  # fmt: skip
    lines.append(", ".join(f"{k} {v}" for k, v in where.items() if v is not None))
    return "\n".join(lines)


def plot(result: dict, path: Path) -> Path:
    """Milliseconds over M, both logarithmic; a panel for each task, H, K and width."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    panels: dict[tuple, list[dict]] = {}
    for row in result["rows"]:
        panels.setdefault((row["task"], row["H"], row["K"], row["width"]), []).append(row)
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
        ax.set(xscale="log", yscale="log", xlabel="particles M", ylabel="milliseconds per gradient",
               title=f"{panel[0]}, H = {panel[1]}, K = {panel[2]}, width {panel[3]}")  # fmt: skip
        ax.set_xticks([r["M"] for r in rows], [str(r["M"]) for r in rows])
        ax.grid(alpha=0.3, which="both")
    for ax in axes.flat[len(panels) :]:
        ax.set_axis_off()
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8)
    where = result["environment"]
    figure.suptitle(f"One policy gradient on {where['machine']}, {where['threads']} threads, torch {where['torch']}, "
                    f"commit {where['commit']}", fontsize=9)  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
