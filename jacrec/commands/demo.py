"""`jacrec demo`."""

from pathlib import Path

import tyro

from jacrec.commands.demo_run import FULL, QUICK, demo


def run_demo(*, out: Path | None = None, quick: bool = False) -> int:
    """Make data in MuJoCo, train, evaluate base against MPC, report. An interrupted demo is gone on with.

    Args:
        out: the run's folder; runs/demo, or runs/demo-quick
        quick: a smoke of a minute at most: every stage, no meaningful scores
    """
    demo(QUICK if quick else FULL, out or Path("runs/demo-quick" if quick else "runs/demo"))
    return 0


def run(args: list[str]) -> int:
    """The verb."""
    return tyro.cli(run_demo, args=args, prog="jacrec demo")
