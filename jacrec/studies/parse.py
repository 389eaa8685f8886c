"""Conversion of plain mappings, as read from YAML, to frozen dataclasses."""

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
    """The content as a dict with string keys; None becomes {}. Raises ValueError for anything else."""
    if content is None:
        return {}
    if not isinstance(content, Mapping):
        raise ValueError(f"{where}: expected a mapping of settings, got {content!r}")
    invalid = [key for key in content if not isinstance(key, str)]
    if invalid:
        raise ValueError(f"{where}: expected strings as keys, got {invalid[0]!r}; put it in quotes")
    return dict(content)


def expect_known(content: Iterable[str], known: Iterable[str], where: str) -> None:
    """Raise ValueError unless all names in `content` are known."""
    known = list(known)
    for name in content:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{where}: unknown setting {name!r}{hint}; known settings are {', '.join(known)}")


def build(kind: type, content: Any, where: str) -> Any:
    """Build the dataclass `kind` from a mapping of its fields; nested dataclasses are built from nested mappings.

    Lists become tuples. Strings become floats where a float is expected, since YAML reads 5e-5 (no decimal point) as a string.

    Args:
        where: path of the content, for error messages.

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
    raise ValueError(f"{where}: expected {_type_names(options)}, got {value!r}")


def _type_names(options: Iterable[Any]) -> str:
    names = {bool: "true or false", int: "an integer", float: "a number", str: "a string", type(None): "null"}
    return " or ".join(names.get(o, "a list" if typing.get_origin(o) is tuple else str(o)) for o in options)
