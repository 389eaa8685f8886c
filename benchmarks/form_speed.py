"""The fused forward form against the fused adjoint form, and the diagnostics with and without compiled code; one thread of a CPU.

Least processor time of calls that take turns: other load on the machine counts little. The choice of `Auto` between the two forms
(`jacrec.engine.choice`) is taken from the first table. Writes benchmarks/results/form_speed_<device>_<machine>.json.

    python benchmarks/form_speed.py
    python benchmarks/form_speed.py --tasks hopper --horizon 1 --particles 1 --steps 10 --json /tmp/forms.json
"""

import argparse
import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from unittest.mock import patch

import torch
from harness import as_usual, environment, record, slug, use_threads
from problems import TASKS, Case, Size, make

from jacrec import Adjoint, Forward, gradient_signal, linearize, state_growth
from jacrec.engine import diagnostics
from jacrec.engine import linearize as linearised
from jacrec.engine.problem import Problem
from jacrec.engine.shapes import problem

FORMS = {"forward": Forward(kernel="fused"), "adjoint": Adjoint(kernel="fused")}
DIAGNOSED = ((1, 1), (3, 1), (3, 4), (5, 16))
"""H and M of the diagnostics"""


def least(calls: Mapping[str, Callable[[], object]], budget: float, most: int = 400) -> dict[str, float]:
    """Least milliseconds of processor time of each call; the calls take turns."""
    found = dict.fromkeys(calls, float("inf"))
    for call in calls.values():
        call()
    began, turns = time.process_time(), 0
    while turns < most and (turns < 5 or time.process_time() - began < budget * len(calls)):
        turns += 1
        for name, call in calls.items():
            started = time.process_time()
            call()
            found[name] = min(found[name], 1e3 * (time.process_time() - started))
    return {name: round(ms, 4) for name, ms in found.items()}


def forms(size: Size, budget: float) -> dict:
    """Milliseconds of one gradient by each form."""
    p = problem(*make(size).arguments)
    ms = least({name: lambda method=method: method.gradient(p) for name, method in FORMS.items()}, budget)
    return {**asdict(size), "ms": ms}


def in_torch(call: Callable[[], object]) -> Callable[[], object]:
    """The call with plain torch in place of compiled code."""

    def nothing(p: Problem, form: str) -> None:
        return None

    def plain() -> object:
        with patch.object(diagnostics, "compiled", nothing), patch.object(linearised, "compiled", nothing):
            return call()

    return plain


def diagnosed(case: Case, budget: float) -> dict:
    """Milliseconds of the diagnostics, and without compiled code."""
    calls: dict[str, Callable[[], object]] = {
        "linearize": lambda: linearize(*case.arguments),
        "feedback": lambda: linearize(*case.arguments).feedback(),
        "state_growth": lambda: state_growth(*case.arguments),
    }
    if case.size.M > 1:
        calls["gradient_signal"] = lambda: gradient_signal(*case.arguments)
    both = calls | {f"{name}, plain torch": in_torch(call) for name, call in calls.items()}
    return {**asdict(case.size), "ms": least(both, budget)}


def main(arguments: list[str] | None = None) -> None:
    """Time, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=["hopper", "halfcheetah"])
    parser.add_argument("--particles", nargs="+", type=int, default=[1, 2, 4], help="M")
    parser.add_argument("--horizon", nargs="+", type=int, default=[1, 2, 3], help="H")
    parser.add_argument("--steps", nargs="+", type=int, default=[1, 5, 10], help="K")
    parser.add_argument("--width", nargs="+", type=int, default=[64, 256], help="of all hidden layers")
    parser.add_argument("--budget", type=float, default=0.15, help="seconds a call and size")
    parser.add_argument("--json", type=Path, help="where the results go")
    options = parser.parse_args(arguments)
    use_threads(1)
    torch.set_num_threads(1)
    rows = []
    for task, width, K, H, M in itertools.product(
        options.tasks, options.width, options.steps, options.horizon, options.particles
    ):
        rows.append(forms(Size(task, M, H, K, width), options.budget))
        ms = rows[-1]["ms"]
        ratio = ms["forward"] / ms["adjoint"]
        print(f"{task:12s} 3x{width} K {K:2d} H {H} M {M}{ms['forward']:9.3f}{ms['adjoint']:9.3f}{ratio:7.2f}", flush=True)
    more = []
    for task, (H, M) in itertools.product(options.tasks, DIAGNOSED):
        more.append(diagnosed(make(Size(task, M, H, max(options.steps), max(options.width))), options.budget))
        ms = more[-1]["ms"]
        for name in ms:
            if f"{name}, plain torch" in ms:
                plain = ms[f"{name}, plain torch"]
                print(f"{task:12s} H {H} M {M:2d} {name:16s}{ms[name]:9.3f}{plain:9.3f}{plain / ms[name]:7.1f} x", flush=True)
    result = {"environment": environment(), "rows": rows, "diagnostics": more}
    record(f"form_speed_{slug()}", result, options.json, as_usual(parser, options))


if __name__ == "__main__":
    main()
