"""`jacrec compile RUN`."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from tyro.conf import Positional

from jacrec.engine.dispatch import unsupported_reason
from jacrec.engine.rollout import noise_like
from jacrec.engine.shapes import problem
from jacrec.training.run import load_run
from jacrec.util.tensors import usable_device


@dataclass(frozen=True)
class Compile:
    """Compile a GPU's kernels for a run before its first decision, several at once; Triton's cache keeps them.

    Kernels that cannot be compiled are named, with status 1; the others are kept all the same.
    """

    run: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")]
    """the run's folder"""
    device: str = "cuda"
    """the GPU"""
    horizon: tuple[int, ...] = (5,)
    """H"""
    particles: tuple[int, ...] = (1, 64, 256, 4096)
    """M; kernels are shared by all numbers that use the same tiles"""
    workers: int | None = None
    """compilations at once; None: one to a core"""


COMMAND = Compile


def run(args: list[str]) -> int:
    """The verb."""
    chosen = tyro.cli(COMMAND, args=args, prog="jacrec compile")
    if chosen.device.split(":")[0] != "cuda":
        raise ValueError(
            f"--device: expected cuda or cuda:N, got {chosen.device}; a CPU's kernels are compiled at their first use"
        )
    if not torch.cuda.is_available():
        raise ValueError(f"--device: expected a CUDA GPU, torch {torch.__version__} finds none")
    usable_device("--device", chosen.device)
    from jacrec.kernels.failures import KernelBuildError
    from jacrec.kernels.warmup import warm_up

    trained = load_run(chosen.run)
    policy, world = trained.policy.to(chosen.device), trained.world.to(chosen.device)
    state = torch.zeros(policy.state_dim, device=chosen.device)
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
