"""Offline training of policy, critic, world model and reward model into run folders."""

from jacrec.training.config import DynamicsConfig, ReBRACConfig, RewardConfig, TrainConfig
from jacrec.training.run import Run, load_run, train
from jacrec.training.seeds import train_seeds

__all__ = ["DynamicsConfig", "ReBRACConfig", "RewardConfig", "Run", "TrainConfig", "load_run", "train", "train_seeds"]
