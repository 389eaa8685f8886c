"""Errors in one form: what, expected, got, what to do."""

import math
import operator
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

import numpy as np
from torch import Tensor

LARGEST_SEED = 2**63 - 1


def plain_number(value: Any) -> Any:
    """The Python number of a numpy scalar, or of an array or tensor without axes; anything else as it is."""
    return value.item() if isinstance(value, np.generic | np.ndarray | Tensor) and value.ndim == 0 else value


def plain_numbers(config: Any) -> None:
    """Make every number in the fields of a frozen dataclass, and in tuples there, a Python number."""
    for name in (f.name for f in fields(config)):
        value = getattr(config, name)
        plain = tuple(map(plain_number, value)) if type(value) is tuple else plain_number(value)
        if plain is not value:
            object.__setattr__(config, name, plain)


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
