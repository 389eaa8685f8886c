"""`jacrec compile RUN`."""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from tyro.conf import Positional

from jacrec.control.controller import MPC
from jacrec.engine.choice import explain
from jacrec.engine.dispatch import unsupported_reason
from jacrec.engine.rollout import noise_like
from jacrec.engine.shapes import problem
from jacrec.training.run import load_run
from jacrec.util.tensors import usable_device


@dataclass(frozen=True)
class Compile:
    """Compile the kernels for a run's decisions ahead of the first one: for images, and for robots that must start at once.

    Of a GPU's, several at once; kernels that cannot be compiled are named, with status 1. The others are kept all the same.
    """

    run: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")]
    """the run's folder"""
    device: str | None = None
    """cpu, cuda or cuda:N; None: the GPU if torch finds one"""
    horizon: tuple[int, ...] = (5,)
    """GPU: H"""
    particles: tuple[int, ...] = (1, 64, 256, 4096)
    """GPU: M; kernels are shared by all numbers that use the same tiles"""
    workers: int | None = None
    """GPU: compilations at once; None: one to a core"""


COMMAND = Compile


def run(args: list[str]) -> int:
    """The verb."""
    chosen = tyro.cli(COMMAND, args=args, prog="jacrec compile")
    name = chosen.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if name.split(":")[0] not in ("cpu", "cuda"):
        raise ValueError(f"--device: expected cpu, cuda or cuda:N, got {name}")
    device = usable_device("--device", name)
    return _compile_for_gpu(chosen, device) if device.type == "cuda" else _compile_for_cpu(chosen)


def _compile_for_cpu(chosen: Compile) -> int:
    from jacrec.kernels.cpu.base.helpers import compile_tasks

    trained = load_run(chosen.run)
    reason = explain(trained.policy, trained.world).get("kernels")
    if reason is not None:
        raise ValueError(f"nothing to compile: {reason}")
    begun = time.perf_counter()
    compile_tasks()
    MPC(trained.policy, trained.world).warm_up(decisions=1)  # one code serves all sizes
    print(f"compiled in {time.perf_counter() - begun:.0f} s")
    return 0


def _compile_for_gpu(chosen: Compile, device: torch.device) -> int:
    from jacrec.kernels.failures import KernelBuildError
    from jacrec.kernels.warmup import warm_up

    trained = load_run(chosen.run)
    policy, world = trained.policy.to(device), trained.world.to(device)
    state = torch.zeros(policy.state_dim, device=device)
    sizes = [(M, H) for H in chosen.horizon for M in chosen.particles]
    problems = [problem(policy, world, state, noise_like(world, state, M, H)) for M, H in sizes]
    reason = unsupported_reason(problems[0], "adjoint")
    if reason is not None:
        raise ValueError(f"nothing to compile: {reason}")
    try:
        seconds = warm_up(problems, workers=chosen.workers)
    except KernelBuildError as error:
        print(f"{error}; Auto takes plain torch for their sizes", file=sys.stderr)
        return 1
    print(f"{len(sizes)} sizes compiled in {seconds:.0f} s")
    return 0
