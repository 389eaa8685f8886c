"""A controller as one safetensors file: policy, world, settings, and where it stands in its episode."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

import torch
from torch import Tensor

from jacrec.control.config import MPCConfig
from jacrec.control.controller import MPC
from jacrec.models.io import CLASSES, described, rebuilt
from jacrec.models.networks import has_manual_derivatives
from jacrec.models.world import Anchor, Dynamics, World, architecture_of
from jacrec.util.content import expect_content
from jacrec.util.files import user_path
from jacrec.util.tensors import read_tensors, usable_device, with_checksum, without_checksum, write_tensors

REMEDY = "copy the file again, or write it again with jacrec.save"


class Described(TypedDict):
    """What the file says of a network."""

    config: dict[str, Any]


class Header(TypedDict):
    """What the file says of a controller."""

    controller: int
    """version of the layout"""
    parts: dict[str, Described]
    discount: float
    value_scale: float | None
    anchor_weight: float | None
    anchor_terminal: NotRequired[bool]
    """absent: False"""
    settings: dict[str, Any]
    batch: int | None
    device: str
    frozen: list[str]
    """ψ's parameters without requires_grad"""


def save(mpc: MPC, path: str | Path) -> Path:
    """Write a controller to one file (.safetensors), atomically and with a checksum: an interrupted save leaves the old file.

    The file holds policy, world and settings, ψ as it is now, and the state of the noise: the loaded controller decides next as this
    one would, bit for bit on the same kind of device. What a deadline has learned of this machine's speed is not in it.

    Raises:
        ValueError: no controller, or policy, world or update rule are not jacrec's own and unmodified.
    """
    if not isinstance(mpc, MPC):
        raise ValueError(f"save: expected a controller MPC(policy, world, config), got {type(mpc).__name__}")
    if mpc.update is not None or type(mpc.config) is not MPCConfig:
        rule = "update=None" if mpc.update is None else f"update={type(mpc.update).__name__}"
        raise ValueError(
            f"save: expected a controller that takes the plain step (MPCConfig, update=None), got {type(mpc.config).__name__}, "
            f"{rule}; save one without the rule, and make the controller anew with MPC(loaded.base, loaded.world, loaded.config, update=…)"
        )
    policy = architecture_of(mpc.policy)
    world = replace(mpc.world, anchor=None) if mpc.config.anchored else mpc.world  # its own is made from the settings
    parts: dict[str, Any] = {"policy": policy, "dynamics": world.dynamics, "reward": world.reward, "critic": world.critic}
    if world.anchor is not None:
        parts["anchor"] = world.anchor.policy
    for name, part in parts.items():
        if type(part).__name__ not in CLASSES or not has_manual_derivatives(part):
            kinds = ", ".join(CLASSES)
            raise ValueError(
                f"save: expected a {name} of jacrec's own classes, unmodified ({kinds}), got {type(part).__name__}; save "
                "mpc.state_dict() and your modules' with torch.save, and make the controller anew"
            )
    tensors = {f"state.{name}": value for name, value in mpc.state_dict().items()}
    for name, part in parts.items():
        if name != "policy":
            tensors |= {f"{name}.{key}": value for key, value in part.state_dict().items()}
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    header: Header = {
        "controller": 1,
        "parts": cast("dict[str, Described]", {name: described(part) for name, part in parts.items()}),
        "discount": world.discount,
        "value_scale": world.value_scale,
        "anchor_weight": None if world.anchor is None else world.anchor.weight,
        "anchor_terminal": world.anchor is not None and world.anchor.terminal,
        "settings": asdict(mpc.config),
        "batch": mpc.batch,
        "device": mpc.device.type,
        "frozen": [name for name, p in mpc.policy.named_parameters() if not p.requires_grad],
    }
    path = user_path(path)
    write_tensors(path, tensors, {"jacrec": json.dumps(with_checksum(tensors, header), sort_keys=True)})
    return path


def load(path: str | Path, *, device: str | torch.device = "cpu") -> MPC:
    """The controller that `save` wrote.

    Args:
        device: where it decides. On another kind of device than it was saved on, its noise begins anew from `MPCConfig.seed`.

    Raises:
        FileNotFoundError: there is no file.
        ValueError: it is damaged, as its checksum shows, or not a controller's; or torch cannot use the device.
    """
    path, device = user_path(path), usable_device("device", device)
    if not path.is_file():
        raise FileNotFoundError(f"no controller at {path}; write one with jacrec.save(mpc, path)")
    tensors, metadata = read_tensors(path, REMEDY)
    header = _header(path, tensors, metadata)
    own = header["parts"]
    needed = {"policy", "dynamics", "reward", "critic"} | ({"anchor"} if header["anchor_weight"] is not None else set())
    unknown = [part.get("class") for part in own.values() if part.get("class") not in CLASSES]
    if set(own) != needed or unknown:
        raise ValueError(
            f"{path}: expected the parts {sorted(needed)} of jacrec's classes, got {sorted(own)} {unknown}; {REMEDY}"
        )
    state = _below(tensors, "state.")
    first = {key.removeprefix("pretrained."): value for key, value in state.items() if key.startswith("pretrained.")}
    first = first if header["batch"] is None else {key: value[0] for key, value in first.items()}
    parts = {
        name: rebuilt(cast("dict[str, Any]", own[name]), _below(tensors, f"{name}."), path, REMEDY)
        for name in needed - {"policy"}
    }
    parts["policy"] = rebuilt(cast("dict[str, Any]", own["policy"]), first, path, REMEDY)
    for part in parts.values():
        part.eval().to(device)
    for name, p in parts["policy"].named_parameters():
        p.requires_grad_(name not in header["frozen"])
    weight = header["anchor_weight"]
    try:
        terminal = header.get("anchor_terminal", False)
        anchor = None if weight is None else Anchor(parts["anchor"].requires_grad_(False), weight, terminal)
        dynamics = cast(Dynamics, parts["dynamics"])
        world = World(dynamics, parts["reward"], parts["critic"], header["discount"], header["value_scale"], anchor)
        mpc = MPC(parts["policy"], world, MPCConfig(**header["settings"]), batch=header["batch"])
        if mpc.device.type != header["device"]:
            state["generator"] = mpc.generator.get_state()
        mpc.load_state_dict(state)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path}: expected a controller, got parts or settings that do not fit ({error}); {REMEDY}") from error
    return mpc


def _header(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> Header:
    try:
        header = json.loads(metadata["jacrec"])
    except (KeyError, json.JSONDecodeError, RecursionError):
        header = None
    if not isinstance(header, dict) or header.get("controller") != 1:
        what = header.get("class", "another version's") if isinstance(header, dict) else "something else"
        raise ValueError(f"{path}: expected a controller that jacrec.save wrote, got {what}; {REMEDY}")
    header = without_checksum(tensors, header, path, REMEDY)
    expect_content(header, Header, path, REMEDY)
    expect_content(header["settings"], MPCConfig, path, REMEDY)
    return cast(Header, header)


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
