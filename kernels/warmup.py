"""Compile the kernels of given problems before they are needed, several at once."""

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from triton.runtime._async_compile import AsyncCompileMode

from jacrec.engine.problem import Problem
from jacrec.kernels import gradient, kept
from jacrec.kernels.failures import KernelBuildError, is_build_failure
from jacrec.kernels.launch import compiling, described


def warm_up(problems: Sequence[Problem], forms: Sequence[str] = ("auto",), workers: int | None = None) -> float:
    """Compile what the gradients of these problems launch, and launch no kernel of ours; the seconds that it took.

    Args:
        forms: of "auto", "forward" and "adjoint".
        workers: compilations at once; default: one to a core.

    Raises:
        KernelBuildError: a kernel cannot be compiled.
    """
    checked = [kept.examined(p) for p in problems]
    return compile_calls([partial(gradient.compile_form, p, form) for p in checked for form in forms], workers)


@torch.no_grad()
def compile_calls(calls: Sequence[Callable[[], object]], workers: int | None = None) -> float:
    """Compile what some calls launch, and launch nothing; arguments and errors as in `warm_up`.

    The compiler's passes release Python's lock, so that threads of this process compile side by side and the kernels are
    ready in it; Triton's cache on disk has them for other processes too.
    """
    begun = time.perf_counter()
    try:
        with ThreadPoolExecutor(workers or os.cpu_count()) as pool, AsyncCompileMode(pool), compiling():
            for call in calls:
                call()
    except KernelBuildError:
        raise
    except Exception as error:
        if is_build_failure(error):
            raise KernelBuildError(f"warm-up: {described(error)}") from error
        raise
    return time.perf_counter() - begun
