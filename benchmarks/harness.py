"""Shared by the benchmarks: what ran where, timing by repetition, results on disk."""

import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

RESULTS = Path(__file__).parent / "results"

# run as `python benchmarks/NAME.py`, a script finds this file beside it; the tests' oracles it finds through here
sys.path.insert(0, str(Path(__file__).parent.parent))


def environment(device: str = "cpu") -> dict:
    """Machine, versions, commit and date of a measurement."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        model = next((line.split(": ")[1] for line in cpuinfo.read_text().splitlines() if line.startswith("model name")), model)
    git = ["git", "-C", str(Path(__file__).parent)]
    commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    changes = subprocess.run([*git, "status", "--porcelain", "../jacrec"], capture_output=True, text=True, check=False).stdout
    return {
        "machine": torch.cuda.get_device_name() if device == "cuda" else model,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": (commit + ("+changes" if changes.strip() else "")) or None,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def timed(
    contestants: Mapping[str, Callable[[], object]], repetitions: int, device: str = "cpu"
) -> dict[str, dict[str, float]]:
    """Milliseconds per call: median, p20 and p80 by contestant, after two warm-up calls.

    The contestants take turns, so that what else the machine does falls on all of them alike.
    """
    wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    samples: dict[str, list[float]] = {name: [] for name in contestants}
    for repetition in range(-2, repetitions):
        for name, call in contestants.items():
            wait()
            begun = time.perf_counter()
            call()
            wait()
            if repetition >= 0:
                samples[name].append(1e3 * (time.perf_counter() - begun))
    return {
        name: dict(zip(("p20", "median", "p80"), np.percentile(times, [20, 50, 80]).round(4).tolist(), strict=True))
        for name, times in samples.items()
    }


def write(name: str, result: dict) -> Path:
    """benchmarks/results/NAME.json, indented so that a change can be read."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return path
