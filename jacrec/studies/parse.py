"""From plain mappings to frozen dataclasses, with errors that name the place and the known settings.

build(kind, content, where) -> kind          build_mpc(content, where) -> MPCConfig
"""

import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from typing import Any

from jacrec.control.config import MPCConfig
from jacrec.experimental.config import ExperimentalMPCConfig, current_settings
from jacrec.models.dynamics.flow import without_solver
from jacrec.models.dynamics.sampler import Sampler
from jacrec.training.config import DynamicsConfig


def expect_mapping(content: Any, where: str) -> dict[str, Any]:
    """A mapping with names as keys; nothing at all is an empty one."""
    if content is None:
        return {}
    if not isinstance(content, Mapping):
        raise ValueError(f"{where}: expected a mapping of settings, got {content!r}")
    odd = [key for key in content if not isinstance(key, str)]
    if odd:
        raise ValueError(f"{where}: expected names as keys, got {odd[0]!r}; write it in quotes")
    return dict(content)


def expect_known(content: Iterable[str], known: Iterable[str], where: str) -> None:
    """Raise ValueError unless every name in `content` is a known one."""
    known = list(known)
    for name in content:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{where}: unknown setting {name!r}{hint} Known are {', '.join(known)}")


def build(kind: type, content: Any, where: str) -> Any:
    """The dataclass `kind` of a mapping of its fields, dataclasses among them from mappings of theirs.

    Lists become tuples. Numbers that YAML reads as text (5e-5 has no point) become numbers where the field is one.

    Raises:
        ValueError: an unknown name, or a value of the wrong type.
    """
    content = expect_mapping(content, where)
    if kind in (DynamicsConfig, Sampler):
        content = without_solver(content, where)
    expect_known(content, [f.name for f in fields(kind)], where)
    hints = typing.get_type_hints(kind)
    values = {name: _value(hints[name], value, f"{where}.{name}") for name, value in content.items()}
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def build_mpc(content: Any, where: str) -> MPCConfig:
    """The settings of `MPC` in a mapping, with those of an experimental update rule in its group `experimental`.

    Raises:
        ValueError: as `build`; also a setting of an earlier version, with where it went.
    """
    content = current_settings(expect_mapping(content, where), where)
    return build(ExperimentalMPCConfig, content, where).simplified()


def _value(hint: Any, value: Any, where: str) -> Any:
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if value is None and type(None) in options:
        return None
    for option in options:
        if is_dataclass(option) and isinstance(option, type):
            return build(option, value, where)
        if typing.get_origin(option) is tuple and isinstance(value, list | tuple):
            (item, *_) = typing.get_args(option)
            return tuple(_value(item, x, f"{where}[{i}]") for i, x in enumerate(value))
        if option is float and isinstance(value, int | float | str) and not isinstance(value, bool):
            try:
                return float(value)
            except ValueError:
                continue
        if option in (int, str, bool) and type(value) is option:
            return value
    raise ValueError(f"{where}: expected {_named(options)}, got {value!r}")


def _named(options: Iterable[Any]) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", type(None): "null"}
    return " or ".join(names.get(o, "a list" if typing.get_origin(o) is tuple else str(o)) for o in options)
