"""Policy tilting: a world model that is best where its policy will go.

In the objective every transition's loss is multiplied by w_i = exp(η l_i) / mean_j exp(η l_j), l_i = log π(a_i | s_i), the mean
over the whole training set. A deterministic policy has no density; a Gaussian around its action stands in for it,
l_i = log N(a_i; π(s_i), σ² I), whose constants cancel.

The weights are how often a transition is drawn, which is the same objective: a batch of weighted rows would be as noisy as one
of the few rows that matter in it. With η = 1 and σ = 0.2 on a Hopper medium-replay set the weights leave 8 % of the rows; 4000
updates of MeanFlow then leave 2.4 times the error, where it counts, if the rows are weighted instead.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from jacrec.data.transitions import Transitions
from jacrec.models.io import load_module
from jacrec.training.config import DynamicsConfig

CHUNK = 65536
"""rows that the policy sees at a time"""


@torch.no_grad()
def tilt_weights(policy: nn.Module, data: Transitions, config: DynamicsConfig) -> Tensor:
    """The weights of a data set's transitions, (n,) float64 on the CPU, with mean 1 and no larger than `config.tilt_clip`."""
    log_density = np.concatenate(
        [
            _log_density(policy, data.state[i : i + CHUNK], data.action[i : i + CHUNK], config.tilt_std)
            for i in range(0, len(data), CHUNK)
        ]
    )
    return torch.from_numpy(clipped_weights(log_density, config.tilt, config.tilt_clip))


def _log_density(policy: nn.Module, state: np.ndarray, action: np.ndarray, std: float) -> np.ndarray:
    like = next(policy.parameters())
    chosen = policy(torch.as_tensor(state).to(like)).double().cpu().numpy()
    return -0.5 * np.square((action - chosen) / std).sum(-1)


def clipped_weights(log_density: np.ndarray, tilt: float, clip: float) -> np.ndarray:
    """exp(η l) of log_density l (n,), with mean 1; what is above `clip` is levelled so that it is `clip` after that too.

    Levelling at e^c leaves the weights clip · exp(min(η l − c, 0)): their mean is 1 for one c, found by bisection, where the
    largest unlevelled weight is too large.
    """
    exponent = tilt * np.asarray(log_density, dtype=np.float64)
    highest = exponent.max()
    plain = np.exp(exponent - highest)
    if plain.mean() * clip >= 1:
        return plain / plain.mean()
    low, high = exponent.min(), highest  # the mean of exp(min(η l − c, 0)) falls from 1 to less than 1 / clip
    for _ in range(100):
        middle = 0.5 * (low + high)
        if np.exp(np.minimum(exponent - middle, 0)).mean() * clip >= 1:
            low = middle
        else:
            high = middle
    weights = np.exp(np.minimum(exponent - low, 0))
    return weights / weights.mean()


def effective_share(weights: Tensor) -> float:
    """(Σ w)² / (n Σ w²), the share of the rows that weights (n,) leave: 1 for equal ones."""
    return (weights.sum().square() / (len(weights) * weights.square().sum())).item()


def load_tilt_policy(folder: Path) -> nn.Module:
    """The trained actor of a run's folder, which a tilted world model needs.

    Raises:
        FileNotFoundError: it is not trained yet.
    """
    path = folder / "actor.safetensors"
    if not path.is_file():
        raise FileNotFoundError(
            f"dynamics.tilt: expected the trained policy at {path}, since the world model is tilted towards it, got none; "
            "train it first or in the same command (--stages rebrac dynamics reward), or set dynamics.tilt to 0"
        )
    return load_module(path)
