"""Compiles the Triton kernels for a GPU that need not be there, with the signatures that the JIT itself would derive.

`ahead` replaces the GPU's driver: every launch is specialised by Triton's own rules (an integer 1 becomes a constant, pointers
are aligned or not), compiled up to a stage, recorded, and not run.

    python -m tests.triton_ahead                       # every kernel down to the binary, one JSON object a line
    python -m tests.triton_ahead --stage ttir --specialisations     # every specialisation, front end only
"""

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler.compiler import make_backend
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from jacrec import Actor, BatchedPolicy, DiffusionDynamics, FlowDynamics, RewardModel, TwinCritic, World
from jacrec.engine.shapes import problem
from jacrec.kernels import chain_adjoint, chain_forward, launch, rollout, served

PROCESSORS = 132
"""multiprocessors of an H100 or H200"""


@dataclass
class Compiled:
    """A launch as far as it was compiled."""

    kernel: str
    signature: dict[str, Any]
    attributes: dict
    asm: dict[str, Any]
    shared: int | None
    """bytes of shared memory; known from the stage "llir" on"""
    dtype: str = ""
    grid: tuple = ()
    rows: int = 0
    columns: int = 0
    launches: int = 0
    ones: set[str] = field(default_factory=set)
    """integer arguments that were 1 in some launch"""


@dataclass
class Launches:
    """What `ahead` has compiled, without repetitions."""

    compiled: list[Compiled] = field(default_factory=list)


class Absent:
    """The driver of a GPU that is not there."""

    def __init__(self, target: GPUTarget):
        self.target = target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self.target


def build(source: ASTSource, target: GPUTarget, options: Any, last: str) -> tuple[dict[str, Any], dict]:
    """All stages of Triton's compiler up to `last`, and the metadata."""
    backend = make_backend(target)
    options = backend.parse_options(dict(options.__dict__, **source.parse_options()))
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    functions, modules = backend.get_codegen_implementation(options), backend.get_module_map()
    module = source.make_ir(target, options, functions, modules, context)
    metadata = {"target": target, **options.__dict__}
    stages: dict[str, Callable] = {}
    backend.add_stages(stages, options, source.language)
    asm = {}
    for name, compile_stage in stages.items():
        module = compile_stage(module, metadata)
        asm[name] = module if isinstance(module, str | bytes) else str(module)
        if name == last:
            break
    return asm, metadata


@contextmanager
def ahead(stage: str = "cubin", sm: int = 90) -> Iterator[Launches]:
    """Within it, launches of CPU tensors are compiled up to `stage` for a GPU with compute capability `sm`."""
    target, found, run = GPUTarget("cuda", sm, 32), Launches(), JITFunction.run

    def compile_only(self, key, signature, device, constexprs, options, attributes, warmup):
        source = ASTSource(self, signature, constexprs, attributes)
        asm, metadata = build(source, target, options, stage)
        done = Compiled(self.__name__, signature, attributes, asm, metadata.get("shared"))
        self.device_caches[device][0][key] = done
        found.compiled.append(done)
        return done

    def run_ahead(self, *args, grid, warmup, **named):
        done = run(self, *args, grid=grid, warmup=True, **named)
        done.grid, done.dtype = grid, str(args[0].dtype).removeprefix("torch.")
        done.rows, done.columns, done.launches = named["SHAPE"].rows, named["SHAPE"].columns, done.launches + 1
        given = {**dict(zip(self.arg_names, args, strict=False)), **named}
        done.ones |= {name for name, kind in done.signature.items() if kind in ("i32", "i64") and given[name] == 1}
        return done

    with (
        absent_gpu(sm),
        mock.patch.object(JITFunction, "_do_compile", compile_only),
        mock.patch.object(JITFunction, "run", run_ahead),
    ):
        yield found


@contextmanager
def absent_gpu(sm: int = 90) -> Iterator[None]:
    """Within it, Triton compiles for a GPU that is not there, and the kernels serve CPU tensors."""
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(driver, "_active", Absent(GPUTarget("cuda", sm, 32))))
        stack.enter_context(mock.patch.object(served, "interpreted", return_value=True))
        for part in (launch, rollout):
            stack.enter_context(mock.patch.object(part, "multiprocessors", return_value=PROCESSORS))
        for kernel in KERNELS:
            kernel.device_caches.clear()
        yield
        for kernel in KERNELS:
            kernel.device_caches.clear()


KERNELS = (
    chain_forward.chain_forward_kernel,
    chain_adjoint.chain_record_kernel,
    chain_adjoint.chain_adjoint_kernel,
    rollout.rollout_kernel,
)


def usage(cubin: bytes) -> dict[str, int]:
    """Registers per thread and bytes of stack per thread, as the binary says."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    numbers = dict(re.findall(r"\b(REG|STACK):(\d+)", text))
    return {"registers": int(numbers["REG"]), "stack": int(numbers["STACK"])}


def zeros(*shape: int, dtype: torch.dtype, aligned: bool = True) -> torch.Tensor:
    """Zeros; unless `aligned`, at an address that 16 does not divide."""
    n = torch.Size(shape).numel()
    return torch.zeros(n + 1, dtype=dtype)[1:].view(shape) if not aligned else torch.zeros(shape, dtype=dtype)


def misalign(module: torch.nn.Module) -> None:
    """Move all parameters and buffers to addresses that 16 does not divide."""
    for part in module.modules():
        for value in part._parameters.values():
            if value is not None:
                value.data = zeros(*value.shape, dtype=value.dtype, aligned=False)
        for name, value in part._buffers.items():
            if value is not None:
                setattr(part, name, zeros(*value.shape, dtype=value.dtype, aligned=False))


def launch_chains(
    f: DiffusionDynamics | FlowDynamics, B: int, T: int, *, recompute: tuple[bool, ...] = (False, True), aligned: bool = True
) -> None:
    """The chain's kernels for B particles and T tangents each."""
    d, m, dtype = f.state_dim, f.action_dim, f.out_std.dtype
    shapes = (B, d), (B, m), (B, f.noises, d), (B, T, d), (B, T, m)
    s, a, z, ds, da = (zeros(*x, dtype=dtype, aligned=aligned) for x in shapes)
    chain_forward.chain_forward(f, s, a, z, ds, da)
    for again in recompute:
        _, tape = chain_adjoint.chain_record(f, s, a, z, recompute=again)
        chain_adjoint.chain_adjoint(f, tape, s)


def launch_rollout(
    f, N: int, M: int, H: int, *, batched: bool = True, aligned: bool = True, critics: int = 2, **network
) -> None:
    """The rollout from N states with M particles each."""
    d, m, dtype = f.state_dim, f.action_dim, f.out_std.dtype
    actor, reward, critic = Actor(d, m, **network), RewardModel(d, m, **network), TwinCritic(d, m, critics=critics, **network)
    parts = [part.to(dtype) for part in (BatchedPolicy(actor, N) if batched else actor, reward, critic)]
    if not aligned:
        for part in parts:
            misalign(part)
    world = World(f, *parts[1:], 0.99)
    state = zeros(N, d, dtype=dtype, aligned=aligned)
    noise = zeros(N, M, H, f.noises, d, dtype=dtype, aligned=aligned)
    rollout.rollout(problem(parts[0], world, state, noise))


def launch_usual() -> None:
    """Every kernel at the sizes of hopper."""
    f = DiffusionDynamics(11, 3, steps=10)
    launch_chains(f, 64, 14)
    launch_rollout(f, 2, 32, 5)
    f = DiffusionDynamics(11, 3, (33,) * 3, steps=10, layer_norm=True, residual=True, activation="mish").double()
    launch_chains(f, 64, 14, recompute=(True,))


def launch_specialisations() -> None:
    """Small networks with every integer argument at 1, at a multiple of 16 and at neither, pointers aligned or not."""
    small = dict(hidden=(16,))
    for aligned in (True, False):
        dynamics = [
            DiffusionDynamics(3, 2, steps=2, **small),
            DiffusionDynamics(1, 1, steps=1, hidden=(1,)),
            FlowDynamics(3, 2, steps=1, **small),
            FlowDynamics(1, 1, steps=1, hidden=(1,)),
        ]
        for f in dynamics if aligned else dynamics[:1]:
            if not aligned:
                misalign(f)
            for B in (1, 3, 16, 64):
                for T in (0, 1, 2, 16):
                    launch_chains(f, B, T, aligned=aligned)
            for N, M in ((1, 1), (1, 3), (2, 1), (1, 16), (16, 1)):
                for H in (0, 1, 2):
                    for batched in (False, True):
                        launch_rollout(f, N, M, H, batched=batched, aligned=aligned, critics=1 if M == 1 else 2, **small)


def main() -> None:
    """Compile, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sm", type=int, default=90, help="compute capability, e.g. 80 or 90")
    parser.add_argument("--stage", choices=("ttir", "ttgir", "llir", "ptx", "cubin"), default="cubin", help="the last stage")
    parser.add_argument("--specialisations", action="store_true", help="small networks, all argument specialisations")
    options = parser.parse_args()
    with ahead(options.stage, options.sm) as found:
        (launch_specialisations if options.specialisations else launch_usual)()
    for done in found.compiled:
        row = {"kernel": done.kernel, "dtype": done.dtype, "grid": done.grid, "launches": done.launches}
        row |= {
            "rows": done.rows,
            "columns": done.columns,
            "shared": done.shared,
            "aligned": sum(map(bool, done.attributes.values())),
        }
        row["ones"] = sorted(done.ones)
        row["integers"] = {name: kind for name, kind in done.signature.items() if kind in ("i32", "i64")}
        if "cubin" in done.asm:
            row |= usage(done.asm["cubin"])
            row |= {"binary": len(done.asm["cubin"]), "tensor_core": "mma" in done.asm["ptx"]}
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
