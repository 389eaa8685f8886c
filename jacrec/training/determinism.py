"""Equal bits for equal seeds, on a GPU as on a CPU."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.utils.deterministic

from jacrec.training.config import TrainConfig

FILLING: Any = torch.utils.deterministic  # the switch is no attribute to a type checker
WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
FIXED_WORKSPACES = (":4096:8", ":16:8")
"""the values with which cuBLAS promises equal bits from run to run (its manual, "Results reproducibility")"""


@contextlib.contextmanager
def determinism(config: TrainConfig) -> Iterator[None]:
    """What config.deterministic promises, inside the block, for the whole process.

    Torch then refuses operations that have no deterministic form, cuBLAS keeps to workspaces of fixed size, and matrix
    products are in full precision. The bits are those of one machine, one version of torch, and one way of training: a seed
    beside others differs from the seed alone by rounding. On a GPU: not measured.

    Raises:
        ValueError: CUDA is in use already with other workspaces; they can be set only before.
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
    FILLING.fill_uninitialized_memory = False  # nothing here reads what it has not written
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
            f"deterministic: expected {WORKSPACE} to be one of {', '.join(FIXED_WORKSPACES)} before CUDA is first used, got "
            f"{setting!r}; set it in the environment, or train in a process of its own"
        )
    os.environ[WORKSPACE] = FIXED_WORKSPACES[0]
