"""Peak memory of one policy gradient against the number K of denoising steps: it is constant for Forward.

Each contestant runs in its own process, with hopper's sizes (d = 11, m = 3; actor and denoiser 3×256, reward 3×512,
twin critic 3×256), M = 256 particles, H = 3, float32, after a warm-up. The peak is the maximum held by
torch's allocator minus what it held at the start (networks, state and the caller's noise (M, H, K+1, d)):

* CPU: the running sum of all allocations and releases recorded by torch.profiler (profile_memory), which is exact,
  reproducible, and includes temporaries inside operations. The growth of the process's peak resident set is reported, too;
  it includes fragmentation and the libraries' buffers.
* CUDA: torch.cuda.max_memory_allocated, minus what was allocated at the start.

`python benchmarks/memory.py` prints the table and writes benchmarks/results/memory_<device>.json; `--device cuda`.
"""

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from harness import RESULTS, environment

from jacrec import Actor, Adjoint, Autograd, DiffusionDynamics, Forward, RewardModel, TwinCritic, World, policy_gradient
from jacrec.engine.types import PolicyGradient

METHODS = {
    "Autograd": Autograd(),
    "Adjoint": Adjoint(),
    "Adjoint(recompute)": Adjoint(recompute=True),
    "Forward": Forward(),
}
D, M_ACTION, H, M, STEPS = 11, 3, 3, 256, (5, 20, 80)
MIB = 2**20


def problem(K: int, device: str) -> tuple[Actor, World, torch.Tensor, torch.Tensor]:
    """Policy, world, state (d,) and noise (M, H, K+1, d), with the same random numbers in every process."""
    torch.manual_seed(0)
    actor = Actor(D, M_ACTION)
    actor.mlp.initialise()
    world = World(DiffusionDynamics(D, M_ACTION, steps=K), RewardModel(D, M_ACTION), TwinCritic(D, M_ACTION), 0.99).to(device)
    return actor.to(device), world, torch.randn(D).to(device), torch.randn(M, H, K + 1, D).to(device)


def peak_cpu(function: Callable[[], PolicyGradient]) -> tuple[PolicyGradient, int]:
    """The result of a function, and the peak bytes of torch's CPU allocator above the start."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        result = function()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]  # pyright: ignore
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()  # pyright: ignore[reportAttributeAccessIssue]
        peak = max(peak, held)
    return result, peak


def peak_cuda(function: Callable[[], PolicyGradient]) -> tuple[PolicyGradient, int]:
    """The same for the current CUDA device."""
    torch.cuda.synchronize()
    start = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    result = function()
    torch.cuda.synchronize()
    return result, torch.cuda.max_memory_allocated() - start


def gradient(problem: tuple[Actor, World, torch.Tensor, torch.Tensor], method: str) -> PolicyGradient:
    """The measured computation."""
    actor, world, state, noise = problem
    return policy_gradient(actor, world, state, noise, method=METHODS[method])


def measure(method: str, K: int, device: str) -> dict:
    """Measure one contestant in this process."""
    torch.set_num_threads(1)
    actor, world, state, noise = asked = problem(K, device)
    gradient((actor, world, state, noise[:2, :1]), method)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    gradient(asked, method)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident
    _, peak = (peak_cuda if device == "cuda" else peak_cpu)(lambda: gradient(asked, method))
    # compared in float64: in float32, a single ReLU rounded to the other side of zero changes 1e-4
    exact = actor.to(torch.float64), world.to(torch.float64), state.to(torch.float64), noise.to(torch.float64)
    result = gradient(exact, method)
    flat = torch.cat([g.reshape(-1).cpu() for g in result.gradient.values()])
    probes = torch.randn(8, flat.numel(), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return {
        "method": method,
        "K": K,
        "peak_bytes": peak,
        "resident_growth_kib": resident if device == "cpu" else None,
        "noise_bytes": noise.numel() * noise.element_size(),
        "probes": [float(flat.norm()), *(probes @ flat).tolist()],
    }


def in_fresh_process(method: str, K: int, device: str) -> dict:
    """`measure` in a new process."""
    command = [sys.executable, __file__, "--device", device, "--one", method, str(K)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout)


def disagreement(rows: list[dict]) -> float:
    """Largest relative difference between the methods' gradients at one K, in the norm and eight random projections."""
    worst = 0.0
    for K in STEPS:
        probes = torch.tensor([row["probes"] for row in rows if row["K"] == K], dtype=torch.float64)
        worst = max(worst, float((probes - probes[0]).abs().max() / probes[0, 0]))
    return worst


def table(rows: list[dict], key: str, unit: float) -> str:
    """One line per method, one column per K, and the ratio of the last to the first column."""
    lines = [f"{'':20s}" + "".join(f"{f'K = {K}':>12s}" for K in STEPS) + f"{f'K={STEPS[-1]} / K={STEPS[0]}':>16s}"]
    for method in METHODS:
        values = [row[key] / unit for row in rows if row["method"] == method]
        ratio = f"{values[-1] / values[0]:.2f}" if values[0] else "-"
        lines.append(f"{method:20s}" + "".join(f"{v:12.2f}" for v in values) + f"{ratio:>16s}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> list[dict]:
    """Measure, print the tables and write the JSON; the rows."""
    parser = argparse.ArgumentParser(description="Peak memory of one policy gradient against K.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--one", nargs=2, metavar=("METHOD", "K"), help="measure one contestant here and print JSON")
    options = parser.parse_args(arguments)
    if options.one:
        row = measure(options.one[0], int(options.one[1]), options.device)
        print(json.dumps(row))
        return [row]
    rows = [in_fresh_process(method, K, options.device) for method in METHODS for K in STEPS]
    where = environment(options.device)
    worst = disagreement(rows)
    forward = [row["peak_bytes"] for row in rows if row["method"] == "Forward"]
    flat = max(forward) <= 1.01 * min(forward)
    print(f"{where['machine']}, torch {where['torch']}, commit {where['commit']}")
    print(f"d = {D}, m = {M_ACTION}, M = {M}, H = {H}, float32; in float64 the gradients agree to {worst:.1e}")
    print("\nPeak memory of torch's allocator above the start, MiB\n" + table(rows, "peak_bytes", MIB))
    if options.device == "cpu":
        print("\nGrowth of the peak resident set, MiB\n" + table(rows, "resident_growth_kib", 1024))
    grows = (max(forward) - min(forward)) / MIB
    print(
        f"\nForward is {'flat' if flat else 'NOT flat'} in K: {min(forward) / MIB:.2f} to {max(forward) / MIB:.2f} MiB "
        f"({grows:.2f} MiB more for the step embedding's table of K rows of 256 floats)."
    )
    path = RESULTS / f"memory_{options.device}.json"
    path.parent.mkdir(exist_ok=True)
    settings = dict(d=D, m=M_ACTION, H=H, M=M, dtype="float32", agreement=worst, forward_flat_in_K=flat)
    kept = [{k: v for k, v in row.items() if k != "probes"} for row in rows]
    path.write_text(json.dumps({**where, **settings, "rows": kept}, indent=1) + "\n")
    print(f"written to {path.relative_to(Path(__file__).parent.parent)}")
    if worst > 1e-12:
        raise SystemExit(f"the methods' gradients differ by {worst:.1e}: the measurement compares different things")
    return rows


if __name__ == "__main__":
    main()
