"""`jacrec bench`."""

import subprocess
import sys
from pathlib import Path

import tyro
from tyro.conf import Positional

FOLDER = Path("benchmarks")
ON_REQUEST = ("gpu", "table", "jax_rebrac", "deadline")
"""scripts that are run only if they are named: what they do is no measurement of this machine's own, or takes hours"""


def bench(names: Positional[tuple[str, ...]] = ()) -> int:
    """Run benchmark scripts of a checkout, one after the other; say it from the checkout's root.

    `jacrec bench gpu` checks, tunes and times everything on a machine with a GPU; `jacrec bench table` prints the README's
    table from benchmarks/results.

    Args:
        names: which, as benchmarks/NAME.py; all that measure unless told
    """
    here = scripts(FOLDER)
    if not here:
        raise FileNotFoundError(f"no benchmark scripts under {FOLDER.resolve()}; run this in the root of a checkout of jacrec")
    unknown = [name for name in names if name not in here]
    if unknown:
        raise ValueError(f"benchmarks: expected some of {', '.join(here)}, got {', '.join(unknown)}")
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
    """The scripts that can be run by themselves, by name."""
    found = sorted(folder.glob("*.py"))
    return {p.stem: p for p in found if '__name__ == "__main__"' in p.read_text(encoding="utf-8")}


def run(args: list[str]) -> int:
    """The verb."""
    return tyro.cli(bench, args=args, prog="jacrec bench")
