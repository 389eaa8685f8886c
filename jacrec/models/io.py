"""Networks on disk: safetensors for the weights, with class and configuration in the file's metadata."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from jacrec.models.dynamics import (
    DeterministicDynamics,
    DiffusionDynamics,
    EnsembleDynamics,
    FlowDynamics,
    MeanFlowDynamics,
    MultiStepDynamics,
)
from jacrec.models.dynamics.flow import without_solver
from jacrec.models.mlp import LayerNorm, ParallelMLP
from jacrec.models.networks import Actor, RewardModel, TwinCritic
from jacrec.util.files import user_path
from jacrec.util.tensors import read_tensors, with_checksum, without_checksum, write_tensors

DYNAMICS = (DiffusionDynamics, DeterministicDynamics, FlowDynamics, MeanFlowDynamics, EnsembleDynamics, MultiStepDynamics)
REMEDY = (
    "copy the file again, or delete it and repeat the command that wrote it: `jacrec train` restores it from its checkpoint"
)
CLASSES = {c.__name__: c for c in (Actor, TwinCritic, RewardModel, *DYNAMICS)}


def save_module(module: nn.Module, path: str | Path, *, notes: dict[str, float] | None = None) -> Path:
    """Write one of jacrec's networks to `path` (.safetensors), atomically: an interrupted save leaves the old file.

    notes: numbers to be kept with it, for `load_module_and_notes`.
    """
    if type(module).__name__ not in CLASSES:
        names = ", ".join(CLASSES)
        raise ValueError(f"save_module: expected one of {names}, got {type(module).__name__}; save its state_dict yourself")
    path = user_path(path)
    tensors = {k: v.detach().cpu().contiguous() for k, v in module.state_dict().items()}
    header = with_checksum(tensors, described(module) | ({"notes": notes} if notes else {}))
    # a single entry: safetensors writes several in random order, and equal networks should give equal files
    write_tensors(path, tensors, {"jacrec": json.dumps(header, sort_keys=True)})
    return path


def load_module(path: str | Path) -> nn.Module:
    """The network stored at `path`, on the CPU, in evaluation mode.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is damaged, as its checksum shows (files of earlier versions have none), or not a network's.
    """
    return load_module_and_notes(path)[0]


def load_module_and_notes(path: str | Path) -> tuple[nn.Module, dict[str, float]]:
    """The network stored at `path`, and the numbers kept with it, {} if there are none. Raises as `load_module`."""
    path = user_path(path)
    header, tensors = read_network(path)
    module = rebuilt(header, tensors, path)
    notes = header.get("notes", {})
    if not isinstance(notes, dict) or not all(isinstance(x, float) for x in notes.values()):
        raise ValueError(f"{path}: expected numbers as notes, got {str(notes)[:200]}; {REMEDY}")
    return module.eval(), notes


def described(module: nn.Module) -> dict[str, Any]:
    """Class and configuration of one of jacrec's networks, for `rebuilt`.

    Raises:
        ValueError: a network that its class's constructor would not make again: a view of other modules, or an altered one.
    """
    kind = type(module).__name__
    for part in module.modules():
        if isinstance(part, ParallelMLP) or (type(part) is LayerNorm and part.eps != LayerNorm.eps):
            got = f"LayerNorms with eps = {part.eps}" if isinstance(part, LayerNorm) else "critics with parameters of their own"
            raise ValueError(
                f"{kind}: expected a network that its constructor makes, got {got}, which cannot be saved; save the state_dict of "
                "the modules that it was made of"
            )
    own_config: Any = module.config
    config = {name: value for name, value in own_config.items() if name != "solver"}  # of flow models of earlier versions
    with torch.random.fork_rng(devices=[]):
        again = CLASSES[kind](**config)  # pyright: ignore[reportArgumentType, reportCallIssue]
    for (name, part), other in zip(module.named_modules(), again.modules(), strict=False):
        own, made = _plain(part), _plain(other)
        changed = [key for key in {**own, **made} if own.get(key) != made.get(key)]
        if type(part) is not type(other) or changed:
            raise ValueError(
                f"{kind}: expected a network as its constructor makes it, got another {name or 'class'} ({', '.join(changed)}), which "
                "would be lost; give the setting to the constructor, or save the state_dict yourself"
            )
    shapes, expected = ({key: tuple(x.shape) for key, x in net.state_dict().items()} for net in (module, again))
    if shapes != expected:
        raise ValueError(
            f"{kind}: expected tensors {expected}, as its constructor makes them, got {shapes}; save the state_dict"
        )
    return {"class": kind, "config": module.config}


def _plain(module: nn.Module) -> dict[str, Any]:
    """The attributes by which a module computes, besides tensors and modules."""
    kinds = (bool, int, float, str, tuple, list)
    return {k: v for k, v in vars(module).items() if type(v) in kinds and k not in ("training", "config") and k[0] != "_"}


def rebuilt(header: dict[str, Any], tensors: dict[str, Tensor], path: Path, remedy: str = REMEDY) -> nn.Module:
    """The network of a `described` header with these tensors, on the CPU.

    Raises:
        ValueError: they do not belong together. The error names the file and ends with the `remedy`.
    """
    config: Any = header.get("config")
    if header["class"] == FlowDynamics.__name__ and isinstance(config, dict):
        config = without_solver(config, str(path))
    try:
        module: nn.Module = CLASSES[header["class"]](**config)
        module.to(next(iter(tensors.values())).dtype)  # the saved dtype, not this process's default
        module.load_state_dict(tensors)
    # all that a file can cause; load_state_dict answers a RuntimeError
    except (TypeError, ValueError, RuntimeError, StopIteration) as error:
        raise ValueError(f"{path}: expected a network of class {header['class']}, got another ({error}); {remedy}") from error
    return module


def read_network(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Class and configuration of the network stored at `path`, and its tensors. Raises as `load_module`."""
    if not path.is_file():
        raise FileNotFoundError(f"no network at {path}; train one with `jacrec train`")
    tensors, metadata = read_tensors(path, REMEDY)
    header = _header(metadata)
    if header is None or header.get("class") not in CLASSES or not header.keys() <= {"class", "config", "checksum", "notes"}:
        got = str(metadata)[:200] if metadata else "none"
        raise ValueError(f"{path}: expected a network written by jacrec (its class in the metadata), got {got}; {REMEDY}")
    return without_checksum(tensors, header, path, REMEDY), tensors


def _header(metadata: dict[str, str]) -> dict[str, Any] | None:
    try:
        header = json.loads(metadata["jacrec"])
    except (KeyError, json.JSONDecodeError, RecursionError):
        return None
    return header if isinstance(header, dict) else None
