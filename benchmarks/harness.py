"""Shared by the benchmarks: description of the environment, timing, writing of results."""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # the memory profiler logs every start

import torch

from jacrec.evaluation.versions import versions

RESULTS = Path(__file__).parent / "results"

# scripts run as `python benchmarks/NAME.py`; this makes the tests' oracles importable
sys.path.insert(0, str(Path(__file__).parent.parent))


def environment(device: str = "cpu") -> dict:
    """Machine, versions, commit, command and date of a measurement."""
    git = ["git", "-C", str(Path(__file__).parent)]
    commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    engine = ("../jacrec", "../kernels")
    changes = subprocess.run([*git, "status", "--porcelain", *engine], capture_output=True, text=True, check=False).stdout
    return {
        "machine": machine(device),
        "cores": usable_cores(),
        "load": round(os.getloadavg()[0], 2),
        "threads": torch.get_num_threads(),
        **versions(("torch", "numpy", "numba", "triton", "jax")),
        **({"cuda": torch.version.cuda} if device == "cuda" else {}),
        "commit": (commit + ("+changes" if changes.strip() else "")) or None,
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def machine(device: str = "cpu") -> str:
    """The name of the processor or GPU."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor() or "unknown")


def slug(device: str = "cpu") -> str:
    """The machine as part of a file name: device, processor and, for a CPU, the number of usable cores."""
    name = re.sub(r"[^a-z0-9]+", "-", machine(device).lower()).strip("-")
    return f"{device}_{name}" if device == "cuda" else f"{device}_{name}_{usable_cores()}_cores"


def usable_cores() -> int:
    """Number of cores available to this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use_threads(threads: int | None) -> int:
    """Limit the process to this many cores, and thereby all contestants to this many threads; the number of threads.

    Call it before JAX or Numba are imported, since they size their thread pools by the available cores. If cores cannot be
    restricted (not Linux), only torch's threads are limited.
    """
    if threads is not None:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
        torch.set_num_threads(threads)
    return torch.get_num_threads()


def timed(
    contestants: Mapping[str, Callable[[], object]],
    repetitions: int,
    device: str = "cpu",
    *,
    turns: int | None = None,
    settle: int = 0,
    warm: int = 2,
    budget: float | None = None,
) -> dict[str, dict[str, float]]:
    """Milliseconds per call: median, p20 and p80 by contestant, after `warm` untimed calls.

    The contestants take turns, so that other load affects all of them equally.

    Args:
        repetitions: timed calls per contestant.
        turns: number of turns over which they are spread (default: one call per turn).
        settle: untimed calls at the start of a turn. The previous contestant's threads may still be spinning, and its data
            fill the caches; with 1, a contestant is timed as if it ran alone.
        budget: seconds per contestant; slower ones make fewer calls, at least three, without settling.
    """
    samples: dict[str, list[float]] = {name: [] for name in contestants}

    def once(call: Callable[[], object]) -> float:
        synchronise(device)
        started = time.perf_counter()
        call()
        synchronise(device)
        return time.perf_counter() - started

    turns = turns or repetitions
    in_turn: dict[str, tuple[int, int]] = {}  # untimed and timed calls per turn
    for name, call in contestants.items():
        seconds = min(once(call) for _ in range(warm))
        slow = budget is not None and seconds * repetitions > budget
        affordable = max(3, int(budget / seconds)) if budget is not None and slow else repetitions
        in_turn[name] = 0 if slow else settle, max(1, round(affordable / turns))
    for _ in range(turns):
        for name, call in contestants.items():
            settling, timing = in_turn[name]
            for _ in range(settling):
                once(call)
            samples[name] += [once(call) for _ in range(timing)]
    return {name: percentiles([1e3 * x for x in seconds]) for name, seconds in samples.items()}


class Others:
    """Share of the processors used by other processes since creation; 0 if unknown (not Linux)."""

    def __init__(self) -> None:
        self.started = self._now()

    def share(self) -> float:
        """Share of the time of all processors, from 0 to 1."""
        wall, busy, own = (now - started for now, started in zip(self._now(), self.started, strict=True))
        return max(0.0, busy - own) / (wall * (os.cpu_count() or 1)) if wall > 0 else 0.0

    @staticmethod
    def _now() -> tuple[float, float, float]:
        """Seconds of wall time, of work of all processors, and of work of this process."""
        stat = Path("/proc/stat")
        if not stat.exists():
            return time.perf_counter(), 0.0, 0.0
        user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, stat.read_text().split("\n")[0].split()[1:9])
        busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
        return time.perf_counter(), busy, time.process_time()


def synchronise(device: str) -> None:
    """Wait for pending work of the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def percentiles(values: list[float], at: tuple[int, ...] = (20, 50, 80)) -> dict[str, float]:
    """{"p20": …, "median": …, "p80": …} of the values, rounded to four decimals."""
    names = ["median" if p == 50 else f"p{p}" for p in at]
    return dict(zip(names, np.percentile(values, at).round(4).tolist(), strict=True))


def as_usual(parser: argparse.ArgumentParser, options: argparse.Namespace, *free: str) -> bool:
    """Whether all options except --json and the `free` ones have their defaults, so that results belong in benchmarks/results."""
    changed = {name for name, value in vars(options).items() if value != parser.get_default(name)}
    return changed <= {"json", *free}


def record(name: str, result: dict, path: Path | None, standard: bool) -> None:
    """Write the result to `path`, or to benchmarks/results if the options are `standard`, and print what was done."""
    if path is not None or standard:
        print(f"written: {write(name, result, path)}")
    else:
        print("non-standard options: nothing was written; use --json PATH to keep the results")


def write(name: str, result: dict, path: Path | None = None) -> Path:
    """Write benchmarks/results/NAME.json, or `path`, indented for readable diffs; the path."""
    path = path or RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return path
