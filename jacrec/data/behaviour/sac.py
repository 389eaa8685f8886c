"""Stochastic policies from the course of soft actor-critic trainings, stored with the package in float16.

`jacrec.data.behaviour.train_sac` trains and packs them. The shipped ones come from another implementation of the same recipe, whose
updates were compared with autograd.

Each file of `snapshots/` holds one training: `W1 b1 W2 b2 W_mean b_mean W_log_std b_log_std` with a leading axis over the
snapshots, weights as (in, out), and for every snapshot its environment steps, and mean and standard deviation of its return
over ten episodes of the stochastic policy.
"""

import io
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from jacrec.util.errors import expect_one_of
from jacrec.util.files import write_bytes

ENVIRONMENTS = {"hopper": "Hopper-v4", "halfcheetah": "HalfCheetah-v4", "walker2d": "Walker2d-v4"}
SNAPSHOTS = Path(__file__).with_name("snapshots")
LOG_STD = (-20.0, 2.0)
WEIGHTS = ("W1", "b1", "W2", "b2", "W_mean", "b_mean", "W_log_std", "b_log_std")


@dataclass(frozen=True)
class SquashedGaussian:
    """a = tanh(mean(s) + std(s) n), n standard normal: two ReLU layers.

    Computed in float64 and rounded to float32, so that an action does not depend on how many rows share a matrix product, nor on
    the processor (but for ties in the rounding, about one action in 10⁸).
    """

    weights: dict[str, np.ndarray]

    def sample(self, state: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Map states (n, d) and noise (n, m) to actions (n, m)."""
        w, h = self.weights, state
        for i in ("1", "2"):
            h = np.maximum(h @ w["W" + i] + w["b" + i], 0)
        std = np.exp(np.clip(h @ w["W_log_std"] + w["b_log_std"], *LOG_STD))
        return np.tanh(h @ w["W_mean"] + w["b_mean"] + std * noise).astype(np.float32)


@dataclass(frozen=True)
class SACSnapshot:
    """A policy from the course of one training, and its return."""

    env_steps: int
    """steps of training behind it"""
    policy: SquashedGaussian
    mean_return: float
    std_return: float


@cache
def load_sac_snapshots(env_name: str) -> tuple[SACSnapshot, ...]:
    """The snapshots shipped with the package, in the order of the training.

    Raises:
        ValueError: an environment without a training.
    """
    expect_one_of("env_name", env_name, sorted(ENVIRONMENTS))
    with np.load(SNAPSHOTS / f"{env_name}.npz") as file:
        stacks = {name: file[name].astype(np.float64) for name in WEIGHTS}
        rows = zip(file["env_steps"].tolist(), file["mean_return"].tolist(), file["std_return"].tolist(), strict=True)
    return tuple(
        SACSnapshot(steps, SquashedGaussian({name: x[i] for name, x in stacks.items()}), mean, std)
        for i, (steps, mean, std) in enumerate(rows)
    )


def pack_snapshots(files: list[Path], out: Path) -> None:
    """Stack files of single snapshots, in the order of their steps, into one file of `snapshots/`."""
    loaded = [dict(np.load(path)) for path in files]
    loaded.sort(key=lambda x: int(x["env_steps"]))
    stacks = {name: np.stack([x[name] for x in loaded]).astype(np.float16) for name in WEIGHTS}
    returns = np.array([x["stochastic_mean_std"] for x in loaded], np.float64)
    steps = np.array([int(x["env_steps"]) for x in loaded])
    file = io.BytesIO()
    arrays: dict[str, Any] = stacks | {"env_steps": steps}
    arrays |= {"mean_return": returns[:, 0].round(1), "std_return": returns[:, 1].round(1)}
    np.savez_compressed(file, **arrays)
    write_bytes(out, file.getvalue())
