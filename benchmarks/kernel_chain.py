"""The fused reverse chain beside its plain twin: agreement, times, arithmetic and bytes per second, tiles."""

import importlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from types import ModuleType
from typing import Any

import floor
import torch
from harness import timed
from problems import Case
from torch.utils.flop_counter import FlopCounterMode

from jacrec.engine.jacobians import chain as plain

ERRORS = 4
"""how many times its plain twin's own error a kernel may have"""
LOOSE = ("tf32",)
"""precisions that round factors to ten bits: their errors are reported, not bounded"""


@dataclass(frozen=True)
class Work:
    """A kernel call beside its plain twin's; each takes the kernel's own options."""

    kernel: str
    tangents: int | None
    passes: int
    """evaluations of the denoiser's weights: one, with the transpose two, three if recomputed"""
    call: Callable[..., tuple]
    """(module, **options) -> the answer"""


def chain_work(case: Case, tangents: list[int]) -> list[Work]:
    """chain_forward with so many tangents, and chain_record with chain_adjoint, of one transition of M particles."""
    f, size, noise = case.dynamics, case.size, case.noise[:, 0].contiguous()
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(case.state)

    s, a, cotangent = draw(size.M, size.d), draw(size.M, size.m), draw(size.M, size.d)
    work = []
    for T in tangents:
        ds, da = draw(size.M, T, size.d), draw(size.M, T, size.m)

        def forward(module: Any, ds: torch.Tensor = ds, da: torch.Tensor = da, **options: Any) -> tuple:
            return module.chain_forward(f, s, a, noise, ds, da, **options)

        work.append(Work("chain_forward", T, 1, forward))

    for recompute in (False, True):

        def there_and_back(module: Any, recompute: bool = recompute, tile: Any = None, **options: Any) -> tuple:
            of_tile = {} if tile is None else {"tile": tile}
            next_state, tape = module.chain_record(f, s, a, noise, recompute=recompute, **of_tile, **options)
            return next_state, *module.chain_adjoint(f, tape, cotangent, **of_tile)

        name = "chain_adjoint" + (" recomputed" if recompute else "")
        work.append(Work(name, None, 2 + recompute, there_and_back))
    return work


def distance(got: tuple, expected: tuple) -> float:
    """The largest relative distance of an answer from another, ‖·‖ by tensor, in float64."""
    pairs = zip(got, expected, strict=True)
    return max(float((g.double() - e.double()).norm() / e.double().norm().clamp(min=1e-300)) for g, e in pairs)


@torch.no_grad()
def measure_chain(
    case: Case,
    fused: ModuleType,
    tangents: list[int],
    precisions: Sequence[str | None],
    rates: floor.Rates,
    repetitions: int,
    tune_seconds: float = 0.0,
) -> list[dict]:
    """A row for each kernel and precision; with `tune_seconds`, also the fastest tile found in that time by kernel.

    Raises:
        SystemExit: a kernel answers something else than its twin.
    """
    device = "cuda" if case.state.is_cuda else "cpu"
    rows = []
    works = zip(chain_work(case, tangents), chain_work(case.to(dtype=torch.float64), tangents), strict=True)
    for work, double in works:
        truth, own = double.call(plain), distance(work.call(plain), double.call(plain))
        with FlopCounterMode(display=False) as counter:
            work.call(plain)
        for precision in precisions:
            options = {} if precision is None else {"precision": precision}
            error = distance(work.call(fused, **options), truth)
            if precision not in LOOSE and not error <= ERRORS * own:
                raise SystemExit(
                    f"{case.size}: {work.kernel} ({precision}) has an error of {error:.1e}, its plain twin "
                    f"{own:.1e}; nothing was timed"
                )
            calls = {"fused": partial(work.call, fused, **options), "plain": partial(work.call, plain)}
            ms = timed(calls, repetitions, device, turns=min(3, repetitions), settle=1)
            read = work.passes * weight_bytes(case)
            new = row(case, work.kernel, ms, counter.get_total_flops(), read, rates)
            new |= {"tangents": work.tangents, "precision": precision, "error": error, "plain_error": own}
            if tune_seconds and precision == precisions[0]:
                new["tuned"] = fastest_tile(partial(work.call, fused, **options), work, tune_seconds)
            rows.append(new)
    return rows


def fastest_tile(run: Callable[..., object], work: Work, seconds: float) -> list[dict]:
    """The tiles tried within `seconds`, fastest first: {"tile": …, "ms": …}; compiling them is what takes the time."""
    launch = importlib.import_module("jacrec.kernels.launch")
    until, tried = time.perf_counter() + seconds, []
    for tile in launch.candidates(work.tangents or 0):
        if time.perf_counter() > until:
            break
        try:
            tried.append({"tile": asdict(tile), "ms": round(launch.tune(lambda t: run(tile=t), [tile])[1][tile], 4)})
        except (launch.KernelBuildError, ValueError):  # it does not fit this GPU, or these sizes
            continue
    return sorted(tried, key=lambda t: t["ms"])


def weight_bytes(case: Case) -> int:
    """The denoiser's weights, read once by each of the K calls of a pass."""
    layers = case.network.layers
    return case.size.K * sum(layer.weight.numel() * layer.weight.element_size() for layer in layers)


def row(case: Case, kernel: str, ms: dict, flops: int, read: int, rates: floor.Rates) -> dict:
    """Times, with rates and shares of the peaks."""
    seconds = 1e-3 * ms["fused"]["median"]
    return {
        **asdict(case.size),
        "dtype": str(case.state.dtype).removeprefix("torch."),
        "kernel": kernel,
        "ms": ms,
        "flops": flops,
        "weight_bytes": read,
        "flops_per_second": flops / seconds,
        "share_of_peak_flops": rounded(floor.share(flops / seconds, rates.flops)),
        "bytes_per_second": read / seconds,
        "share_of_peak_bytes": rounded(floor.share(read / seconds, rates.bytes)),
    }


def rounded(share: float | None) -> float | None:
    """For the results file."""
    return None if share is None else round(share, 4)
