"""Failures to build a kernel, told apart from failures of a running GPU."""

import subprocess
import traceback

import torch
from triton.errors import TritonError

CUDA_ERRORS = ("Triton Error [CUDA]", "Triton Error [HIP]", "CUDA error", "HIP error", "CUDA out of memory")
"""how messages of the driver begin or what they contain; they are never caught: the context may be corrupt"""


RUN_TIME_ERRORS = tuple(getattr(torch, name) for name in ("OutOfMemoryError", "AcceleratorError") if hasattr(torch, name))
"""torch's own exceptions of a running GPU; the second since torch 2.8"""


class KernelBuildError(RuntimeError):
    """A kernel cannot be compiled here, or needs more registers or shared memory than the GPU has."""


def is_build_failure(error: Exception) -> bool:
    """Whether an exception of a launch came from building the kernel: the compiler, its tools, or its resources.

    Triton raises exceptions of its own for errors in the source, in ptxas and in resources, but a plain RuntimeError for a
    missing C compiler, a missing driver and a failed compiler pass, what subprocess raises for a tool that fails, ImportError
    for a launcher that cannot be loaded, and anything for a fault of the compiler itself.
    """
    if isinstance(error, TritonError | subprocess.SubprocessError | OSError | ImportError):
        return True
    if isinstance(error, RUN_TIME_ERRORS) or any(text in str(error) for text in CUDA_ERRORS):
        return False
    return isinstance(error, RuntimeError) or raised_by_compiler(error)


def raised_by_compiler(error: Exception) -> bool:
    """Whether an exception passed through Triton's compiler on its way."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(str(frame.f_globals.get("__name__")).startswith("triton.compiler") for frame, _ in frames)
