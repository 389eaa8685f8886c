"""One refresh: a model goes on from where it is, on old and new transitions, and is tested on the newest ones."""

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
"""the error that decides; `held_out_errors` reports it"""
SHOWN = {"dynamics": "one_step_rmse", "reward": "reward_rmse"}
"""the error that the training reports too"""
LEAST_ROWS = 20
"""transitions below which there is nothing to learn from or to test on"""
TABLE_ROWS = 200_000
"""rows of a refresh's table at most"""
TEST_ROWS = 2000
"""transitions of a test at most"""
TEST_SAMPLES = 8
"""samples of the world model for each of them at least; two would do"""


@dataclass(frozen=True)
class Verdict:
    """What became of one part in one refresh."""

    part: str
    judged_by: str
    """which error decided: that of `JUDGED_BY`"""
    before: float
    """the present model's error on the held-out transitions, which neither has seen"""
    after: float
    """the refreshed model's, on the same transitions with the same noise"""
    accepted: bool
    rmse: tuple[float, float]
    """before and after, the root mean square error that the part's training reports; it decides about the reward model alone"""
    offline: tuple[float, float] | None = None
    """the deciding error before and after on held-out offline transitions, where there are any: what was forgotten"""

    def __str__(self) -> str:
        what = "taken" if self.accepted else "refused"
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
    """Train `part` ("dynamics" or "reward") further; the model to use from now on, which is `present` where it is refused.

    Its scales stay: with others, what the network's numbers mean would change. Transitions that are not finite are left out.
    A dynamics is judged by a proper score of its samples: by their squared error, one whose spread has collapsed would win.

    Args:
        replay: in the order they were taken; the newest `online.held_out` of them are tested on.
        config: of the run that `present` was trained in.
        offline: the run's training and held-out transitions; None: the replay alone.
        alive: called at every gradient step.

    Raises:
        ValueError: fewer than 2 · LEAST_ROWS finite transitions in the replay; a multi-step world model, whose segments a table
            of single transitions does not have.
    """
    replay = replay.rows(finite(replay))
    if len(replay) < 2 * LEAST_ROWS:
        raise ValueError(
            f"refresh: expected at least {2 * LEAST_ROWS} finite transitions, got {len(replay)}; "
            "let the controller run longer (start_after)"
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
    better = after < before - online.min_gain * abs(before)  # a score estimated from samples may come out below zero
    accepted = math.isfinite(after) and (better or not math.isfinite(before))
    forgotten = None if offline is None else both(errors(offline[1]), judge)
    verdict = Verdict(part, judge, before, after, accepted, both(found, SHOWN[part]), forgotten)
    return candidate if accepted else present, verdict


def held_out_errors(part: str, model: nn.Module, data: Transitions, config: TrainConfig, seed: int) -> dict[str, float]:
    """What the part's training reports and, of a dynamics, its energy score, by name; same seed, same noise.

    On at most `TEST_ROWS` of the transitions, with `TEST_SAMPLES` samples each or as many more as the training takes.
    """
    few = data.rows(np.arange(min(len(data), 2)))
    tested = _with(config, part, updates=0, eval_transitions=TEST_ROWS)
    if part == "dynamics":
        tested = _with(tested, part, eval_samples=max(TEST_SAMPLES, config.dynamics.eval_samples))
    stage = _stage(part, model, few, data, tested, seed)
    return stage.evaluate() | ({"energy_score": stage_score(stage)} if isinstance(stage, DynamicsStage) else {})


def mixture(learned: Transitions, offline: Transitions | None, online: RefreshConfig, rng: np.random.Generator) -> Transitions:
    """A table of rows, `online.share` of them the replay's; every row of a source equally often, give or take one."""
    rows = min(online.updates * online.batch_size, TABLE_ROWS)
    if offline is None or online.share == 1.0:
        return learned.rows(evenly(len(learned), min(rows, len(learned)), rng))
    ours = max(1, round(online.share * rows))
    a, b = learned.rows(evenly(len(learned), ours, rng)), offline.rows(evenly(len(offline), max(1, rows - ours), rng))
    arrays = {k: np.concatenate([v, getattr(b, k)]) for k, v in vars(a).items() if isinstance(v, np.ndarray)}
    return replace(a, **arrays)


def evenly(n: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` of the numbers 0 … n − 1, each as often as every other, give or take one; in random order."""
    whole, rest = divmod(count, n)
    return rng.permutation(np.concatenate([np.tile(np.arange(n), whole), rng.permutation(n)[:rest]]))


def finite(data: Transitions) -> np.ndarray:
    """(n,) bool: the rows all of whose numbers are finite."""
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
        # a controller's own transitions are where its policy goes already
        return DynamicsStage(data, test, replace(config.dynamics, tilt=0.0), seed, start=start)
    return RewardStage(data, test, config.reward, seed, config.rebrac.reward_scale, start=start)
