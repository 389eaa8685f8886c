"""All GPU measurements in one command, in under ten minutes: `make bench-gpu` or `python benchmarks/gpu.py`.

Requires torch >= 2.11 and triton >= 3.6 with CUDA, and numpy, but not gymnasium, mujoco or minari, nor an installation of
jacrec (the checkout is put on PYTHONPATH). First compares every kernel with its plain twin in half a minute; then runs the
kernel tests compiled, times whole gradients against their peers, kernels in every precision, decisions, training, memory and
tiles (benchmarks/gpu_parts.py).

Every row is written to benchmarks/results/gpu/PART.jsonl when it is measured, and an error ends its row alone. Run it again to
measure what is missing: rows of the same commit, machine and versions are kept. Every part has its seconds; what parts leave
unused goes to those that were cut short. At the end all rows are put together in
benchmarks/results/gpu_<machine>.json. The exit status is 1 if a row or a part failed.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --seconds 280 --skip tests tiles
    python benchmarks/gpu.py --rehearse --out /tmp/rehearsal        # the same rows, small, on a CPU without a GPU
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
LEAST_SECONDS = 5.0
"""minimum remaining time for starting a part"""
NEEDED = {"torch": (2, 11), "triton": (3, 6)}


ROWS = "benchmarks/gpu_rows.py"


@dataclass(frozen=True)
class Part:
    """A part of the run."""

    name: str
    command: tuple[str, ...]
    """arguments to Python"""
    most_seconds: float
    needs: tuple[str, ...] = ()
    """modules it requires"""


def rows_of(name: str, most_seconds: float, needs: tuple[str, ...] = ()) -> Part:
    """A part that is measured row by row."""
    return Part(name, (ROWS, name), most_seconds, needs)


PARTS = (
    rows_of("smoke", 30),
    rows_of("gradients", 150),
    rows_of("kernels", 70),
    rows_of("tests", 120, ("pytest", "hypothesis")),
    rows_of("decisions", 45),
    rows_of("tiles", 60),
    rows_of("memory", 30),
    rows_of("training", 35, ("yaml",)),
)
"""in the order of what is wanted most; what is left of 570 s goes to parts that had too little"""


def lacking() -> str | None:
    """Why nothing can be measured on this machine; None if it can."""
    for name, least in NEEDED.items():
        wanted = ".".join(map(str, least))
        try:
            found = version(name)
        except PackageNotFoundError:
            return f"{name}: expected {wanted} or newer, got none; pip install '{name}>={wanted}'"
        if tuple(int("".join(filter(str.isdigit, part)) or 0) for part in found.split(".")[:2]) < least:
            return f"{name}: expected {wanted} or newer, got {found}; pip install --upgrade {name}"
    import torch

    if not torch.cuda.is_available():
        return (
            f"device: expected a CUDA GPU, torch {torch.__version__} finds none; nothing was measured (python "
            "benchmarks/grad_speed.py measures the CPU)"
        )
    return None


def surroundings(rehearse: bool = False) -> dict[str, str]:
    """The environment of the parts: jacrec from this checkout; kernels compiled, or interpreted in a rehearsal."""
    variables = {**os.environ, "PYTHONUNBUFFERED": "1"}
    variables.pop("TRITON_INTERPRET", None)
    if rehearse:
        variables["TRITON_INTERPRET"] = "1"
    path = [str(ROOT), str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables["PYTHONPATH"] = os.pathsep.join(path)
    return variables


def run_part(part: Part, seconds: float, *options: str, rehearse: bool = False) -> str:
    """Run it for at most so long; "done", or why it is not.

    A part of rows is started again where its process ended early, as long as each start ends a row.

    Args:
        options: more arguments, for parts of rows.
    """
    missing = [name for name in part.needs if find_spec(name) is None]
    if missing:
        return f"left out: needs {', '.join(missing)}"
    if seconds < LEAST_SECONDS:
        return "left out: no time was left"
    of_rows = part.command[0] == ROWS
    print(f"== {part.name}: python {' '.join(part.command)}", flush=True)
    until = time.monotonic() + seconds
    for start in range(MOST_STARTS if of_rows else 1):
        left = until - time.monotonic()
        if start and left < LEAST_SECONDS:
            break
        more = (*options, "--seconds", f"{left - STARTING:.1f}") if of_rows else ()
        status = run_for(left, [sys.executable, *part.command, *more], surroundings(rehearse))
        if status is None:
            return f"stopped after {seconds:.0f} s"
        if status == 0 or not of_rows:
            return "done" if status == 0 else f"failed with status {status}"
        if status == SOME_FAILED:
            return "some rows failed"
    return f"stopped after {start + 1} starts"


def run_parts(parts: Sequence[Part], until: float, folder: Path, *, rehearse: bool = False) -> dict[str, str]:
    """Run each for at most its seconds, then those that were cut short again in the time left; how each ended.

    Args:
        until: of `time.monotonic`, when all must have ended.
        folder: of the rows.
    """
    run, outcomes = str(time.time_ns()), {}
    more = ["--out", str(folder), "--run", run, *(["--rehearse"] if rehearse else [])]
    for again in (False, True):
        for part in parts:
            begun = time.monotonic()
            left = until - begun
            if again and (left < LEAST_SECONDS or not cut_short(outcomes[part.name], folder / f"{part.name}.jsonl", run)):
                continue
            outcomes[part.name] = run_part(part, left if again else min(part.most_seconds, left), *more, rehearse=rehearse)
            print(f"== {part.name}: {outcomes[part.name]}, {time.monotonic() - begun:.0f} s", flush=True)
    return outcomes


def cut_short(outcome: str, path: Path, run: str) -> bool:
    """Whether a part of rows, which ended so, has rows left that it had no time for."""
    from gpu_rows import Record

    lines = Record.lines(path)
    ended = {x["row"] for x in lines if "result" in x or (x.get("run") == run and "error" in x)}
    return bool(lines) and (outcome.startswith("stopped") or any("skipped" in x and x["row"] not in ended for x in lines))


STARTING, MOST_STARTS, SOME_FAILED = 2.0, 20, 3
"""seconds for starting Python; starts of a part of rows; the exit status of benchmarks/gpu_rows.py for failed rows"""


def run_for(seconds: float, command: list[str], variables: dict[str, str]) -> int | None:
    """A command's exit status; None if it and its children had to be ended after so long."""
    process = subprocess.Popen(command, cwd=ROOT, env=variables, start_new_session=True)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def collect(folder: Path, outcomes: dict[str, str], device: str = "cuda") -> dict:
    """All rows that the folder holds, errors, and the goals as far as gradients were measured."""
    import goals
    from gpu_rows import Record
    from harness import environment

    parts = {}
    for path in sorted(folder.glob("*.jsonl")):
        lines = Record.lines(path)
        results = {x["row"]: x["result"] for x in lines if "result" in x}
        errors = {x["row"]: x["error"] for x in lines if "error" in x and x["row"] not in results}
        skipped = {x["row"] for x in lines if "skipped" in x} - results.keys() - errors.keys()
        parts[path.stem] = {"results": results, "errors": errors, "skipped": sorted(skipped)}
    rows = list(parts.get("gradients", {}).get("results", {}).values())
    return {"environment": environment(device), "outcomes": outcomes, "goals": goals.evaluate(rows, device), "parts": parts}


def main(arguments: list[str] | None = None) -> int:
    """Run all parts that time allows; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=570.0, help="for everything together")
    parser.add_argument("--skip", nargs="+", choices=[p.name for p in PARTS], default=[], help="parts to leave out")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "gpu", help="folder of the rows")
    parser.add_argument("--fresh", action="store_true", help="measure rows again that the folder holds")
    parser.add_argument("--rehearse", action="store_true", help="small sizes on the CPU, kernels interpreted; no numbers")
    options = parser.parse_args(arguments)
    reason = None if options.rehearse else lacking()
    if reason is not None:
        print(reason, file=sys.stderr)
        return 1
    if options.fresh:
        for part in PARTS:
            (options.out / f"{part.name}.jsonl").unlink(missing_ok=True)
    sys.path[:0] = [str(ROOT), str(HERE)]
    asked = [part for part in PARTS if part.name not in options.skip]
    outcomes = run_parts(asked, time.monotonic() + options.seconds - COLLECTING, options.out, rehearse=options.rehearse)
    from harness import slug, write

    device = "cpu" if options.rehearse else "cuda"
    found = collect(options.out, outcomes, device)
    where = options.out / "all.json" if options.rehearse else None
    print(f"written: {write(f'gpu_{slug(device)}', found, where)}")
    print("\n".join(f"{name}: {outcome}" for name, outcome in outcomes.items()))
    for name, part in found["parts"].items():
        print("\n".join(f"{name}, {row}: {error}" for row, error in part["errors"].items()), end="\n" * bool(part["errors"]))
    return 0 if all(outcome == "done" or outcome.startswith("left out") for outcome in outcomes.values()) else 1


COLLECTING = 5.0
"""seconds for putting the results together"""


if __name__ == "__main__":
    sys.exit(main())
