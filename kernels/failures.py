"""Failures to build a kernel, told apart from failures of a running GPU."""

import subprocess

import torch
from triton.errors import TritonError

CUDA_ERRORS = ("Triton Error [CUDA]", "Triton Error [HIP]", "CUDA error", "HIP error", "CUDA out of memory")
"""how messages of the driver begin or what they contain; they are never caught: the context may be corrupt"""


class KernelBuildError(RuntimeError):
    """A kernel cannot be compiled here, or needs more registers or shared memory than the GPU has."""


def is_build_failure(error: Exception) -> bool:
    """Whether an exception of a launch came from building the kernel: the compiler, its tools, or its resources.

    Triton raises exceptions of its own for errors in the source, in ptxas and in resources, but a plain RuntimeError for a
    missing C compiler, a missing driver and a failed compiler pass, and what subprocess raises for a tool that fails.
    """
    if isinstance(error, torch.AcceleratorError | torch.OutOfMemoryError):
        return False
    if isinstance(error, TritonError | subprocess.SubprocessError | OSError):
        return True
    return isinstance(error, RuntimeError) and not any(text in str(error) for text in CUDA_ERRORS)
