"""Time of one policy gradient: jacrec's methods against torch and JAX, on the same weights and noise.

First, all gradients of a size are compared with reverse mode in float64; nothing is timed unless they agree. Then the
following is reported per contestant: milliseconds (median, p20–p80), peak memory, the ratio to every peer, the share of the
floor (benchmarks/floor.py: multiply-adds, bytes and sequential layers, at rates measured in the same run), the error in the
timed precision, and for jacrec's methods the time per phase (benchmarks/phases.py). The goals are evaluated at the end. Writes
benchmarks/results/grad_speed_<device>_<machine>.json and a plot next to it; non-standard sizes require --json.

    python benchmarks/grad_speed.py                         # four minutes on two cores
    python benchmarks/grad_speed.py --full                  # more horizons and tasks
    python benchmarks/grad_speed.py --tasks walker2d --particles 16 --horizon 5 --steps 20 --json /tmp/walker.json
    python benchmarks/grad_speed.py --contestants "torch compile" "jax unrolled" auto --particles 16 --horizon 3
"""

import argparse
import itertools
import tracemalloc
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path

import floor
import goals
import report
import torch
from harness import Others, as_usual, environment, slug, timed, use_threads, write
from memory import peak_cpu, peak_cuda
from peers import CONTESTANTS, EAGER
from phases import phases
from problems import MODELS, ONE_EVALUATION, TASKS, Case, Entry, Size, Unavailable, make

AGREEMENT = 1e-10
"""largest relative difference of a gradient from reverse mode's, both in float64"""
CROWDED, ATTEMPTS = 0.05, 2
"""permitted share of other processes while a size is timed, and the number of attempts"""
CHEAP = (("ddim", 3), ("flow", 4), ("meanflow", 1), ("deterministic", 1), ("ensemble", 1), ("multistep", 1))
"""world models with few network evaluations, and their number"""
OWN_ERRORS = 4
"""permitted ratio of the error to reverse mode's error in the timed precision, for contestants without float64"""


def disagreement(gradient: torch.Tensor, reference: torch.Tensor) -> float:
    """‖gradient − reference‖ / ‖reference‖."""
    return float((gradient - reference).norm() / reference.norm())


@dataclass
class Examined:
    """Properties of a case's contestants determined before timing, by name."""

    errors64: dict[str, float] = field(default_factory=dict)
    """relative distance to reverse mode's gradient in float64, for contestants that support it"""
    errors: dict[str, float] = field(default_factory=dict)
    """relative distance of the gradient in the timed precision to that float64 gradient"""
    peak: dict[str, int | None] = field(default_factory=dict)
    """bytes, see `peak_memory`; measured right after float64, so that cached workspaces are allocated again"""


def examine(case: Case, entries: dict[str, Entry], device: str) -> Examined:
    """Errors and memory of all contestants.

    Raises:
        SystemExit: a contestant computes something else.
    """
    found = Examined()
    double = case.to(dtype=torch.float64)
    exact = CONTESTANTS[EAGER[0]].prepare(double).flat()
    own = disagreement(CONTESTANTS[EAGER[0]].prepare(case).flat(), exact)
    for name, entry in entries.items():
        error = found.errors[name] = disagreement(entry.flat(), exact)
        try:
            error64 = found.errors64[name] = disagreement(CONTESTANTS[name].prepare(double).flat(), exact)
        except Unavailable:
            if not error <= OWN_ERRORS * own:
                raise SystemExit(
                    f"{case.size}: {name} has an error of {error:.1e}, reverse mode in the same precision "
                    f"{own:.1e}; nothing was timed"
                ) from None
        else:
            if not error64 <= AGREEMENT:
                raise SystemExit(
                    f"{case.size}: the gradient of {name} differs from reverse mode's by {error64:.1e} in "
                    "float64; nothing was timed"
                )
        found.peak[name] = peak_memory(name, entry, device)
    return found


def peak_memory(name: str, entry: Entry, device: str) -> int | None:
    """Peak bytes above the start: of torch's allocator (benchmarks/memory.py), for jacrec's methods also of Python and numpy;
    for JAX as reported by its compiler."""
    if name.startswith("jax"):
        return entry.peak_bytes
    if device == "cuda":
        return peak_cuda(entry.gradient)[1]
    _, torch_bytes = peak_cpu(entry.gradient)
    if not CONTESTANTS[name].ours:
        return torch_bytes
    tracemalloc.start()
    try:
        entry.gradient()
        return torch_bytes + tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def measure_size(
    size: Size,
    names: Sequence[str],
    rates: floor.Rates,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    repetitions: int = 9,
    budget: float = 1.0,
) -> dict:
    """One row of the results: agreement; times, memory, errors and phases by contestant."""
    case = make(size, dtype=dtype, device=device)
    entries: dict[str, Entry] = {}
    absent: dict[str, str] = {}
    for name in names:
        try:
            entries[name] = CONTESTANTS[name].prepare(case)
        except Unavailable as reason:
            absent[name] = str(reason)
    found = examine(case, entries, device)
    calls = {name: entry.gradient for name, entry in entries.items()}
    ms, crowd = {}, 1.0
    for _ in range(ATTEMPTS):
        others = Others()
        ms = timed(calls, repetitions, device, turns=min(3, repetitions), settle=1, warm=1, budget=budget)
        crowd = others.share()
        if crowd <= CROWDED:
            break
    counted = floor.count(case)
    dissected = [name for name in entries if CONTESTANTS[name].dissected]
    return {
        **asdict(size),
        "d": size.d,
        "m": size.m,
        "dtype": str(dtype).removeprefix("torch."),
        "ms": ms,
        "others": round(crowd, 3),
        "float64_error": found.errors64,
        "error": found.errors,
        "difference": max(found.errors64.values(), default=0.0),
        "peak_bytes": found.peak,
        "ready_seconds": {name: round(e.ready_seconds, 2) for name, e in entries.items() if e.ready_seconds is not None},
        "phases": {name: phases(e.gradient, device) for name, e in entries.items() if name in dissected},
        "chosen": report.chosen(case),
        "count": asdict(counted),
        "floor": floor.floor(counted, rates).record(),
        "absent": absent,
    }


def measure(
    sizes: Sequence[Size],
    names: Sequence[str],
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    repetitions: int = 9,
    budget: float = 1.0,
    show: bool = False,
) -> list[dict]:
    """Rows of the results, one per size, for the named contestants."""
    rates: dict[int, floor.Rates] = {}
    rows = []
    for size in sizes:
        if size.width not in rates:
            rates[size.width] = floor.measure_rates(size.width, dtype, device)
        row = measure_size(size, names, rates[size.width], dtype=dtype, device=device, repetitions=repetitions, budget=budget)
        row["rates"] = asdict(rates[size.width])
        rows.append(row)
        if show:
            print(report.block(row, first=len(rows) == 1), flush=True)
    return rows


def parser() -> argparse.ArgumentParser:
    """The options; default sizes depend on the device and on --full."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--tasks", nargs="+", choices=TASKS, help="dimensions of state and action")
    p.add_argument("--particles", nargs="+", type=int, help="M")
    p.add_argument("--horizon", nargs="+", type=int, help="H")
    p.add_argument("--steps", nargs="+", type=int, help="K denoising steps")
    p.add_argument("--models", nargs="+", choices=MODELS, help=f"kinds of world models; K is 1 for {', '.join(ONE_EVALUATION)}")
    p.add_argument("--width", nargs="+", type=int, help="width of the three hidden layers of denoiser and reward model")
    p.add_argument("--full", action="store_true", help="H 1, 3 and 5, all task dimensions")
    p.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    p.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument(
        "--contestants",
        nargs="+",
        choices=CONTESTANTS,
        metavar="NAME",
        help="; ".join(f"'{c.name}' ({c.what})" for c in CONTESTANTS.values()),
    )
    p.add_argument("--repetitions", type=int, default=9)
    p.add_argument("--budget", type=float, default=0.3, help="seconds per contestant and size")
    p.add_argument("--threads", type=int, help="cores for the contestants (default: all)")
    p.add_argument("--json", type=Path, help="output path")
    p.add_argument("--plot", type=Path, help="path of the plot (default: next to the results)")
    return p


def chosen_sizes(options: argparse.Namespace) -> list[Size]:
    """All combinations of the options; by default hopper with H = 3 and halfcheetah with H = 5, and `CHEAP` models on hopper."""
    gpu = options.device == "cuda"
    particles = options.particles or ([1, 16, 64, 256, 4096] if gpu else [1, 4, 16, 64, 256])
    steps, widths = options.steps or [20 if gpu else 10], options.width or [256]
    if not options.full and not options.tasks and not options.horizon:
        pairs = [("hopper", 5), ("halfcheetah", 5)] if gpu else [("hopper", 3), ("halfcheetah", 5)]
    else:
        tasks = options.tasks or (list(TASKS) if options.full else ["hopper", "halfcheetah"])
        tasks = [t for t in tasks if options.tasks or t != "walker2d"]  # the same numbers as halfcheetah's
        pairs = list(itertools.product(tasks, options.horizon or ([1, 3, 5] if options.full else [3])))
    models = options.models or ["diffusion"]
    sizes = [
        Size(t, M, H, 1 if model in ONE_EVALUATION else K, w, model)
        for model in models
        for w in widths
        for K in steps
        for t, H in pairs
        for M in particles
    ]
    if not any((options.models, options.full, options.tasks, options.horizon, options.steps, options.particles)):
        sizes += [Size("hopper", M, 5, K, w, model) for model, K in CHEAP for w in widths for M in (1, 16)]
    return list(dict.fromkeys(sizes))


def main(arguments: list[str] | None = None) -> dict:
    """Compare, time, print and write; the result."""
    options = parser().parse_args(arguments)
    use_threads(options.threads)
    names = options.contestants or [c.name for c in CONTESTANTS.values() if options.device in c.default_on]
    rows = measure(
        chosen_sizes(options),
        names,
        dtype=getattr(torch, options.dtype),
        device=options.device,
        repetitions=options.repetitions,
        budget=options.budget,
        show=True,
    )
    where = environment(options.device)
    print(report.summary(rows, where))
    reached = goals.evaluate(rows, options.device)
    result = {"environment": where, "goals": reached, "rows": rows}
    if not options.json and not as_usual(parser(), options, "full", "plot"):
        print("non-standard sizes, contestants or threads: nothing was written; use --json PATH to keep the results")
        return result
    path = write(f"grad_speed_{slug(options.device)}", result, options.json)
    print(f"written: {path}")
    if find_spec("matplotlib") is None:
        print("no plot: pip install matplotlib")
    else:
        print(f"written: {report.plot(result, options.plot or path.with_suffix('.png'))}")
    return result


if __name__ == "__main__":
    main()
