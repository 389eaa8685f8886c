"""Each fused kernel alone: time, arithmetic and bytes per second, and both as shares of what the machine can do.

A kernel is first compared in float64 (float32 where it has none) with its plain twin in `jacrec.jacobians.chain`. Counted
are the multiply-adds that the plain twin spends (torch's own counter) and the weights, read once per network call; peaks are
measured in the same run (benchmarks/floor.py). Writes benchmarks/results/kernel_speed_<device>_<machine>.json.

    python benchmarks/kernel_speed.py
    python benchmarks/kernel_speed.py --tasks halfcheetah --particles 16 256 --tangents 3 23 --json /tmp/kernels.json

On a CPU the fused form is one kernel for a whole gradient ("gradient" below); on a GPU the chain's kernels are timed too.
"""

import argparse
import importlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType

import floor
import torch
from harness import as_usual, environment, slug, timed, use_threads, write
from peers import CONTESTANTS
from problems import TASKS, Case, Size, Unavailable, make
from torch.utils.flop_counter import FlopCounterMode

from jacrec.jacobians import chain as plain

FUSED_CHAINS = {"cuda": "jacrec.kernels.chain"}
"""by device: the module with fused twins of `jacrec.jacobians.chain`"""
GRADIENTS = ("forward fused", "adjoint fused", "adjoint recomputed fused")
ERRORS = 4
"""where a kernel has no float64: how many times its plain twin's own error it may have"""


@dataclass(frozen=True)
class Work:
    """A kernel call beside its plain twin."""

    kernel: str
    tangents: int | None
    fused: Callable[[], tuple]
    twin: Callable[[], tuple]
    weight_bytes: int
    """read by its network calls, once each"""


def chain_inputs(case: Case) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """State (M, d), action (M, m), noise (M, K+1, d) of one transition."""
    generator = torch.Generator().manual_seed(1)
    state, action = (torch.randn(case.size.M, n, generator=generator).to(case.state) for n in (case.size.d, case.size.m))
    return state, action, case.noise[:, 0].contiguous()


def chain_work(case: Case, fused: ModuleType, tangents: list[int]) -> list[Work]:
    """chain_forward with so many tangents, and chain_record with chain_adjoint, of one transition of M particles."""
    s, a, z = chain_inputs(case)
    f, size = case.dynamics, case.size
    generator = torch.Generator().manual_seed(2)
    cotangent = torch.randn(size.M, size.d, generator=generator).to(s)
    read = size.K * sum(layer.weight.numel() * layer.weight.element_size() for layer in f.denoiser.mlp.layers)
    work = []
    for T in tangents:
        ds, da = (torch.randn(size.M, T, n, generator=generator).to(s) for n in (size.d, size.m))
        calls = [lambda module=module, ds=ds, da=da: module.chain_forward(f, s, a, z, ds, da) for module in (fused, plain)]
        work.append(Work("chain_forward", T, *calls, weight_bytes=read))

    def there_and_back(module: ModuleType, recompute: bool) -> tuple:
        next_state, tape = module.chain_record(f, s, a, z, recompute=recompute)
        return next_state, *module.chain_adjoint(f, tape, cotangent)

    for recompute in (False, True):
        calls = [lambda module=module, r=recompute: there_and_back(module, r) for module in (fused, plain)]
        name = "chain_adjoint" + (" recomputed" if recompute else "")
        work.append(Work(name, None, *calls, weight_bytes=(3 if recompute else 2) * read))
    return work


def distance(got: tuple, expected: tuple) -> float:
    """The largest relative distance of an answer from another, ‖·‖ by tensor, in float64."""
    pairs = zip(got, expected, strict=True)
    return max(float((g.double() - e.double()).norm() / e.double().norm().clamp(min=1e-300)) for g, e in pairs)


@torch.no_grad()
def measure_chain(case: Case, fused: ModuleType, tangents: list[int], rates: floor.Rates, repetitions: int) -> list[dict]:
    """A row for each kernel of the chain.

    Raises:
        SystemExit: a kernel answers something else than its twin.
    """
    device = "cuda" if case.state.is_cuda else "cpu"
    exact = chain_work(case.to(dtype=torch.float64), fused, tangents)
    rows = []
    for work, double in zip(chain_work(case, fused, tangents), exact, strict=True):
        truth = double.twin()
        error, own = distance(work.fused(), truth), distance(work.twin(), truth)
        if not error <= ERRORS * own:
            raise SystemExit(f"{case.size}: {work.kernel} has an error of {error:.1e}, its plain twin {own:.1e}; not timed")
        with FlopCounterMode(display=False) as counter:
            work.twin()
        ms = timed({"fused": work.fused, "plain": work.twin}, repetitions, device, turns=min(3, repetitions), settle=1)
        rows.append(row(case, work.kernel, ms, counter.get_total_flops(), work.weight_bytes, rates)
                    | {"tangents": work.tangents, "error": error, "plain_error": own})  # fmt: skip
    return rows


def measure_gradient(case: Case, rates: floor.Rates, repetitions: int) -> list[dict]:
    """A row for each fused form of the whole gradient that this version has on this device."""
    device = "cuda" if case.state.is_cuda else "cpu"
    double = case.to(dtype=torch.float64)
    exact = CONTESTANTS["adjoint"].prepare(double).flat()
    counted = floor.count(case)
    twin = CONTESTANTS["adjoint"].prepare(case)
    rows = []
    for name in GRADIENTS:
        try:
            entry = CONTESTANTS[name].prepare(case)
        except Unavailable as reason:
            print(f"{name}: {reason}")
            continue
        error, own = (float((x.flat() - exact).norm() / exact.norm()) for x in (entry, twin))
        if not error <= ERRORS * own:
            raise SystemExit(f"{case.size}: {name} has an error of {error:.1e}, plain Adjoint {own:.1e}; not timed")
        calls = {"fused": entry.gradient, "plain": twin.gradient}
        ms = timed(calls, repetitions, device, turns=min(3, repetitions), settle=1)
        rows.append(row(case, f"gradient, {name}", ms, 2 * counted.multiply_adds, counted.weight_bytes, rates)
                    | {"tangents": None, "error": error, "plain_error": own})  # fmt: skip
    return rows


def row(case: Case, kernel: str, ms: dict, flops: int, weight_bytes: int, rates: floor.Rates) -> dict:
    """Times with rates and shares of the peaks."""
    seconds = 1e-3 * ms["fused"]["median"]
    return {
        **asdict(case.size), "dtype": str(case.state.dtype).removeprefix("torch."), "kernel": kernel, "ms": ms,
        "flops": flops, "weight_bytes": weight_bytes,
        "flops_per_second": flops / seconds, "share_of_peak_flops": round(flops / seconds / rates.flops, 4),
        "bytes_per_second": weight_bytes / seconds, "share_of_peak_bytes": round(weight_bytes / seconds / rates.bytes, 4),
    }  # fmt: skip


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
    parser.add_argument("--threads", type=int, help="cores to use; all unless told")
    parser.add_argument("--json", type=Path, help="where the results go; benchmarks/results for the usual sizes")
    options = parser.parse_args(arguments)
    use_threads(options.threads)
    dtype = getattr(torch, options.dtype)
    rates = floor.measure_rates(options.width, dtype, options.device)
    print(f"peaks: {rates.flops / 1e9:.0f} GFLOP/s, {rates.bytes / 1e9:.0f} GB/s")
    rows = []
    for task in options.tasks:
        for M in options.particles:
            case = make(Size(task, M, options.horizon, options.steps, options.width), dtype=dtype, device=options.device)
            new = measure_gradient(case, rates, options.repetitions)
            if options.device in FUSED_CHAINS:
                kernels = importlib.import_module(FUSED_CHAINS[options.device])
                tangents = options.tangents or [case.size.m, case.size.d + case.size.m]
                new = measure_chain(case, kernels, tangents, rates, options.repetitions) + new
            for r in new:
                what = r["kernel"] + ("" if r["tangents"] is None else f", T {r['tangents']}")
                fused, twin = (r["ms"][which]["median"] for which in ("fused", "plain"))
                print(f"{task:12s} M {M:5d}  {what:36s}{fused:9.3f} ms  {r['flops_per_second'] / 1e9:8.1f} GFLOP/s "
                      f"({r['share_of_peak_flops']:4.0%})  {r['bytes_per_second'] / 1e9:7.1f} GB/s "
                      f"({r['share_of_peak_bytes']:4.0%})  {twin / fused:6.2f}× plain  error {r['error']:.0e} (plain {r['plain_error']:.0e})", flush=True)  # fmt: skip
            rows += new
    result = {"environment": environment(options.device), "peaks": asdict(rates), "rows": rows}
    if options.json or as_usual(parser, options):
        print(f"written: {write(f'kernel_speed_{slug(options.device)}', result, options.json)}")
    else:
        print("sizes or threads of your own: nothing was written; --json PATH keeps the results")
    return result


if __name__ == "__main__":
    main()
