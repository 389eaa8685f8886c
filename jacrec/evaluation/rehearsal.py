"""A dress rehearsal: candidates play whole episodes in the world model, and only one that gains there may act.

    rehearse(policy, world, starts, candidates, config, *, ended=None) -> Rehearsal
    rehearse_run(run, candidates, config, ...) -> Rehearsal      starts and termination of the run's environment

The objective Ĵ of a decision looks H steps ahead and then trusts Q_φ, which may prefer actions that lead to a fall long
after. In imagined episodes of hundreds of steps the controller meets the states that its own decisions lead to, and the
fall happens. No step is taken in the real environment: settings are chosen, or thinking is declined, from offline data
alone. All candidates imagine under the same noise from the same starts, so that they are compared in pairs.
"""

import contextlib
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from jacrec.control.controller import MPC, MPCConfig
from jacrec.engine.rollout import noise_like
from jacrec.envs.termination import Termination, termination
from jacrec.evaluation.config import PlayConfig
from jacrec.evaluation.contestant import open_env
from jacrec.evaluation.episodes import Controller
from jacrec.models.world import World
from jacrec.training.run import Run
from jacrec.util.errors import expect_count, expect_positive

BASE = "base"


@dataclass(frozen=True)
class RehearsalConfig:
    """How candidates are rehearsed, and when one is good enough."""

    episodes: int = 8
    """imagined episodes per candidate, in lock-step"""
    steps: int = 400
    """length of an imagined episode, unless it ends earlier"""
    seed: int = 7
    """of the starts (environment seed 1000 · seed + i) and of the world's noise; another than the evaluation's"""
    confidence: float = 2.0
    """a candidate's imagined gain counts less this many standard errors of its mean"""
    least_gain: float = 0.02
    """what has to be left of it, as a share of the base policy's |imagined return|, for thinking to be allowed"""
    data_range: float = 10.0
    """an imagined state further than this from the data's mean, in standard deviations of a coordinate, is lost"""

    def __post_init__(self):
        expect_count("rehearsal.episodes", self.episodes, 2)
        expect_count("rehearsal.steps", self.steps, 1)
        expect_positive("rehearsal.data_range", self.data_range)
        for name in ("confidence", "least_gain"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"rehearsal.{name}: expected a number >= 0, got {getattr(self, name)!r}")


@dataclass(frozen=True)
class Imagined:
    """One candidate's imagined episodes."""

    returns: list[float]
    """undiscounted sum of r_ξ, in the reward model's scale"""
    lengths: list[int]
    """steps until the task ended, the state was lost, or the rehearsal was over"""
    lost: int
    """episodes that left the data's range or were no longer finite"""


@dataclass(frozen=True)
class Rehearsal:
    """What was imagined, and what follows."""

    config: RehearsalConfig
    episodes: Mapping[str, Imagined]
    """by candidate; "base" is the policy as it was trained"""
    termination: bool
    """whether imagined episodes could end, because the task's termination is known"""
    others: Mapping[str, Mapping[str, Imagined]] = field(default_factory=dict)
    """the same in other world models than the one that the candidates think in, by model"""

    def gain(self, name: str, model: str | None = None) -> tuple[float, float]:
        """A candidate's imagined gain over the base policy: mean and standard error of the paired differences."""
        episodes = self.episodes if model is None else self.others[model]
        difference = np.subtract(episodes[name].returns, episodes[BASE].returns)
        return float(difference.mean()), float(difference.std(ddof=1) / math.sqrt(len(difference)))

    def sure_gain(self, name: str, model: str | None = None) -> float:
        """The gain less `confidence` standard errors; −inf where more episodes were lost than under the base policy."""
        episodes = self.episodes if model is None else self.others[model]
        if episodes[name].lost > episodes[BASE].lost:
            return -math.inf
        mean, error = self.gain(name, model)
        return mean - self.config.confidence * error

    def surest_share(self, name: str) -> float:
        """The sure gain as a share of the base policy's |imagined return|, in the world model where it is least."""
        shares = []
        for model, episodes in ((None, self.episodes), *self.others.items()):
            base = abs(float(np.mean(episodes[BASE].returns)))
            shares.append(self.sure_gain(name, model) / max(base, 1e-12))
        return min(shares)

    def enough(self, name: str) -> bool:
        """Whether a candidate's sure gain is large enough for it to act, in every world model."""
        return self.surest_share(name) > self.config.least_gain

    @property
    def choice(self) -> str:
        """The candidate with the largest sure gain where it is least, or "base" where none is large enough."""
        best = max((name for name in self.episodes if name != BASE), key=self.surest_share, default=BASE)
        return best if best != BASE and self.enough(best) else BASE

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Rehearsal":
        """What `record` has written."""

        def read(content: Mapping[str, Any]) -> dict[str, Imagined]:
            return {name: Imagined(**own) for name, own in content.items()}

        others = {model: read(content) for model, content in record.get("others", {}).items()}
        return cls(RehearsalConfig(**record["settings"]), read(record["episodes"]), record["termination"], others)

    def record(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        gains = {name: dict(zip(("mean", "standard_error"), self.gain(name), strict=True)) for name in self.episodes}
        return {
            "choice": self.choice,
            "settings": asdict(self.config),
            "termination": self.termination,
            "gains": gains,
            "episodes": {name: asdict(episodes) for name, episodes in self.episodes.items()},
            "others": {model: {name: asdict(own) for name, own in there.items()} for model, there in self.others.items()},
        }


def rehearse(
    policy: nn.Module,
    world: World,
    starts: np.ndarray,
    candidates: Mapping[str, MPCConfig],
    config: RehearsalConfig | None = None,
    *,
    others: Mapping[str, World] | None = None,
    ended: Termination | None = None,
    progress: Callable[[float], None] | None = None,
) -> Rehearsal:
    """Let the base policy and every candidate play in the world model, and in other ones.

    A world model may be wrong where its own controller likes to go. In one that was trained apart from it (another seed,
    another kind) the same mistake is not there: only what gains in all of them may act.

    Args:
        policy, world: as for `MPC`; in `world` the candidates think, wherever they play.
        others: further worlds of the same task to play in, by name; their dynamics and reward are used.
        starts: first states of the episodes, (n, d); `config.episodes` is not looked at.
        candidates: controllers by name.
        ended: (n, d) -> (n,) bool, the states in which the task is over; None: it never is.
        progress: called with the share of the work done.

    Raises:
        ValueError: a candidate called "base" or with a deadline, none at all, or fewer than two starts.
    """
    config = config or RehearsalConfig()
    if not candidates or BASE in candidates:
        raise ValueError(f"candidates: expected controllers under other names than {BASE!r}, got {list(candidates)}")
    for name, own in candidates.items():
        if own.deadline_ms is not None:
            raise ValueError(
                f"candidates.{name}.deadline_ms: expected none, since a rehearsal must not depend on the clock; "
                f"got {own.deadline_ms}"
            )
    starts = np.asarray(starts)
    if starts.ndim != 2 or len(starts) < 2:
        raise ValueError(f"starts: expected states (n, d) with n >= 2, got shape {starts.shape}")
    # the base policy by the candidates' arithmetic: one that never moves gains exactly nothing
    players = {BASE: MPCConfig(horizon=0, particles=1, updates=0), **candidates}
    stages, played = {None: world, **(others or {})}, {}
    for model, stage in stages.items():
        for name, own in players.items():
            player = MPC(policy, world, own, batch=len(starts))
            played.setdefault(model, {})[name] = _imagine(player, policy, stage, starts, config, ended)
            if progress is not None:
                progress(sum(map(len, played.values())) / (len(stages) * len(players)))
    return Rehearsal(config, played.pop(None), ended is not None, played)


def rehearse_run(
    run: Run,
    candidates: Mapping[str, MPCConfig],
    config: RehearsalConfig,
    play: PlayConfig,
    *,
    others: Mapping[str, Run] | None = None,
    progress: Callable[[float], None] | None = None,
) -> Rehearsal:
    """`rehearse` for a trained run: starts drawn by resetting its environment, in which no step is taken.

    Args:
        others: further runs on the same data, in whose world and reward models is rehearsed too.
    """
    reset = PlayConfig(episodes=config.episodes, env_id=play.env_id, physics=play.physics)
    with contextlib.closing(open_env(run, reset, threads=1)) as env:
        starts = env.reset([1000 * config.seed + i for i in range(config.episodes)])
    worlds = {name: other.world for name, other in (others or {}).items()}
    return rehearse(
        run.policy, run.world, starts, candidates, config, others=worlds, ended=termination(env.env_id), progress=progress
    )


@torch.no_grad()
def _imagine(
    player: Controller, policy: nn.Module, world: World, starts: np.ndarray, config: RehearsalConfig, ended: Termination | None
) -> Imagined:
    state = torch.as_tensor(starts).to(next(policy.parameters()))
    n = len(state)
    noise = torch.Generator(state.device).manual_seed(config.seed)
    alive, lost = np.ones(n, bool), np.zeros(n, bool)
    returns, lengths = np.zeros(n), np.zeros(n, int)
    player.new_episode()
    for _ in range(config.steps):
        action = torch.as_tensor(player.act(state.cpu().numpy())).to(state)
        reward = world.reward(state, action).cpu().numpy()
        lost |= alive & ~np.isfinite(reward)
        alive &= ~lost
        returns += np.where(alive, reward, 0.0)
        lengths += alive
        following = world.dynamics(state, action, noise_like(world, state, 1, 1, noise)[:, 0, 0])
        observed = following.double().cpu().numpy()
        outside = ~_within(world, following, config.data_range)
        lost |= alive & outside
        alive &= ~outside
        if ended is not None:
            alive &= ~ended(observed)
        # rows that are over stay where they are: every row's noise and arithmetic is its own
        state = torch.where(torch.as_tensor(alive, device=state.device).unsqueeze(-1), following, state)
        if not alive.any():
            break
    return Imagined(returns.tolist(), lengths.tolist(), int(lost.sum()))


def _within(world: World, state: torch.Tensor, limit: float) -> np.ndarray:
    """Which states (n, d) are finite and, where the world model knows its data's scales, in the data's range."""
    standardise = getattr(world.dynamics, "standardise", None)
    distance = state if standardise is None else standardise(state)
    bound = math.inf if standardise is None else limit
    return (torch.isfinite(distance) & (distance.abs() <= bound)).all(-1).cpu().numpy()
