"""Compile the kernels of given problems before they are needed, several at once."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial

import torch
from triton.runtime._async_compile import AsyncCompileMode, FutureKernel

from jacrec.engine.problem import Problem
from jacrec.kernels import gradient, kept
from jacrec.kernels.failures import KernelBuildError, is_build_failure
from jacrec.kernels.launch import compiling, described
from jacrec.util.processors import processors


def warm_up(problems: Sequence[Problem], forms: Sequence[str] = ("auto",), workers: int | None = None) -> float:
    """Compile what the gradients of these problems launch, and launch no kernel of ours; the seconds that it took.

    Args:
        forms: of "auto", "forward" and "adjoint".
        workers: compilations at once; default: one to a core.

    Raises:
        KernelBuildError: some kernels cannot be compiled; says which, and all others are.
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
    # in a context of its own: Triton 3.6 and 3.7 stay in their mode where something fails in it
    failures = copy_context().run(_failures, calls, workers or processors())
    if failures:
        raise KernelBuildError(f"warm-up: not compiled, while all others are: {'; '.join(failures)}")
    return time.perf_counter() - begun


def _failures(calls: Sequence[Callable[[], object]], workers: int) -> list[str]:
    """Compile all that can be; what cannot, and why."""
    found, promises = [], {}
    with ThreadPoolExecutor(workers) as pool, AsyncCompileMode(pool, ignore_errors=True), compiling() as launches:
        for call in calls:
            call()
        for name, made in launches:
            if isinstance(made, KernelBuildError):
                found.append(str(made))
            elif isinstance(made, FutureKernel):  # launches of the same kernel share it
                promises.setdefault(id(made), (name, made))
        for name, promise in promises.values():
            try:
                promise.result()
            except Exception as error:
                if not is_build_failure(error):
                    raise
                found.append(f"{name}: {described(error)}")
    return found
