"""`jacrec models list|get`: trained runs that ship with the package."""

from pathlib import Path

import tyro
from tyro.conf import Positional

from jacrec.evaluation.markdown import terminal, terminal_table
from jacrec.training.pretrained import FOLDER, pretrained_runs, unpack


def show() -> int:
    """List the runs: their data, and the updates of policy and critic."""
    rows = [[x.name, x.env_id, x.data, str(x.updates), f"{x.size / 1e6:.1f} MB"] for x in pretrained_runs()]
    terminal().print(terminal_table(["run", "environment", "data", "updates", "size"], rows))
    print(f"next: jacrec eval {FOLDER}/{rows[0][0]} --tuned")
    return 0


def get(name: Positional[str], *, out: Path | None = None) -> int:
    """Unpack a run into a folder. Commands do so themselves for a run called pretrained/NAME.

    Args:
        name: the run
        out: the folder; None: pretrained/NAME
    """
    folder = unpack(name, out or Path(FOLDER) / name)
    print(f"run: {folder}\nnext: jacrec eval {folder} --tuned")
    return 0


COMMAND = {"list": show, "get": get}


def run(args: list[str]) -> int:
    """Run the verb."""
    return tyro.extras.subcommand_cli_from_dict(COMMAND, prog="jacrec models", args=args)
