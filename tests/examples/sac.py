"""A soft actor-critic of Stable-Baselines3 that has hardly trained."""

from pathlib import Path

import pytest


def save_sac(folder: Path) -> Path:
    """The folder, with sac.zip and replay_buffer.pkl in it; skips the test where the library is missing."""
    sb3 = pytest.importorskip("stable_baselines3", reason="needs stable-baselines3, pip install 'jacrec[sb3]'")
    model = sb3.SAC("MlpPolicy", "Pendulum-v1", policy_kwargs={"net_arch": [16, 16]}, seed=0, learning_starts=440).learn(450)
    model.save(folder / "sac.zip")
    model.save_replay_buffer(folder / "replay_buffer.pkl")
    return folder
