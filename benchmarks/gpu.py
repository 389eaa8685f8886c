"""All GPU measurements in one command, in under ten minutes: `make bench-gpu` or `python benchmarks/gpu.py`.

Requires torch >= 2.11 and triton >= 3.6 with CUDA, and numpy, but not gymnasium, mujoco or minari, nor an installation of
jacrec (the checkout is put on PYTHONPATH). Runs the kernel tests with compiled kernels; times the chain's kernels in every
precision and tile size, whole gradients against their peers, decisions and training; writes benchmarks/results/. The exit
status is 1 if a part fails or exceeds its time. Skipped parts are listed at the end with the reason.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --seconds 280 --skip tests tiles
"""

import argparse
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
LEAST_SECONDS = 5.0
"""minimum remaining time for starting a part"""
NEEDED = {"torch": (2, 11), "triton": (3, 6)}


@dataclass(frozen=True)
class Part:
    """A part of the run."""

    name: str
    command: tuple[str, ...]
    """arguments to Python"""
    most_seconds: float
    needs: tuple[str, ...] = ()
    """modules it requires"""
    option: str = ""
    """an option that its script must have"""


PARTS = (
    Part(
        "tests",
        (
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "tests/kernels/test_triton.py",
            "tests/kernels/test_triton_gradient.py",
        ),
        200,
        ("pytest", "hypothesis"),
    ),
    Part("kernels", ("benchmarks/kernel_speed.py", "--device", "cuda"), 120),
    Part("gradients", ("benchmarks/grad_speed.py", "--device", "cuda"), 150),
    Part("decisions", ("benchmarks/decision_speed.py", "--device", "cuda"), 60),
    Part("training", ("benchmarks/training_speed.py", "--device", "cuda"), 60, ("yaml",), "--device"),
    Part("memory", ("benchmarks/memory.py", "--device", "cuda"), 60),
    Part(
        "tiles",
        (
            "benchmarks/kernel_speed.py",
            "--device",
            "cuda",
            "--tasks",
            "hopper",
            "--particles",
            "16",
            "4096",
            "--tune-seconds",
            "12",
            "--json",
            "benchmarks/results/tiles_cuda.json",
        ),
        120,
    ),
)


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


def surroundings() -> dict[str, str]:
    """Environment variables of the parts: jacrec from this checkout, kernels compiled."""
    variables = {**os.environ, "PYTHONUNBUFFERED": "1"}
    variables.pop("TRITON_INTERPRET", None)
    path = [str(ROOT), str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables["PYTHONPATH"] = os.pathsep.join(path)
    return variables


def run_part(part: Part, seconds: float) -> str:
    """Run a part with a time limit; "done", or the reason why it is not."""
    missing = [name for name in part.needs if find_spec(name) is None]
    if missing:
        return f"left out: needs {', '.join(missing)}"
    if part.option and part.option not in (ROOT / part.command[0]).read_text(encoding="utf-8"):
        return f"left out: {part.command[0]} has no {part.option}"
    if seconds < LEAST_SECONDS:
        return "left out: no time was left"
    print(f"== {part.name}: python {' '.join(part.command)}", flush=True)
    try:
        done = subprocess.run([sys.executable, *part.command], cwd=ROOT, env=surroundings(), timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return f"stopped after {seconds:.0f} s"
    return "done" if done.returncode == 0 else f"failed with status {done.returncode}"


def main(arguments: list[str] | None = None) -> int:
    """Run all parts that fit into the time; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=570.0, help="total time")
    parser.add_argument("--skip", nargs="+", choices=[p.name for p in PARTS], default=[], help="parts to skip")
    options = parser.parse_args(arguments)
    reason = lacking()
    if reason is not None:
        print(reason, file=sys.stderr)
        return 1
    until = time.monotonic() + options.seconds
    outcomes = {}
    for part in PARTS:
        if part.name not in options.skip:
            started = time.monotonic()
            outcomes[part.name] = run_part(part, min(part.most_seconds, until - started))
            print(f"== {part.name}: {outcomes[part.name]}, {time.monotonic() - started:.0f} s", flush=True)
    print("\n".join(f"{name}: {outcome}" for name, outcome in outcomes.items()))
    print(f"results: {(HERE / 'results').relative_to(ROOT)}")
    return 0 if all(outcome == "done" or outcome.startswith("left out") for outcome in outcomes.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
