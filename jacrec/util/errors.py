"""Errors in one form: what, expected, got, what to do."""

import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, get_type_hints

import numpy as np
from torch import Tensor

from jacrec.util.content import mismatch

LARGEST_SEED = 2**63 - 1
_ARRAYS = (np.generic, np.ndarray, Tensor)


def plain_number(value: Any) -> Any:
    """The Python number of a numpy scalar, or of an array or tensor without axes; anything else as it is."""
    return value.item() if isinstance(value, _ARRAYS) and value.ndim == 0 else value


def check_fields(config: Any, prefix: str = "") -> None:
    """Make every number in the fields of a frozen dataclass, and in tuples there, a Python number; check the fields' types.

    Args:
        prefix: what precedes a field's name in the error.

    Raises:
        ValueError: a field is not of its type.
    """
    for name, kind in _hints(type(config)).items():
        value = getattr(config, name)
        plain = tuple(map(plain_number, value)) if type(value) is tuple else plain_number(value)
        if plain is not value:
            object.__setattr__(config, name, plain)
        if isinstance(kind, type) and is_dataclass(kind):
            found = None if isinstance(plain, kind) else f"{kind.__name__}(...), got {plain!r}"
        else:
            found = mismatch(plain, kind)
        if found:
            raise ValueError(f"{prefix}{name}: expected {found}")


@cache
def _hints(kind: type) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {f.name: hints[f.name] for f in fields(kind)}


def expect_one_of(name: str, value, allowed: Iterable) -> None:
    """Raise ValueError unless `value` is one of `allowed`."""
    allowed = list(allowed)
    if value not in allowed:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, allowed))}, got {value!r}")


def expect_shape(name: str, value, expected: tuple[int, ...], advice: str = "") -> None:
    """Raise ValueError unless `value` is a torch.Tensor of exactly this shape."""
    if not isinstance(value, Tensor):
        raise ValueError(f"{name}: expected a torch.Tensor of shape {expected}, got {type(value).__name__}{advice}")
    if tuple(value.shape) != tuple(expected):
        raise ValueError(f"{name}: expected shape {tuple(expected)}, got {tuple(value.shape)}{advice}")


def expect_count(name: str, value, lowest: int) -> None:
    """Raise ValueError unless `value` is an integer of at least `lowest` (numpy's integers are integers)."""
    try:
        count = operator.index(value)
    except TypeError:
        count = None
    if count is None or isinstance(value, bool) or count < lowest:
        raise ValueError(f"{name}: expected an integer >= {lowest}, got {value!r}")


def counted(name: str, value: Any, lowest: int = 1) -> int:
    """An integer of at least `lowest` as Python's own; ValueError for anything else."""
    expect_count(name, value, lowest)
    return operator.index(value)


def real(name: str, value: Any) -> float:
    """A finite number as Python's own; ValueError for anything else."""
    plain = plain_number(value)
    if not isinstance(plain, int | float) or isinstance(plain, bool) or not math.isfinite(plain):
        raise ValueError(f"{name}: expected a finite number, got {value!r}")
    return plain


def widths(name: str, value: Any, lowest: int = 1) -> tuple[int, ...]:
    """Widths of layers, or other integers of at least `lowest`, as Python's own; ValueError for anything else."""
    if isinstance(value, str) or not isinstance(value, Sequence | np.ndarray):
        raise ValueError(f"{name}: expected a sequence of integers >= {lowest}, got {value!r}")
    return tuple(counted(f"{name}[{i}]", width, lowest) for i, width in enumerate(value))


def expect_positive(name: str, value) -> None:
    """Raise ValueError unless `value` is a positive finite number."""
    value = plain_number(value)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
        raise ValueError(f"{name}: expected a positive number, got {value!r}")


def expect_seed(name: str, value) -> None:
    """Raise ValueError unless `value` is a seed: an integer from 0 to 2^63 - 1."""
    expect_count(name, value, 0)
    if operator.index(value) > LARGEST_SEED:
        raise ValueError(f"{name}: expected an integer <= {LARGEST_SEED}, got {value!r}")
