"""Networks on disk: safetensors for the weights, with class and configuration in the file's metadata."""

import json
import os
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from jacrec.models.dynamics import (
    DeterministicDynamics,
    DiffusionDynamics,
    EnsembleDynamics,
    FlowDynamics,
    MeanFlowDynamics,
    MultiStepDynamics,
)
from jacrec.models.dynamics.flow import without_solver
from jacrec.models.networks import Actor, RewardModel, TwinCritic
from jacrec.util.files import atomic_write, user_path

DYNAMICS = (DiffusionDynamics, DeterministicDynamics, FlowDynamics, MeanFlowDynamics, EnsembleDynamics, MultiStepDynamics)
CLASSES = {c.__name__: c for c in (Actor, TwinCritic, RewardModel, *DYNAMICS)}


def save_module(module: nn.Module, path: str | Path) -> Path:
    """Write one of jacrec's networks to `path` (.safetensors), atomically: an interrupted save leaves the old file."""
    kind = type(module).__name__
    if kind not in CLASSES:
        raise ValueError(f"save_module: expected one of {', '.join(CLASSES)}, got {kind}; save its state_dict yourself")
    path = user_path(path)
    tensors = {k: v.detach().cpu().contiguous() for k, v in module.state_dict().items()}
    with atomic_write(path) as part:
        # a single entry: safetensors writes several in random order, and equal networks should give equal files
        save_file(tensors, part, metadata={"jacrec": json.dumps({"class": kind, "config": module.config}, sort_keys=True)})
        part.chmod(0o666 & ~_umask())  # safetensors creates files that only their owner may read
    return path


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def load_module(path: str | Path) -> nn.Module:
    """The network stored at `path`, on the CPU, in evaluation mode."""
    path = user_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no network at {path}; train one with `jacrec train`")
    with safe_open(path, "pt") as file:
        header = json.loads((file.metadata() or {}).get("jacrec", "{}"))
        tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
    if header.get("class") not in CLASSES:
        raise ValueError(f"{path}: expected a network written by jacrec (its class in the metadata), got {header or 'none'}")
    config = header["config"]
    if header["class"] == FlowDynamics.__name__:
        config = without_solver(config, str(path))
    module = CLASSES[header["class"]](**config)
    module.to(next(iter(tensors.values())).dtype)  # the saved dtype, not this process's default
    module.load_state_dict(tensors)
    return module.eval()
