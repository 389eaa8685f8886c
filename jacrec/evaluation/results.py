"""Comparison of the contestants of an evaluation, computed from its record."""

from dataclasses import dataclass
from typing import Any

from rich.table import Table

from jacrec.evaluation.config import CONTESTANTS
from jacrec.evaluation.markdown import terminal_table
from jacrec.evaluation.statistics import Estimate, bootstrap_mean, paired_difference

LABELS = {"base": "base policy", "h0": "H = 0 (critic only)", "mpc": "MPC"}

SHOWN = 0.1
"""the last printed digit of scores and returns"""
SHORT = {"base": "base", "h0": "H = 0", "mpc": "MPC"}


@dataclass(frozen=True)
class Result:
    """One contestant. Values are normalised scores if the task has them, otherwise raw returns."""

    name: str
    value: Estimate
    """mean over episodes"""
    returns: Estimate
    """raw return"""
    gain: Estimate | None
    """difference to the base policy, paired by seed"""
    over_h0: Estimate | None
    """difference to the H = 0 control, paired by seed"""
    decisions_per_second: float
    """median over the controller's calls, compiled before the first"""
    lengths: float
    """mean episode length in steps"""
    rejected: float | None
    """share of updates rejected as non-finite"""
    drift: float | None
    """mean ‖ψ − ψ₀‖"""
    action_change: float | None
    """mean |a − π₀(s)| per component"""
    objective_gain: float | None
    """mean of Ĵ after − Ĵ before the updates of a decision, on noise independent of the updates"""

    @property
    def label(self) -> str:
        """Display name."""
        return LABELS.get(self.name, self.name)

    @property
    def cells(self) -> list[str]:
        """Gains, episode length and decisions per second as the last columns of a table."""
        gains = [interval(gain, signed=True) for gain in (self.gain, self.over_h0)]
        return [*gains, f"{self.lengths:.0f}", f"{self.decisions_per_second:.0f}"]


def unit(record: dict[str, Any]) -> str:
    """The unit of the comparison: "score" or "return"."""
    return "return" if record["contestants"]["base"]["scores"] is None else "score"


def compare(record: dict[str, Any], *, level: float = 0.95) -> list[Result]:
    """Results of the contestants that have played, base first, with paired differences.

    Raises:
        ValueError: the base policy has not played yet.
    """
    played = record["contestants"]
    if "base" not in played:
        raise ValueError("evaluation: expected finished episodes of the base policy, got none; finish it with `jacrec eval`")
    key = "scores" if unit(record) == "score" else "returns"
    return [_result(name, played, key, level) for name in CONTESTANTS if name in played]


def _result(name: str, played: dict[str, Any], key: str, level: float) -> Result:
    entry = played[name]
    values, thinking = entry[key], entry.get("thinking")
    against_h0 = name not in ("base", "h0") and "h0" in played
    objective = thinking["mean_objective"] if thinking else {}
    known = objective.get("after") is not None and objective.get("before") is not None
    return Result(
        name=name,
        value=bootstrap_mean(values, level=level),
        returns=bootstrap_mean(entry["returns"], level=level),
        gain=None if name == "base" else paired_difference(values, played["base"][key], level=level),
        over_h0=paired_difference(values, played["h0"][key], level=level) if against_h0 else None,
        # evaluations before there was a median have the mean, in which the time to compile counts
        decisions_per_second=entry.get("decisions_per_second") or entry["decisions"] / max(entry["seconds"], 1e-9),
        lengths=sum(entry["lengths"]) / len(entry["lengths"]),
        rejected=thinking["rejected"] / max(thinking["updates"], 1) if thinking else None,
        drift=thinking["mean_drift"] if thinking else None,
        action_change=thinking["mean_action_change"] if thinking else None,
        objective_gain=objective["after"] - objective["before"] if known else None,
    )


CARRY = {
    "episode": "ψ carried over the episode",
    "persist": "ψ carried over all episodes",
    "step": "ψ reset at every step",
}


def settings_in_words(record: dict[str, Any], name: str) -> str:
    """The settings that a contestant has played with: "H 3, M 4, E 3, lr 0.0005, ψ reset at every step"."""
    own = record["contestants"][name].get("controller")
    if own is None:
        return "as trained"
    if "updates" not in own:  # a planner over actions
        return f"H {own['horizon']}"
    particles = f", M {own['particles']}" if own["horizon"] else ""
    carry = CARRY.get(own["carry"], own["carry"])
    unit = " mean|Q| units" if own.get("units") == "value" else ""
    anchor = f", anchor {own['anchor']:g}" if own.get("anchor") else ""
    terminal = ", the base's action in the last term" if own.get("terminal") == "base" else ""
    return f"H {own['horizon']}{particles}, E {own['updates']}, lr {own['lr']:g}{unit}{anchor}{terminal}, {carry}"


def settings_apart(record: dict[str, Any]) -> list[str]:
    """What the control H = 0 and MPC have played with beside their horizons: "lr 5e-05 against 0.0005"; [] if the same."""
    pair = [record["contestants"].get(name, {}).get("controller") for name in ("h0", "mpc")]
    if not all(pair):
        return []
    h0, mpc = pair
    names = ("updates", "lr", "units", "anchor", "carry")
    return [f"{key} {h0[key]} against {mpc[key]}" for key in names if h0.get(key) != mpc.get(key)]


def interval(estimate: Estimate | None, *, signed: bool = False) -> str:
    """ "+3.1 [+1.2, +4.9]", with more digits for small values and no "-0.0"; a dash for None."""
    if estimate is None:
        return "–"
    values = estimate.mean, estimate.low, estimate.high
    largest = max(map(abs, values))
    digits = 1 if largest >= 1 or largest == 0 else 2 if largest >= 0.01 else 4
    mean, low, high = (f"{value:{'+' if signed else ''}z.{digits}f}" for value in values)
    return f"{mean} [{low}, {high}]"


def verdict(gain: Estimate, subject: str, reference: str, what: str, *, few_below: int = 10) -> str:
    """The gain in one sentence; fewer than `few_below` episodes are pointed out.

    Nothing is claimed of a difference that the printed scores do not show: they have `SHOWN` of a point as their last digit.
    """
    if abs(gain.mean) < SHOWN / 2 and gain.excludes_zero:
        outcome = "has the same printed score as"
    elif gain.low > 0:
        outcome = "gains over"
    elif gain.high < 0:
        outcome = "loses against"
    else:
        outcome = "does not differ clearly from"
    few = f" ({gain.n} episodes are few)" if gain.n < few_below else ""
    return f"{subject} {outcome} {reference}: {interval(gain, signed=True)} {what}{few}."


def table(record: dict[str, Any], *, level: float = 0.95) -> Table:
    """The comparison for a terminal."""
    results, what = compare(record, level=level), unit(record)
    n = record["settings"]["episodes"]
    title = f"{record['environment']['id']}: {n} episodes on the same seeds, {level:.0%} intervals"
    rows = [[SHORT.get(r.name, r.name), f"{r.value.mean:.1f} ± {r.value.std:.1f}", *r.cells] for r in results]
    head = ("", f"{what} ± std", "gain over base", "over H = 0", "steps", "actions/s")
    made = terminal_table(head, rows, title=title, padding=0)
    made.caption = "\n".join(f"{SHORT.get(r.name, r.name)}: {settings_in_words(record, r.name)}" for r in results)
    made.caption_justify = "left"
    return made
