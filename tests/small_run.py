"""A run with barely trained networks."""

from pathlib import Path

import pytest

from jacrec.data.behaviour.make import make_dataset
from jacrec.training.config import DynamicsConfig, ReBRACConfig, RewardConfig, TrainConfig
from jacrec.training.run import train


def hardly_trained(root: Path) -> Path:
    """The folder of a run under `root`, trained on a few hundred random Hopper steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(root / "data"))
        made = make_dataset("hopper", "random", steps=400)
        config = TrainConfig(
            data=made.dataset_id,
            rebrac=ReBRACConfig(hidden=(16, 16), updates=4, batch_size=32),
            dynamics=DynamicsConfig(hidden=(16, 16), steps=2, updates=4, batch_size=32, eval_transitions=20),
            reward=RewardConfig(hidden=(16, 16), updates=4, batch_size=32, eval_transitions=20),
            log_every=2,
        )
        return train(config, root / "run", quiet=True)
