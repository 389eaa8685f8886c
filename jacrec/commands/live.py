"""`jacrec live RUN`: one episode in real time."""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from tyro.conf import Positional

from jacrec.evaluation.live import LiveConfig, LiveLog, play_live
from jacrec.evaluation.tuning import tuned_controller
from jacrec.training.run import Run, load_run


@dataclass(frozen=True)
class Live:
    """Play one episode in real time: the simulation does not wait, and repeats the last action if the next one is late.

    Ctrl-C ends the episode and prints the summary.
    """

    run: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")]
    """the run's folder"""
    tuned: bool = False
    """play with the settings that `jacrec tune` chose for this run"""
    config: Annotated[LiveConfig, tyro.conf.arg(name="")] = field(default_factory=LiveConfig)


COMMAND = Live


def run(args: list[str]) -> int:
    """Run the verb."""
    chosen = tyro.cli(COMMAND, args=args, prog="jacrec live")
    trained = load_run(chosen.run)
    shown, config = sys.stderr.isatty(), chosen.config
    if chosen.tuned:
        config = replace(config, mpc=tuned_controller(trained, config.mpc, LiveConfig().mpc))
    log = play_live(trained, config, status=_overwrite if shown else None)
    if shown:
        print(file=sys.stderr)
    print(summary(trained, log))
    return 0


def summary(run: Run, log: LiveLog) -> str:
    """The episode's return, late actions and decision times, as text."""
    score = run.info.score([log.total], [log.ended == "task"])
    scored = "" if score is None else f", score {float(score[0]):.1f}"
    lines = [
        f"return {log.total:.1f}{scored} in {log.steps} steps, {log.wall_seconds:.2f} s of wall-clock time "
        f"({log.interval_ms:.2f} ms a step); ended by: {log.ended}",
        f"late actions: {log.held} of {log.steps}, at most {log.longest_held} in a row; the simulation was at most "
        f"{log.behind_ms:.2f} ms behind",
    ]
    if log.decision_ms:
        points = zip((50, 90, 99), np.percentile(log.decision_ms, (50, 90, 99)), strict=True)
        shown = ", ".join(f"p{q} {x:.2f}" for q, x in points)
        within = "" if log.deadline_ms is None else f" with a deadline of {log.deadline_ms:.2f} ms"
        lines.append(f"decisions{within}: {shown}, max {max(log.decision_ms):.2f} ms")
    if log.updates:
        without = log.updates.count(0)
        lines.append(f"updates per decision: {np.mean(log.updates):.2f} on average, none in {without}")
        if 2 * without > len(log.updates):
            lines.append(
                f"in {without} of {len(log.updates)} decisions the deadline left no time for an update, so the base policy acted: "
                "use fewer --mpc.particles, a smaller --mpc.horizon, a slower --speed, or fewer other processes"
            )
    return "\n".join(lines)


def _overwrite(line: str) -> None:
    print(f"\r{line}", end="", file=sys.stderr, flush=True)
