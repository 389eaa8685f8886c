"""The goals of the gradient benchmark, and whether the rows of a run reach them."""

from collections.abc import Callable
from dataclasses import dataclass

from floor import share
from peers import CONTESTANTS


@dataclass(frozen=True)
class Goal:
    """A ratio required of every row the goal applies to."""

    what: str
    least: float
    applies: Callable[[dict], bool]
    ratio: Callable[[dict, str], float | None]
    """(row, contestant of jacrec) -> ratio; None if it is undefined for the row"""


def median(row: dict, name: str) -> float | None:
    """A contestant's median in milliseconds; "best peer" and "best of ours" are the minima of these groups."""
    if name in ("best peer", "best of ours"):
        ours = name == "best of ours"
        return min((ms["median"] for c, ms in row["ms"].items() if CONTESTANTS[c].ours == ours), default=None)
    return row["ms"][name]["median"] if name in row["ms"] else None


def faster_than(peer: str, least: float, applies: Callable[[dict], bool]) -> Goal:
    """Goal: this many times as fast as a peer."""

    def ratio(row: dict, own: str) -> float | None:
        theirs, ours = median(row, peer), median(row, own)
        return theirs / ours if theirs and ours else None

    return Goal(f"as fast as {peer}", least, applies, ratio)


def of_the_floor(least: float, applies: Callable[[dict], bool]) -> Goal:
    """Goal: this share of the physical limit."""

    def ratio(row: dict, own: str) -> float | None:
        return share(row["floor"]["ms"], median(row, own))

    return Goal("the share of the floor", least, applies, ratio)


def less_memory_than(peer: str, least: float, applies: Callable[[dict], bool]) -> Goal:
    """Goal: this many times less peak memory than a peer."""

    def ratio(row: dict, own: str) -> float | None:
        peaks = row["peak_bytes"]
        if own == "best of ours":
            fitting = [c for c in peaks if CONTESTANTS[c].ours]
            own = min(fitting, key=lambda c: row["ms"][c]["median"], default="")
        return peaks[peer] / peaks[own] if peaks.get(peer) and peaks.get(own) else None

    return Goal(f"less memory than {peer}", least, applies, ratio)


def _few_on_cpu(r: dict) -> bool:
    return r["M"] in (1, 4, 16) and r["H"] in (3, 4, 5) and r["K"] == 10


def _few_on_gpu(r: dict) -> bool:
    return r["M"] <= 64 and r["H"] == 5 and r["K"] == 20


def _many_on_gpu(r: dict) -> bool:
    return r["M"] == 4096


GOALS = {
    "cpu": (
        faster_than("jax scan", 2.0, _few_on_cpu),
        faster_than("torch autograd", 5.0, _few_on_cpu),
        faster_than("best peer", 1.5, lambda r: r["M"] in (64, 256)),
    ),
    "cuda": (
        faster_than("torch autograd", 15.0, _few_on_gpu),
        faster_than("best peer", 3.0, _few_on_gpu),
        of_the_floor(1 / 3, _few_on_gpu),
        faster_than("torch autograd", 5.0, _many_on_gpu),
        faster_than("best peer", 1.5, _many_on_gpu),
        less_memory_than("torch autograd", 50.0, _many_on_gpu),
    ),
}


def evaluate(rows: list[dict], device: str) -> list[dict]:
    """Evaluate each goal with at least one applicable row, for Auto and for the fastest of jacrec's methods in each row."""
    found = []
    for goal in GOALS[device]:
        applicable = [(ratio, row) for row in rows if goal.applies(row) and (ratio := goal.ratio(row, "auto")) is not None]
        if applicable:
            least, worst = min(applicable, key=lambda pair: pair[0])
            best = [goal.ratio(row, "best of ours") or 0.0 for _, row in applicable]
            found.append(
                {
                    "what": goal.what,
                    "goal": goal.least,
                    "M": sorted({row["M"] for _, row in applicable}),
                    "sizes": len(applicable),
                    "least": round(least, 3),
                    "most": round(max(ratio for ratio, _ in applicable), 3),
                    "least_at": f"{worst['task']} M {worst['M']} H {worst['H']}",
                    "least_of_the_fastest": round(min(best), 3),
                }
            )
    return found


def sentence(g: dict) -> str:
    """The outcome of a goal in one sentence."""
    met = "reached" if g["least"] >= g["goal"] else "NOT reached"
    return (
        f"goal: M in {g['M']}, {g['goal']:.2g}× {g['what']}: {met}; Auto {g['least']:.2f}× (at {g['least_at']}) to "
        f"{g['most']:.2f}×, the fastest of jacrec's methods at least {g['least_of_the_fastest']:.2f}×"
    )
