"""The evaluation curve: the policy's returns in its environment, every so many updates of its training."""

import contextlib
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from jacrec.data.transitions import DatasetInfo
from jacrec.evaluation.config import PlayConfig
from jacrec.evaluation.contestant import open_env
from jacrec.evaluation.episodes import PolicyController, play
from jacrec.models.networks import Actor
from jacrec.util.errors import expect_count

CURVE_SEED = 9
"""episode i starts from environment seed 1000 · 9 + i"""


class Unfinished(NamedTuple):
    """A policy under training, for `open_env`."""

    policy: Actor
    info: DatasetInfo
    path: Path


@dataclass(frozen=True)
class PolicyEvaluation:
    """Plays the policy while it is trained: the argument `evaluate` of `jacrec.training.train` and `train_seeds`.

    The returns are only recorded: the last policy is kept, not the best one. The episodes begin from other seeds than those
    of `jacrec eval` and `jacrec tune`, so that a training stopped by this curve is still evaluated on unseen ones.
    """

    every: int
    """updates between evaluations, a multiple of `TrainConfig.log_every`; the last policy is always played"""
    play: PlayConfig = field(default_factory=lambda: PlayConfig(seed=CURVE_SEED))
    """the episodes"""

    def __post_init__(self):
        expect_count("every", self.every, 1)

    def check(self, policy: Actor, info: DatasetInfo, folder: Path) -> None:
        """ValueError if the policy cannot be played in the environment of its data."""
        open_env(Unfinished(policy, info, folder), self.play, threads=1).close()

    def __call__(self, policy: Actor, info: DatasetInfo, folder: Path) -> dict[str, float]:
        """Entries for the line of metrics: mean and standard error of the returns and, with references, of the scores."""
        threads = torch.get_num_threads()
        with contextlib.closing(open_env(Unfinished(policy, info, folder), self.play, threads=threads)) as env:
            log = play(env, PolicyController(policy), self.play.seeds)
        returns, scores = log.returns, info.score(log.returns, log.terminated)
        return {**_summary("eval_return", returns), **({} if scores is None else _summary("eval_score", scores))}


def _summary(name: str, values: np.ndarray | list[float]) -> dict[str, float]:
    error = {f"{name}_se": float(np.std(values, ddof=1) / math.sqrt(len(values)))} if len(values) > 1 else {}
    return {name: float(np.mean(values)), **error}
