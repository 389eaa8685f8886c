"""Comparison of an earlier record with the one that would continue it."""

from collections.abc import Mapping
from typing import Any


def record_differences(old: Mapping[str, Any], new: Mapping[str, Any], *, ignored: tuple[str, ...] = ()) -> list[str]:
    """The settings and networks that differ, each as "part.key: value there, value here".

    Args:
        old: a record with "settings" and "networks".
        new: the same; keys that only `old` has are not compared.
        ignored: keys that may differ.
    """
    return [
        f"{part}.{key}: {old[part].get(key)} there, {value} here"
        for part in ("settings", "networks")
        for key, value in new[part].items()
        if key not in ignored and old[part].get(key) != value
    ]
