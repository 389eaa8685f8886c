"""Tensors in safetensors files with a checksum, so that damage shows when a file is read."""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from jacrec.util.files import write_bytes

CHECKSUM = "checksum"


def usable_device(name: str, value: str | torch.device) -> torch.device:
    """The device that a caller names.

    Raises:
        ValueError: torch does not know it, or cannot use it here.
    """
    try:
        device = torch.device(value)
    except (RuntimeError, TypeError):
        raise ValueError(f"{name}: expected a device of torch such as cpu, cuda or cuda:0, got {value!r}") from None
    if device.type == "cuda":
        usable = (device.index or 0) < (torch.cuda.device_count() if torch.cuda.is_available() else 0)
    else:
        try:
            usable = torch.empty(0, device=device).device.type != "meta"
        except (RuntimeError, AssertionError, ImportError, NotImplementedError):
            usable = False
    if not usable:
        raise ValueError(f"{name}: expected one that torch can use here, got {str(value)!r}; `jacrec doctor` gives the reason")
    return device


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and metadata atomically (`jacrec.util.files.write_bytes`)."""
    own = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, save(own, metadata=dict(metadata)))


def read_tensors(path: Path, remedy: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is truncated or otherwise damaged. The error ends with the `remedy`.
    """
    try:
        with safe_open(path, "pt") as file:
            # safe_open is not a mapping
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:  # types that torch does not know
        raise ValueError(f"{path}: expected a whole safetensors file, got a damaged one ({error}); {remedy}") from None


def with_checksum(tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> dict[str, Any]:
    """`content` with a checksum of itself and the tensors."""
    return {**content, CHECKSUM: checksum(tensors, content)}


def without_checksum(tensors: Mapping[str, Tensor], content: Mapping[str, Any], path: Path, remedy: str) -> dict[str, Any]:
    """`content` as it was before `with_checksum`; files of earlier versions have no checksum and are accepted.

    Raises:
        ValueError: tensors or content differ from those that were written. The error ends with the `remedy`.
    """
    own = {name: value for name, value in content.items() if name != CHECKSUM}
    expected, got = content.get(CHECKSUM), checksum(tensors, own)
    if expected not in (None, got):
        raise ValueError(f"{path}: expected content with checksum {expected}, got {got}: the file is damaged; {remedy}")
    return own


def checksum(tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> str:
    """CRC-32 of content (as JSON) and of the tensors' names, types, shapes and bytes, as hexadecimal digits."""
    value = zlib.crc32(json.dumps(content, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        value = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), value)
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        value = zlib.crc32(raw.numpy().data, value)
    return f"{value:08x}"
