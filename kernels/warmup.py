"""Compile the kernels of given problems before they are needed, several at once."""

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from triton.runtime._async_compile import AsyncCompileMode

from jacrec.engine.problem import Problem
from jacrec.kernels import gradient, kept
from jacrec.kernels.failures import KernelBuildError, is_build_failure
from jacrec.kernels.launch import compiling, described


@torch.no_grad()
def warm_up(problems: Sequence[Problem], forms: Sequence[str] = ("auto",), workers: int | None = None) -> float:
    """Compile what the gradients of these problems launch, and launch no kernel of ours; the seconds that it took.

    The compiler's passes release Python's lock, so that threads of this process compile side by side and the kernels are
    ready in it; Triton's cache on disk has them for other processes too.

    Args:
        forms: of "auto", "forward" and "adjoint".
        workers: compilations at once; default: one to a core.

    Raises:
        KernelBuildError: a kernel cannot be compiled.
    """
    begun = time.perf_counter()
    try:
        with ThreadPoolExecutor(workers or os.cpu_count()) as pool, AsyncCompileMode(pool), compiling():
            for p in map(kept.examined, problems):
                for form in forms:
                    gradient.compile_form(p, form)
    except KernelBuildError:
        raise
    except Exception as error:
        if is_build_failure(error):
            raise KernelBuildError(f"warm-up: {described(error)}") from error
        raise
    return time.perf_counter() - begun
