"""One refresh: a model is trained further on old and new transitions and tested on the newest ones."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from jacrec.data.transitions import Transitions
from jacrec.online.config import RefreshConfig
from jacrec.online.score import stage_score
from jacrec.training.config import TrainConfig
from jacrec.training.stages.dynamics import DynamicsStage
from jacrec.training.stages.reward import RewardStage

JUDGED_BY = {"dynamics": "energy_score", "reward": "reward_rmse"}
"""the error, as named by `held_out_errors`, that decides on acceptance"""
SHOWN = {"dynamics": "one_step_rmse", "reward": "reward_rmse"}
"""the error that training reports"""
LEAST_ROWS = 20
"""minimum number of transitions for training and for testing"""
TABLE_ROWS = 200_000
"""maximum number of training rows of a refresh"""
TEST_ROWS = 2000
"""maximum number of test transitions"""
TEST_SAMPLES = 8
"""minimum number of samples of the world model per test transition (at least two are needed)"""


@dataclass(frozen=True)
class Verdict:
    """Outcome of one refresh of one model."""

    part: str
    judged_by: str
    """name of the deciding error, from `JUDGED_BY`"""
    before: float
    """error of the current model on the held-out transitions"""
    after: float
    """error of the refreshed model on the same transitions with the same noise"""
    accepted: bool
    rmse: tuple[float, float]
    """root mean square error reported by training, before and after; it decides for the reward model only"""
    offline: tuple[float, float] | None = None
    """deciding error on held-out offline transitions, before and after, as a measure of forgetting"""

    def __str__(self) -> str:
        what = "accepted" if self.accepted else "rejected"
        return f"{self.part} {what}: held-out {self.judged_by} {self.before:.4g} before, {self.after:.4g} after"


def refresh_part(
    part: str,
    present: nn.Module,
    replay: Transitions,
    config: TrainConfig,
    online: RefreshConfig,
    seed: int,
    *,
    offline: tuple[Transitions, Transitions] | None = None,
    alive: Callable[[], None] = lambda: None,
) -> tuple[nn.Module, Verdict]:
    """Train `part` ("dynamics" or "reward") further; the refreshed model, or `present` if it is rejected, and the verdict.

    The model's scales are kept. Non-finite transitions are skipped. World models are judged by a proper score of their
    samples, since the squared error would favour models without spread.

    Args:
        present: the current model.
        replay: transitions in temporal order; the newest fraction `online.held_out` is used for testing.
        config: settings of the run that `present` was trained in.
        seed: of the batches and the test noise.
        offline: the run's training and held-out transitions; None: train on the replay buffer only.
        alive: called at every gradient step.

    Raises:
        ValueError: fewer than 2 · LEAST_ROWS finite transitions in the replay buffer, or a multi-step world model, which
            cannot be trained on single transitions.
    """
    replay = replay.rows(finite(replay))
    if len(replay) < 2 * LEAST_ROWS:
        raise ValueError(
            f"refresh: expected at least {2 * LEAST_ROWS} finite transitions, got {len(replay)}; increase start_after"
        )
    cut = len(replay) - max(LEAST_ROWS, round(online.held_out * len(replay)))
    learned, test = replay.rows(np.arange(cut)), replay.rows(np.arange(cut, len(replay)))
    table = mixture(learned, None if offline is None else offline[0], online, np.random.default_rng(seed))
    settings = dict(updates=online.updates, batch_size=online.batch_size, lr=online.lr, lr_schedule="cosine")
    stage = _stage(part, present, table, test, _with(config, part, **settings), seed)
    for update in range(online.updates):
        stage.step(update)
        alive()
    candidate = copy.deepcopy(present)
    candidate.load_state_dict(stage.modules()[part].state_dict())

    def errors(data: Transitions) -> tuple[dict[str, float], dict[str, float]]:
        return held_out_errors(part, present, data, config, seed), held_out_errors(part, candidate, data, config, seed)

    def both(found: tuple[dict[str, float], dict[str, float]], name: str) -> tuple[float, float]:
        return found[0][name], found[1][name]

    found, judge = errors(test), JUDGED_BY[part]
    before, after = both(found, judge)
    better = after < before - online.min_gain * abs(before)  # an estimated score can be negative
    accepted = math.isfinite(after) and (better or not math.isfinite(before))
    forgotten = None if offline is None else both(errors(offline[1]), judge)
    verdict = Verdict(part, judge, before, after, accepted, both(found, SHOWN[part]), forgotten)
    return candidate if accepted else present, verdict


def held_out_errors(part: str, model: nn.Module, data: Transitions, config: TrainConfig, seed: int) -> dict[str, float]:
    """The errors that training reports and, for a world model, its energy score, by name; the seed determines the noise.

    Uses at most `TEST_ROWS` transitions, and at least `TEST_SAMPLES` samples for each.
    """
    few = data.rows(np.arange(min(len(data), 2)))
    tested = _with(config, part, updates=0, eval_transitions=TEST_ROWS)
    if part == "dynamics":
        tested = _with(tested, part, eval_samples=max(TEST_SAMPLES, config.dynamics.eval_samples))
    stage = _stage(part, model, few, data, tested, seed)
    return stage.evaluate() | ({"energy_score": stage_score(stage)} if isinstance(stage, DynamicsStage) else {})


def mixture(learned: Transitions, offline: Transitions | None, online: RefreshConfig, rng: np.random.Generator) -> Transitions:
    """Training rows, a fraction `online.share` from the replay buffer; rows of a source are used equally often, up to one."""
    rows = min(online.updates * online.batch_size, TABLE_ROWS)
    if offline is None or online.share == 1.0:
        return learned.rows(balanced_sample(len(learned), min(rows, len(learned)), rng))
    ours = max(1, round(online.share * rows))
    a = learned.rows(balanced_sample(len(learned), ours, rng))
    b = offline.rows(balanced_sample(len(offline), max(1, rows - ours), rng))
    arrays = {k: np.concatenate([v, getattr(b, k)]) for k, v in vars(a).items() if isinstance(v, np.ndarray)}
    return replace(a, **arrays)


def balanced_sample(n: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` of the numbers 0 … n − 1 in random order; their frequencies differ by at most one."""
    whole, rest = divmod(count, n)
    return rng.permutation(np.concatenate([np.tile(np.arange(n), whole), rng.permutation(n)[:rest]]))


def finite(data: Transitions) -> np.ndarray:
    """Which rows are finite, (n,) bool."""
    return (
        np.isfinite(data.state).all(1)
        & np.isfinite(data.action).all(1)
        & np.isfinite(data.next_state).all(1)
        & np.isfinite(data.reward)
    )


def _with(config: TrainConfig, part: str, **changes) -> TrainConfig:
    return replace(config, **{part: replace(getattr(config, part), **changes)})


def _stage(
    part: str, start: nn.Module, data: Transitions, test: Transitions, config: TrainConfig, seed: int
) -> DynamicsStage | RewardStage:
    if part == "dynamics":
        # the controller's transitions already follow its policy
        return DynamicsStage(data, test, replace(config.dynamics, tilt=0.0), seed, start=start)
    return RewardStage(data, test, config.reward, seed, config.rebrac.reward_scale, start=start)
