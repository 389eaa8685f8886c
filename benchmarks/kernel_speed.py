"""Each fused kernel alone: time, arithmetic and bytes per second, and both as shares of what the machine can do.

A kernel is first compared with its plain twin, both against float64; nothing is timed unless they agree. Counted are the
multiply-adds that the plain twin spends (torch's own counter) and the weights, read once per network call; peaks are measured
in the same run (benchmarks/floor.py). Writes benchmarks/results/kernel_speed_<device>_<machine>.json.

On a CPU the fused form is one kernel for a whole gradient ("gradient" below). On a GPU the chain's kernels are timed too, in
each precision of the products; --tune-seconds also times tiles.

    python benchmarks/kernel_speed.py
    python benchmarks/kernel_speed.py --tasks halfcheetah --particles 16 256 --tangents 3 23 --json /tmp/kernels.json
"""

import argparse
import importlib
from dataclasses import asdict
from pathlib import Path

import floor
import torch
from harness import as_usual, environment, slug, timed, use_threads, write
from kernel_chain import ERRORS, measure_chain, row
from peers import CONTESTANTS
from problems import TASKS, Case, Size, Unavailable, make

FUSED_CHAINS = {"cuda": "jacrec.kernels.chain"}
"""by device: the module with fused twins of `jacrec.engine.jacobians.chain`"""
PRECISIONS = {"cuda": ["tf32x3", "ieee", "tf32"]}
GRADIENTS = ("forward fused", "adjoint fused", "adjoint recomputed fused")


def measure_gradient(case: Case, rates: floor.Rates, repetitions: int, told: set[str]) -> list[dict]:
    """A row for each fused form of the whole gradient that this version has on this device.

    `told` gathers the reasons why others are missing, so that each is printed once.

    Raises:
        SystemExit: one of them answers something else than the plain adjoint form.
    """
    device = "cuda" if case.state.is_cuda else "cpu"
    exact = CONTESTANTS["adjoint"].prepare(case.to(dtype=torch.float64)).flat()
    counted = floor.count(case)
    twin = CONTESTANTS["adjoint"].prepare(case)
    rows = []
    for name in GRADIENTS:
        if device not in CONTESTANTS[name].default_on:
            continue
        try:
            entry = CONTESTANTS[name].prepare(case)
        except Unavailable as reason:
            if str(reason) not in told:
                print(f"{name}: {reason}")
            told.add(str(reason))
            continue
        error, own = (float((x.flat() - exact).norm() / exact.norm()) for x in (entry, twin))
        if not error <= ERRORS * own:
            raise SystemExit(f"{case.size}: {name} has an error of {error:.1e}, plain Adjoint {own:.1e}; nothing was timed")
        calls = {"fused": entry.gradient, "plain": twin.gradient}
        ms = timed(calls, repetitions, device, turns=min(3, repetitions), settle=1)
        new = row(case, f"gradient, {name}", ms, 2 * counted.multiply_adds, counted.weight_bytes, rates)
        rows.append(new | {"tangents": None, "precision": None, "error": error, "plain_error": own})
    return rows


def line(r: dict) -> str:
    """A row as it is printed."""
    what = r["kernel"] + (f", T {r['tangents']}" if r["tangents"] else "") + (f", {r['precision']}" if r["precision"] else "")
    fused, twin = (r["ms"][which]["median"] for which in ("fused", "plain"))
    text = (
        f"{r['task']:12s} M {r['M']:5d}  {what:34s}{fused:9.3f} ms {r['flops_per_second'] / 1e9:9.1f} GFLOP/s "
        f"({floor.percent(r['share_of_peak_flops']):>4s}) {r['bytes_per_second'] / 1e9:8.1f} GB/s ({floor.percent(r['share_of_peak_bytes']):>4s}) "
        f"{twin / fused:7.2f}× plain  error {r['error']:.0e} (plain {r['plain_error']:.0e})"
    )
    if r.get("tuned"):
        text += f"\n    fastest of {len(r['tuned'])} tiles: {r['tuned'][0]['ms']:.3f} ms, {r['tuned'][0]['tile']}"
    return text


def main(arguments: list[str] | None = None) -> dict:
    """Compare, time, print, write; returns what was written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=["hopper", "halfcheetah"])
    parser.add_argument("--particles", nargs="+", type=int, default=[1, 16, 64, 256], help="M")
    parser.add_argument("--tangents", nargs="+", type=int, help="T of chain_forward; m and d+m unless told")
    parser.add_argument("--horizon", type=int, default=3, help="H of the whole gradient")
    parser.add_argument("--steps", type=int, default=10, help="K denoising steps")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--tune-seconds", type=float, default=0.0, help="time tiles of each chain kernel for so long (GPU)")
    parser.add_argument("--threads", type=int, help="cores to use; all unless told")
    parser.add_argument("--json", type=Path, help="where the results go; benchmarks/results for the usual sizes")
    options = parser.parse_args(arguments)
    use_threads(options.threads)
    dtype, device = getattr(torch, options.dtype), options.device
    rates = floor.measure_rates(options.width, dtype, device)
    print(
        f"peaks: {rates.flops / 1e9:.0f} GFLOP/s, {rates.bytes / 1e9:.0f} GB/s; "
        f"torch's matrix products: {rates.products / 1e9:.0f} GFLOP/s"
    )
    rows, told = [], set()
    for task in options.tasks:
        for M in options.particles:
            case = make(Size(task, M, options.horizon, options.steps, options.width), dtype=dtype, device=device)
            new = []
            if device in FUSED_CHAINS:
                kernels = importlib.import_module(FUSED_CHAINS[device])
                tangents = options.tangents or [case.size.m, case.size.d + case.size.m]
                precisions = PRECISIONS[device] if dtype == torch.float32 else [None]
                new += measure_chain(case, kernels, tangents, precisions, rates, options.repetitions, options.tune_seconds)
            new += measure_gradient(case, rates, options.repetitions, told)
            print("\n".join(line(r) for r in new), flush=True)
            rows += new
    result = {"environment": environment(device), "peaks": asdict(rates), "rows": rows}
    if options.json or as_usual(parser, options, "tune_seconds", "particles"):
        print(f"written: {write(f'kernel_speed_{slug(device)}', result, options.json)}")
    else:
        print("sizes or threads of your own: nothing was written; --json PATH keeps the results")
    return result


if __name__ == "__main__":
    main()
