"""Bit-identical results for equal seeds, on a GPU as on a CPU."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.utils.deterministic

from jacrec.training.config import TrainConfig

FILLING: Any = torch.utils.deterministic  # type checkers do not know the attribute
WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
FIXED_WORKSPACES = (":4096:8", ":16:8")
"""values for which cuBLAS guarantees reproducible results (its manual, "Results reproducibility")"""


@contextlib.contextmanager
def determinism(config: TrainConfig) -> Iterator[None]:
    """Apply config.deterministic to the whole process inside the block.

    Torch then rejects operations without a deterministic implementation, cuBLAS uses workspaces of fixed size, and matrix
    products use full precision. Results are bit-identical for one machine, one version of torch and one way of training: a
    seed trained in a batched model differs by rounding from the seed trained alone. Not measured on a GPU.

    Raises:
        ValueError: CUDA was already initialised with other workspaces; they can only be set before.
    """
    if not config.deterministic:
        yield
        return
    if torch.device(config.device).type == "cuda":
        _fix_workspaces()
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    precision, filling = torch.get_float32_matmul_precision(), FILLING.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.set_float32_matmul_precision("highest")
    FILLING.fill_uninitialized_memory = False  # no code here reads uninitialised memory
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.set_float32_matmul_precision(precision)
        FILLING.fill_uninitialized_memory = filling


def _fix_workspaces() -> None:
    setting = os.environ.get(WORKSPACE)
    if setting in FIXED_WORKSPACES:
        return
    if torch.cuda.is_initialized():
        raise ValueError(
            f"deterministic: expected {WORKSPACE} to be one of {', '.join(FIXED_WORKSPACES)} before CUDA is initialised, got "
            f"{setting!r}; set it in the environment, or train in a new process"
        )
    os.environ[WORKSPACE] = FIXED_WORKSPACES[0]
