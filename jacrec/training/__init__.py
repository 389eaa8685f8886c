"""Offline training: ReBRAC, the world model, the reward model, and the run folders they fill."""

from jacrec.training.config import DynamicsConfig, ReBRACConfig, RewardConfig, TrainConfig
from jacrec.training.run import Run, load_run, train
from jacrec.training.seeds import train_seeds

__all__ = ["DynamicsConfig", "ReBRACConfig", "RewardConfig", "Run", "TrainConfig", "load_run", "train", "train_seeds"]
