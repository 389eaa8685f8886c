"""Reference returns that define scores of 0 and 100, and the environment each belongs to."""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml


@dataclass(frozen=True)
class Reference:
    """One row of references.yaml."""

    name: str
    env_id: str | None
    """evaluation environment; None if gymnasium has no equivalent"""
    ref_min: float
    ref_max: float


@cache
def references() -> dict[str, Reference]:
    """All references by name."""
    rows = yaml.safe_load(Path(__file__).with_name("references.yaml").read_text())
    return {name: Reference(name, **row) for name, row in rows.items()}


def reference_by_name(name: str) -> Reference | None:
    """The reference that is a prefix of `name`: ``hopper_medium_replay-v2`` gives hopper."""
    plain = re.sub(r"[_\s]", "-", name.lower())
    matches = [row for key, row in references().items() if plain == key or plain.startswith(f"{key}-")]
    return max(matches, key=lambda row: len(row.name), default=None)


def reference_by_env(env_id: str) -> Reference | None:
    """The reference of an environment in any version: ``Hopper-v5`` gives hopper."""
    stem = env_id.rpartition("-v")[0]
    matches = (row for row in references().values() if row.env_id and row.env_id.rpartition("-v")[0] == stem)
    return next(matches, None)
