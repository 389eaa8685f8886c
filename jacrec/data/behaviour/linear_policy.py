"""Linear behaviour policies and the snapshots stored in behaviour.yaml, with the command that found them."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import yaml

from jacrec.util.errors import expect_one_of

ENVIRONMENTS = {"hopper": "Hopper-v4", "halfcheetah": "HalfCheetah-v4"}
BEHAVIOUR_FILE = Path(__file__).with_name("behaviour.yaml")


@dataclass(frozen=True)
class LinearPolicy:
    """clip(gain s + bias, ±1)."""

    gain: np.ndarray  # (m, d)
    bias: np.ndarray  # (m,)

    def __call__(self, state: np.ndarray) -> np.ndarray:
        """Map states (..., d) to actions (..., m)."""
        return np.clip(state @ self.gain.T + self.bias, -1.0, 1.0)


@dataclass(frozen=True)
class Snapshot:
    """A policy from the course of one search, and its return."""

    iteration: int
    policy: LinearPolicy
    mean_return: float
    """mean undiscounted return over the evaluation episodes, with the search's action noise"""
    std_return: float


@cache
def load_snapshots(env_name: str) -> tuple[Snapshot, ...]:
    """The snapshots shipped with the package, in the order of the search: from nearly random to best.

    Raises:
        ValueError: an environment without linear behaviour policies.
    """
    expect_one_of("env_name", env_name, sorted(ENVIRONMENTS))
    return load_snapshots_file(BEHAVIOUR_FILE, env_name)


@cache
def load_action_noise(env_name: str) -> float:
    """Standard deviation of the Gaussian action noise with which an environment's snapshots were evaluated."""
    expect_one_of("env_name", env_name, sorted(ENVIRONMENTS))
    return float(yaml.safe_load(BEHAVIOUR_FILE.read_text())[env_name]["action_noise"])


def load_snapshots_file(path: Path, env_name: str) -> tuple[Snapshot, ...]:
    """The snapshots of one environment from a file in the format of behaviour.yaml."""
    rows = yaml.safe_load(path.read_text())[env_name]["snapshots"]
    return tuple(
        Snapshot(
            row["iteration"],
            LinearPolicy(np.array(row["gain"], np.float64), np.array(row["bias"], np.float64)),
            row["mean_return"],
            row["std_return"],
        )
        for row in rows
    )


def save_snapshots(path: Path, env_name: str, snapshots: list[Snapshot], action_noise: float, command: str) -> None:
    """Write snapshots as YAML under the environment's name, with their action noise and the command that found them."""
    rows = [
        {
            "iteration": s.iteration,
            "mean_return": round(s.mean_return, 1),
            "std_return": round(s.std_return, 1),
            "gain": s.policy.gain.tolist(),
            "bias": s.policy.bias.tolist(),
        }
        for s in snapshots
    ]
    entry = {
        env_name: {
            "env_id": ENVIRONMENTS[env_name],
            "command": command,
            "action_noise": action_noise,
            "snapshots": rows,
        }
    }
    path.write_text(yaml.safe_dump(entry, sort_keys=False, default_flow_style=None, width=120))
