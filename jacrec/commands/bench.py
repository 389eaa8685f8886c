"""`jacrec bench`: run the benchmarks of a checkout."""

import subprocess
import sys
from pathlib import Path

import tyro
from tyro.conf import Positional

FOLDER = Path("benchmarks")
ON_REQUEST = ("gpu", "table", "jax_rebrac", "deadline")
"""scripts that run only if named: they do not measure this machine alone, or take hours"""


def bench(names: Positional[tuple[str, ...]] = ()) -> int:
    """Run benchmark scripts one after another, from the root of a checkout.

    `jacrec bench gpu` checks, tunes and times every kernel on a machine with a GPU; `jacrec bench table` prints the table of
    gradient times from benchmarks/results.

    Args:
        names: scripts to run, as benchmarks/NAME.py; none: all that measure this machine
    """
    here = scripts(FOLDER)
    if not here:
        raise FileNotFoundError(f"no benchmark scripts in {FOLDER.resolve()}; run this in the root of a checkout of jacrec")
    unknown = [name for name in names if name not in here]
    if unknown:
        raise ValueError(f"benchmarks: expected names among {', '.join(here)}, got {', '.join(unknown)}")
    failed = []
    for name in names or [name for name in here if name not in ON_REQUEST]:
        print(f"== {name}", flush=True)
        if subprocess.run([sys.executable, here[name]], check=False).returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
        return 1
    print(f"results: {FOLDER / 'results'}")
    return 0


def scripts(folder: Path) -> dict[str, Path]:
    """The scripts in a folder that can be run on their own, by name."""
    found = sorted(folder.glob("*.py"))
    return {p.stem: p for p in found if '__name__ == "__main__"' in p.read_text(encoding="utf-8")}


COMMAND = bench


def run(args: list[str]) -> int:
    """Run the verb."""
    return tyro.cli(COMMAND, args=args, prog="jacrec bench")
