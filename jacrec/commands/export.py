"""`jacrec export RUN`: the run's networks as programs that need no jacrec."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from jacrec.training.export import export_run
from jacrec.training.run import load_run


@dataclass(frozen=True)
class Export:
    """Write policy, world model, reward model and critic as programs of torch.export or ONNX, for any batch size.

    The policy is the base policy. The improved action is no fixed network: it is found by gradient steps at each state, for which
    MPC needs all four parts.
    """

    run: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")]
    """the run's folder"""
    out: Path | None = None
    """folder of the programs and export.json; None: RUN/export"""
    format: Literal["torch", "onnx"] = "torch"
    """torch: NAME.pt2, for torch.export.load; onnx: NAME.onnx (extra: jacrec[onnx])"""


COMMAND = Export


def run(args: list[str]) -> int:
    """Run the verb."""
    chosen = tyro.cli(COMMAND, args=args, prog="jacrec export")
    for path in export_run(load_run(chosen.run), chosen.out or chosen.run / "export", chosen.format):
        print(path)
    print("policy: the base policy; the improved action is found by gradient steps at each state, and is no fixed network")
    return 0
