"""The content of files, as read from JSON or YAML, against type hints."""

import sys
import types
import typing
from collections.abc import Iterable
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any


def expect_content(content: Any, kind: Any, path: Path, remedy: str) -> None:
    """Raise ValueError, naming the file and the place in it, unless `content` is of type `kind` (see `mismatch`)."""
    found = mismatch(content, kind)
    if found:
        raise ValueError(f"{path}: expected {found}; {remedy}")


def mismatch(value: Any, kind: Any, where: str = "") -> str | None:
    """What is wrong with a value, as "a number at data.ref_min, got 'x'"; None if it is of type `kind`.

    Args:
        kind: int, float (any number), str, bool, None, Any, a union or literals of these, list, tuple (a list in files),
            dict (with strings as keys), a TypedDict (a mapping with at least its required entries), or a dataclass (a mapping
            of any of its fields).
        where: name of the value, for the answer.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if typing.is_typeddict(kind) or is_dataclass(kind):
        return _mapping(value, kind, where)
    if origin in (typing.Union, types.UnionType):
        good = any(mismatch(value, option) is None for option in arguments)
    elif origin in (list, tuple):
        good = isinstance(value, list | tuple)
        if good:
            return _first(mismatch(x, arguments[0], f"{where}[{i}]") for i, x in enumerate(value))
    elif dict in (origin, kind):
        good = isinstance(value, dict) and all(isinstance(name, str) for name in value)
        if good and arguments:
            return _first(mismatch(x, arguments[1], _at(where, name)) for name, x in value.items())
    elif origin is typing.Literal:
        good = value in arguments
    elif kind is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        good = number and (isinstance(value, float) or abs(value) <= sys.float_info.max)
    else:
        good = kind is Any or (value is None and kind in (None, type(None))) or type(value) is kind
    return None if good else _told(value, kind, where)


def _mapping(value: Any, kind: Any, where: str) -> str | None:
    if not isinstance(value, dict):
        return _told(value, dict, where)
    missing = sorted(name for name in getattr(kind, "__required_keys__", ()) if name not in value)
    if missing:
        return f"an entry {_at(where, missing[0])}, got none"
    hints = typing.get_type_hints(kind)
    return _first(mismatch(value[name], hint, _at(where, name)) for name, hint in hints.items() if name in value)


def _first(found: Iterable[str | None]) -> str | None:
    return next((x for x in found if x), None)


def _at(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _told(value: Any, kind: Any, where: str) -> str:
    shown = repr(value)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    return f"{_name(kind)}{f' at {where}' if where else ''}, got {shown}"


def _name(kind: Any) -> str:
    names = {int: "an integer", float: "a number", str: "text", bool: "true or false", type(None): "null", dict: "a mapping"}
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_name, arguments))
    if origin is typing.Literal:
        return f"one of {', '.join(map(repr, arguments))}"
    if origin in (list, tuple):
        return "a list"
    return names.get(origin or kind, "a mapping")
