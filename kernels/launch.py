"""Parameters of a launch: the tile, the precision of products, and a lower bound of its cost."""

import functools
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import triton
from torch import Tensor, nn

from jacrec.kernels.failures import KernelBuildError, is_build_failure
from jacrec.kernels.rows import Net, Shape, value_rows
from jacrec.models.dynamics import ChainDynamics
from jacrec.models.networks import MLP
from jacrec.util.errors import expect_one_of

PRECISIONS = ("ieee", "tf32x3", "tf32")
SMALLEST = 16  # the least side of a matrix that a tensor core multiplies


@dataclass(frozen=True)
class Tile:
    """How the work is cut. Every field depends on the GPU; see `TILES` and `tune`."""

    rows: int
    """rows that one program carries through a layer; a power of two, at least 16 compiled"""
    columns: int
    """columns of a layer computed at once; a power of two"""
    inner: int
    """terms of an inner product per tl.dot; a power of two that divides `columns`, at least 16 compiled"""
    warps: int
    """warps of a program"""
    stages: int
    """chunks of a product in flight between L2 and shared memory"""
    per_particle: int | None = None
    """rows of one particle, a power of two; None: as many as hold all its tangents (at most `rows`). With fewer, a
    particle's tangents are spread over several programs, each of which carries the value again"""
    resident: int = 1
    """programs per multiprocessor; each works through its share of the tiles with one scratch. With 8 warps and more than
    128 registers per thread, as all float32 kernels have, a multiprocessor holds one"""


TILES: dict[int, Tile] = {
    16: Tile(rows=16, columns=128, inner=32, warps=8, stages=3),
    32: Tile(rows=32, columns=128, inner=32, warps=8, stages=3),
    64: Tile(rows=64, columns=64, inner=16, warps=8, stages=3),
}
"""By rows. The widest columns with which every chain kernel compiles without stack for sm_90
(benchmarks/results/kernel_resources_sm_90.json, Triton 3.9; 3.6 leaves 16 bytes to the adjoint that recomputes in the larger
two); times are not measured. `tune` times their neighbours on the GPU at hand"""
DOUBLE = Tile(rows=16, columns=64, inner=16, warps=8, stages=2)
"""of float64: elements twice as large, products a quarter as wide"""


def interpreted() -> bool:
    """Whether these kernels run in Triton's interpreter (TRITON_INTERPRET=1 when they were imported) instead of on a GPU."""
    return not isinstance(value_rows, triton.JITFunction)


def check_precision(precision: str | None, dtype: torch.dtype) -> str:
    """tl.dot's input_precision for a precision's name; None: "tf32x3", and "ieee" in float64 and interpreted.

    Raises:
        ValueError: unknown, or a float32 precision asked for in float64.
    """
    if precision is None:
        return "ieee" if dtype == torch.float64 or interpreted() else "tf32x3"
    expect_one_of("precision", precision, PRECISIONS)
    if dtype == torch.float64 and precision != "ieee":
        raise ValueError(f"precision: expected 'ieee' in float64, got {precision!r}; the tensor core's TF32 is for float32")
    return precision


def net(mlp: MLP) -> Net:
    """The structure of a network that `jacrec.kernels.served` has checked, for the compiler."""
    return Net(mlp.hidden, mlp.activation, bool(mlp.norms), mlp.residual, mlp.out_dim, mlp.norms[0].eps if mlp.norms else 0.0)


def choose_tile(particles: int, T: int, dtype: torch.dtype, device: torch.device) -> Tile:
    """The smallest of `TILES` with which all programs run at once, one to a multiprocessor; else the largest.

    Up to 64 rows a layer's time is that of reading its weights, so that a second wave of programs costs more than larger tiles.
    """
    if dtype == torch.float64:
        return DOUBLE
    for tile in TILES.values():
        cut = plan(tile, particles, T, tile.columns, "ieee", device, all_at_once=True)
        if cut.programs * cut.pieces <= multiprocessors(device):
            return tile
    return tile


@dataclass(frozen=True)
class Plan:
    """A tile fitted to the sizes of a launch: the compiler's constants and the grid."""

    shape: Shape
    particles: int
    """particles of a tile"""
    pieces: int
    """programs that share a particle's tangents"""
    programs: int
    """programs along the particles"""
    rounds: int
    """tiles that a program works through"""
    warps: int
    stages: int

    @property
    def grid(self) -> tuple[int, int]:
        return self.programs, self.pieces

    @property
    def options(self) -> dict[str, int | bool]:
        """Keyword arguments of the launch that go to the compiler."""
        return dict(num_warps=self.warps, num_stages=self.stages, enable_fp_fusion=True)

    def scratch(self, like: Tensor, buffers: int) -> Tensor:
        """Buffers of (rows, LD) for every program: (programs · pieces, buffers · rows · LD), uninitialised."""
        return like.new_empty(self.programs * self.pieces, buffers * self.shape.rows * self.shape.LD)


_STAGES: dict[tuple, int] = {}
_compiled: ContextVar["list[tuple[str, Any]] | None"] = ContextVar("compiled", default=None)


@contextmanager
def compiling() -> Iterator[list[tuple[str, Any]]]:
    """Within it, `start` compiles and launches nothing: the tensors that a kernel would fill stay uninitialised.

    Yields, for each launch, what it is and what became of it: a kernel, Triton's promise of one, or a `KernelBuildError`.
    """
    found: list[tuple[str, Any]] = []
    token = _compiled.set(found)
    try:
        yield found
    finally:
        _compiled.reset(token)


def is_compiling() -> bool:
    """Whether launches are compiled only."""
    return _compiled.get() is not None


def start(kernel: Any, cut: Plan, *arguments: Any, groups: int = 1, **constants: Any) -> None:
    """Launch a kernel on a plan's grid (times `groups`): its tensors in order, the compiler's constants by name.

    Where the GPU has too little shared memory for the plan's chunks in flight, fewer are used, from then on.

    Raises:
        KernelBuildError: the kernel cannot be compiled, or does not fit the GPU; not within `compiling`.
    """
    grid = cut.grid if groups == 1 else (*cut.grid, groups)
    compiled = _compiled.get()
    launch = kernel[grid] if compiled is None else partial(kernel.run, grid=grid, warmup=True)
    try:
        made = _fitted(launch, kernel, cut, *arguments, **constants)
    except Exception as error:
        if not is_build_failure(error):
            raise
        made = KernelBuildError(f"{_launch_name(kernel, cut, grid, arguments[0].dtype)}: {described(error)}")
        if compiled is None:
            raise made from error
    if compiled is not None:
        compiled.append((_launch_name(kernel, cut, grid, arguments[0].dtype), made))


def _fitted(launch: Callable[..., Any], kernel: Any, cut: Plan, *arguments: Any, **constants: Any) -> Any:
    """Launch with as many of the plan's stages as fit the GPU."""
    key = (kernel, cut.shape, cut.warps, constants.get("NET"), arguments[0].dtype, arguments[0].device)
    stages = _STAGES.get(key, cut.stages)
    while True:
        try:
            with torch.cuda.device_of(arguments[0]):
                return launch(*arguments, **constants, SHAPE=cut.shape, **(cut.options | {"num_stages": stages}))
        except triton.runtime.errors.OutOfResources:
            if stages == 1:
                raise
            stages -= 1
            _STAGES[key] = stages


def _launch_name(kernel: Any, cut: Plan, grid: tuple[int, ...], dtype: torch.dtype) -> str:
    """What a launch is, for messages."""
    name = getattr(kernel, "__name__", type(kernel).__name__)
    kind = str(dtype).removeprefix("torch.")
    return f"{name} ({kind}, tiles of {cut.shape.rows} rows × {cut.shape.columns} columns, grid {grid})"


def described(error: Exception) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def plan(
    tile: Tile, particles: int, T: int, widest: int, precision: str, device: torch.device, *, all_at_once: bool = False
) -> Plan:
    """Fit `tile` to a batch of particles with T tangents each and to the widest layer.

    all_at_once: a program for every tile, instead of several in turn.
    """
    R = tile.per_particle or min(triton.next_power_of_2(1 + T), tile.rows)
    if T and R < 2:
        raise ValueError(f"Tile.per_particle: expected at least 2 rows, a value and a tangent, got {R}")
    R = 1 if not T else R
    rows = max(tile.rows, R)
    columns = max(min(tile.columns, triton.next_power_of_2(widest)), tile.inner)
    here = rows // R
    tiles = triton.cdiv(particles, here)
    pieces = triton.cdiv(T, R - 1) if T else 1
    programs = tiles if all_at_once else min(tiles, max(1, tile.resident * multiprocessors(device) // pieces))
    programs = max(1, programs)  # of no particles too
    shape = Shape(rows, R, columns, tile.inner, triton.cdiv(widest, columns) * columns, precision)
    return Plan(shape, here, pieces, programs, triton.cdiv(tiles, programs), tile.warps, tile.stages)


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Multiprocessors of a GPU; 1 where kernels are interpreted."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


@functools.cache
def _table(values: tuple, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=device)


def on_device(values: tuple, like: Tensor) -> Tensor:
    """Numbers as a tensor of `like`'s dtype and device, made once and kept (a few hundred bytes each)."""
    return _table(values, like.dtype, like.device)


def coefficients(dynamics: ChainDynamics, like: Tensor) -> Tensor:
    """c_u, c_net and σ of (24) on the device, (3, K)."""
    return on_device((tuple(dynamics.c_u), tuple(dynamics.c_net), tuple(dynamics.sigma)), like)


def parameters(mlp: MLP) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Weights and biases of every layer, and the LayerNorms' gains and shifts in turn (without LayerNorm, the biases again)."""
    norms = tuple(parameter.detach().contiguous() for norm in mlp.norms for parameter in (norm.weight, norm.bias))
    weights, biases = (tuple(getattr(x, name).detach().contiguous() for x in mlp.layers) for name in ("weight", "bias"))
    return weights, biases, norms or biases


def scales(module: nn.Module, *names: str) -> tuple[Tensor, ...]:
    """Buffers by name, as kernels read them: one number behind the other."""
    return tuple(module.get_buffer(name).contiguous() for name in names)


def chain_constants(dynamics: ChainDynamics) -> dict[str, Any]:
    """What the compiler is told of a chain by every kernel, by name."""
    mlp, d, m = dynamics.denoiser.mlp, dynamics.state_dim, dynamics.action_dim
    return dict(
        K=dynamics.diffusion_steps,
        D=d,
        M=m,
        DP=padded(d),
        MP=padded(m),
        STRIDE=mlp.layers[0].weight.shape[1],
        DIFFERENCE=dynamics.target == "difference",
        NET=net(mlp),
    )


def padded(n: int) -> int:
    """The width of a register matrix that holds n columns."""
    return max(SMALLEST, triton.next_power_of_2(n))


@dataclass(frozen=True)
class Floor:
    """What a launch of the chain must do at least, for rates and shares of a GPU's limits."""

    operations: int
    """additions and multiplications of the rows that carry something"""
    padded_operations: int
    """the same with the rows that only fill tiles"""
    l2_bytes: int
    """weights (once per tile and layer) and activations (written and read once per layer) between L2 and the chip"""
    memory_bytes: int
    """inputs, outputs and weights, once"""
    layers: int
    """layer evaluations one behind the other: what latency multiplies"""


def floor(
    dynamics: ChainDynamics,
    batch: int,
    T: int,
    *,
    adjoint: str | None = None,
    dtype: torch.dtype = torch.float32,
    tile: Tile | None = None,
) -> Floor:
    """The least cost of one `chain_forward` with T tangents, or, for adjoint "stored" or "recompute", of record and adjoint.

    A product of `rows` with a weight takes 2 · rows · in · out operations. A weight is read once per tile of rows.
    """
    d, m, K = dynamics.state_dim, dynamics.action_dim, dynamics.diffusion_steps
    widths = dynamics.denoiser.mlp.hidden
    inner = sum(a * b for a, b in zip((d, *widths), (*widths, d), strict=True))
    once = (d + m) * widths[0]
    size = torch.finfo(dtype).bits // 8
    tile = tile or choose_tile(batch, T, dtype, dynamics.out_std.device)
    p = plan(tile, batch, T, max(widths), "ieee", torch.device("cpu"))
    tiles = triton.cdiv(batch, p.particles) * p.pieces
    passes = {None: 1, "stored": 2, "recompute": 3}[adjoint]
    rows = batch * (p.pieces + T)
    weights = passes * (K * inner + once)
    stored = K * sum(widths) * batch * (1 + 2 * bool(dynamics.denoiser.mlp.norms)) if adjoint == "stored" else 0
    activations = passes * K * 2 * sum(widths) * tiles * p.shape.rows
    in_out = batch * ((K + 1) * d + (d + m) * (1 + T) + d * (1 + T)) + 2 * stored
    return Floor(
        operations=2 * rows * weights,
        padded_operations=2 * tiles * p.shape.rows * weights,
        l2_bytes=size * (tiles * weights + activations),
        memory_bytes=size * (inner + once + in_out),
        layers=passes * K * (len(widths) + 1),
    )


def candidates(T: int) -> list[Tile]:
    """Tiles worth timing for T tangents."""
    found = []
    for rows in (16, 32, 64, 128):
        for columns in (64, 128, 256):
            for warps in (4, 8):
                found.append(Tile(rows=rows, columns=columns, inner=32, warps=warps, stages=3))
                if T > 15:
                    found.append(replace(found[-1], per_particle=16))
    return found


def tune(run: Callable[[Tile], object], tiles: list[Tile], *, repetitions: int = 20) -> tuple[Tile, dict[Tile, float]]:
    """The fastest of `tiles` for `run(tile)` on a CUDA device, and the median milliseconds of all that fit the GPU.

    For benchmarks: `tune(lambda tile: chain_forward(..., tile=tile), candidates(T))`. Never called by the engine.
    """
    if interpreted():
        raise RuntimeError("tune: expected compiled kernels on a CUDA device, got the interpreter; its times mean nothing")
    times: dict[Tile, float] = {}
    for tile in tiles:
        try:
            run(tile)
        except KernelBuildError:
            continue
        samples = []
        for _ in range(repetitions):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            run(tile)
            end.record()
            end.synchronize()
            samples.append(start.elapsed_time(end))
        times[tile] = statistics.median(samples)
    if not times:
        raise KernelBuildError(
            f"tune: none of {len(tiles)} tiles fits this GPU's registers and shared memory; try smaller ones"
        )
    return min(times, key=lambda tile: times[tile]), times
