"""Offline training of policy, critic, world model and reward model into run folders."""

from jacrec.training.config import DynamicsConfig, ReBRACConfig, RewardConfig, TrainConfig
from jacrec.training.run import Run, load_run, train
from jacrec.training.seeds import train_seeds
from jacrec.training.world import load_world, train_world

__all__ = [
    "DynamicsConfig",
    "ReBRACConfig",
    "RewardConfig",
    "Run",
    "TrainConfig",
    "load_run",
    "load_world",
    "train",
    "train_seeds",
    "train_world",
]
