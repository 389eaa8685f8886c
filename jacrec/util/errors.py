"""Errors in one form: what, expected, got, what to do."""

import math
import operator
from collections.abc import Iterable

from torch import Tensor


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
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
        raise ValueError(f"{name}: expected a positive number, got {value!r}")
