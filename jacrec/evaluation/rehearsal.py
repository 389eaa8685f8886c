"""Rehearsal: candidate controllers play whole episodes in the world model, and only one that gains there may act.

The objective Ĵ of a decision looks H steps ahead and then trusts Q_φ, which may prefer actions that lead to a fall much
later. In imagined episodes of hundreds of steps, the controller visits the states its own decisions lead to, and the fall
happens. No step is taken in the real environment: settings are selected, or MPC is rejected, from offline data alone. All
candidates share the same starts and noise, so they are compared in pairs.

What a world model gets wrong, such as falls that never happen, shows as a gain in some imagined episodes and none in others. More
episodes do not mend it, so that a gain is weighed against its spread between the episodes, not only against its standard error.
"""

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from jacrec.control.controller import MPC, MPCConfig
from jacrec.engine.rollout import noise_like
from jacrec.envs.termination import Termination, termination
from jacrec.evaluation.config import PlayConfig
from jacrec.evaluation.contestant import digests, expect_value_scale, open_env
from jacrec.evaluation.episodes import Controller
from jacrec.evaluation.records import only_one, read_rehearsal_record
from jacrec.evaluation.versions import machine, versions
from jacrec.experimental.config import read_mpc_config
from jacrec.models.world import World
from jacrec.training.folder import differences
from jacrec.training.run import Run, torch_threads
from jacrec.util.errors import check_fields, expect_count, expect_positive, expect_seed
from jacrec.util.files import user_path, write_json

BASE = "base"
FILE = "rehearsal.json"
EARLIER = {"consistency": 0.0}
"""settings that records of earlier versions lack"""
CANDIDATES: Mapping[str, MPCConfig] = {
    "h3": MPCConfig(horizon=3, particles=4, units="value", lr=1e-2),
    "h3-large": MPCConfig(horizon=3, particles=4, units="value", lr=3e-2),
    "h5": MPCConfig(horizon=5, particles=4, units="value", lr=1e-2),
}
"""the default candidates: those of paper_checks/results/rehearsals.md"""


@dataclass(frozen=True)
class RehearsalConfig:
    """How candidates are rehearsed, and how large a gain must be."""

    episodes: int = 8
    """imagined episodes per candidate, in lock-step"""
    steps: int = 400
    """maximum length of an imagined episode"""
    seed: int = 7
    """seed of the starts (environment seed 1000 · seed + i) and of the model noise; should differ from the evaluation's"""
    confidence: float = 2.0
    """standard errors to subtract from a candidate's mean imagined gain, for the chance of the draw"""
    consistency: float = 3.0
    """standard deviations between the imagined episodes to subtract from it, for the error of the world model, which more episodes
    do not reduce; the larger of the two is subtracted. 0: standard errors alone"""
    least_gain: float = 0.02
    """minimum of that lower bound, as a share of the base policy's |imagined return|, for a candidate to act"""
    data_range: float = 10.0
    """an imagined state is lost if a coordinate lies more than this many standard deviations from the data's mean"""

    def __post_init__(self):
        check_fields(self, "rehearsal.")
        expect_seed("rehearsal.seed", self.seed)
        expect_count("rehearsal.episodes", self.episodes, 2)
        expect_count("rehearsal.steps", self.steps, 1)
        expect_positive("rehearsal.data_range", self.data_range)
        for name in ("confidence", "consistency", "least_gain"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"rehearsal.{name}: expected a number >= 0, got {getattr(self, name)!r}")

    def margin(self, episodes: int) -> float:
        """Standard deviations between this many imagined episodes that are subtracted from a candidate's mean gain."""
        return max(self.consistency, self.confidence / math.sqrt(episodes))


@dataclass(frozen=True)
class ImaginedEpisodes:
    """Imagined episodes of one candidate."""

    returns: list[float]
    """undiscounted sum of r_ξ, on the reward model's scale"""
    lengths: list[int]
    """steps until the task ended, the state was lost, or the step limit was reached"""
    lost: int
    """number of episodes that left the data's range or became non-finite"""


@dataclass(frozen=True)
class Rehearsal:
    """Imagined episodes of all candidates, and the choice that follows from them."""

    config: RehearsalConfig
    episodes: Mapping[str, ImaginedEpisodes]
    """by candidate; "base" is the policy as trained"""
    termination: bool
    """whether imagined episodes can terminate, i.e. the task's termination rule is known"""
    others: Mapping[str, Mapping[str, ImaginedEpisodes]] = field(default_factory=dict)
    """episodes in additional world models, by model"""

    def gain(self, name: str, model: str | None = None) -> tuple[float, float]:
        """Imagined gain of a candidate over the base policy: mean and standard error of the paired differences."""
        episodes = self.episodes if model is None else self.others[model]
        difference = np.subtract(episodes[name].returns, episodes[BASE].returns)
        return float(difference.mean()), float(difference.std(ddof=1) / math.sqrt(len(difference)))

    def confident_gain(self, name: str, model: str | None = None) -> float:
        """Mean gain minus the settings' margin; −inf if more episodes were lost than under the base policy."""
        episodes = self.episodes if model is None else self.others[model]
        if episodes[name].lost > episodes[BASE].lost:
            return -math.inf
        mean, error = self.gain(name, model)
        n = len(episodes[BASE].returns)
        return mean - self.config.margin(n) * math.sqrt(n) * error

    def worst_share(self, name: str) -> float:
        """Confident gain relative to the base policy's |imagined return|, minimised over the world models."""
        shares = []
        for model, episodes in ((None, self.episodes), *self.others.items()):
            base = abs(float(np.mean(episodes[BASE].returns)))
            shares.append(self.confident_gain(name, model) / max(base, 1e-12))
        return min(shares)

    def passes(self, name: str) -> bool:
        """Whether a candidate's confident gain is large enough in every world model."""
        return self.worst_share(name) > self.config.least_gain

    @property
    def choice(self) -> str:
        """The candidate with the largest `worst_share`, or "base" if no candidate passes."""
        best = max((name for name in self.episodes if name != BASE), key=self.worst_share, default=BASE)
        return best if best != BASE and self.passes(best) else BASE

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Rehearsal":
        """The inverse of `record`."""

        def read(content: Mapping[str, Any]) -> dict[str, ImaginedEpisodes]:
            return {name: ImaginedEpisodes(**own) for name, own in content.items()}

        others = {model: read(content) for model, content in record.get("others", {}).items()}
        return cls(RehearsalConfig(**(EARLIER | record["settings"])), read(record["episodes"]), record["termination"], others)

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
    """Let the base policy and every candidate play in the world model, and optionally in additional ones.

    A world model may be wrong exactly where its own controller likes to go. A model trained independently (another seed,
    another kind) does not share that error, so only a gain in all of them counts.

    Args:
        policy, world: as for `MPC`; the candidates always plan in `world`, whichever model they play in.
        starts: initial states, (n, d) with n ≥ 2; `config.episodes` is ignored.
        candidates: controller settings by name.
        others: additional worlds of the same task to play in, by name; only their dynamics and reward are used.
        ended: (n, d) -> (n,) bool, whether a state terminates the task; None: no state does.
        progress: called with the fraction of the work done.

    Raises:
        ValueError: no candidates, a candidate named "base" or with a deadline, or fewer than two starts.
    """
    config = config or RehearsalConfig()
    if not candidates or BASE in candidates:
        raise ValueError(f"candidates: expected controllers with names other than {BASE!r}, got {list(candidates)}")
    for name, own in candidates.items():
        if own.deadline_ms is not None:
            raise ValueError(
                f"candidates.{name}.deadline_ms: expected None, since a rehearsal must not depend on the clock; "
                f"got {own.deadline_ms}"
            )
    starts = np.asarray(starts)
    if starts.ndim != 2 or len(starts) < 2:
        raise ValueError(f"starts: expected states (n, d) with n >= 2, got shape {starts.shape}")
    # the base policy runs through the same arithmetic, so that a candidate that changes nothing gains exactly 0
    players = {BASE: MPCConfig(horizon=0, particles=1, updates=0), **candidates}
    worlds, played = {None: world, **(others or {})}, {}
    for model, played_in in worlds.items():
        for name, own in players.items():
            player = MPC(policy, world, own, batch=len(starts))
            played.setdefault(model, {})[name] = _imagine(player, policy, played_in, starts, config, ended)
            if progress is not None:
                progress(sum(map(len, played.values())) / (len(worlds) * len(players)))
    return Rehearsal(config, played.pop(None), ended is not None, played)


def rehearse_run(
    run: Run,
    candidates: Mapping[str, MPCConfig],
    config: RehearsalConfig,
    play: PlayConfig,
    *,
    others: Mapping[str, Run] | None = None,
    progress: Callable[[float], None] | None = None,
) -> dict[str, Any]:
    """`rehearse` for a trained run, from reset states of its environment: a record ready for JSON.

    Besides `Rehearsal.record`, it holds the controllers' settings, checksums of the networks, versions and machine.

    Args:
        others: additional runs on the same data, by name; their world and reward models are played in too.
    """
    # no action is taken in the environment
    reset = PlayConfig(episodes=config.episodes, env_id=play.env_id, physics=play.physics, action_bounds="data")
    worlds = {name: other.world for name, other in (others or {}).items()}
    with torch_threads(play.threads):
        with contextlib.closing(open_env(run, reset, threads=1, played=False)) as env:
            starts = env.reset([1000 * config.seed + i for i in range(config.episodes)])
        rehearsal = rehearse(
            run.policy, run.world, starts, candidates, config, others=worlds, ended=termination(env.env_id), progress=progress
        )
    return _identity(run, play) | {
        "other_networks": _model_digests(others),
        "controllers": {name: asdict(own) for name, own in candidates.items()},
        "versions": versions(),
        "machine": machine(),
        **rehearsal.record(),
    }


def make_rehearsal(
    run: Run,
    folder: Path,
    candidates: Mapping[str, MPCConfig] = CANDIDATES,
    config: RehearsalConfig | None = None,
    play: PlayConfig | None = None,
    *,
    others: Mapping[str, Run] | None = None,
    again: bool = False,
    progress: Callable[[float], None] | None = None,
) -> dict[str, Any]:
    """Rehearse and write `folder`/rehearsal.json; an existing rehearsal with the same settings is returned unchanged.

    Args:
        others: additional runs on the same data, by name; their world and reward models are played in too.
        again: replace an existing rehearsal.

    Raises:
        ValueError: the folder holds a rehearsal of other networks, candidates or settings, or another process rehearses there.
    """
    config, play = config or RehearsalConfig(), play or PlayConfig()
    expect_value_scale(run, candidates.values())
    path = user_path(folder) / FILE
    if path.is_file() and not again:
        old = read_rehearsal_record(path)
        old["settings"] = EARLIER | old["settings"]
        old["controllers"] = {who: asdict(read_mpc_config(own, f"{path}: {who}")) for who, own in old["controllers"].items()}
        expected = _identity(run, play) | {
            "controllers": {name: asdict(own) for name, own in candidates.items()},
            "settings": asdict(config),
            "other_networks": _model_digests(others),
        }
        wrong = _mismatches({"other_networks": {}} | old, expected)
        if wrong:
            raise ValueError(
                f"{path}: expected no rehearsal or one with these settings, got one that differs in {'; '.join(wrong)}. Write to "
                "another folder (--out), or replace it (--again)"
            )
        return old
    with only_one(folder, "rehearsal"):
        began = time.perf_counter()
        record = rehearse_run(run, candidates, config, play, others=others, progress=progress)
        record |= {"wall_seconds": time.perf_counter() - began}
        write_json(path, record)
    return record


def read_rehearsal(run: Run, folder: Path, play: PlayConfig) -> dict[str, Any] | None:
    """The rehearsal of a run in a folder, with any candidates; None if there is none.

    Raises:
        ValueError: it belongs to other networks or another environment.
    """
    path = user_path(folder) / FILE
    if not path.is_file():
        return None
    record = read_rehearsal_record(path)
    wrong = _mismatches(record, _identity(run, play))
    if wrong:
        raise ValueError(
            f"{path}: expected a rehearsal of this run, got one that differs in {'; '.join(wrong)}. Rehearse again: "
            f"jacrec rehearse {run.path} --again"
        )
    for who, own in record["controllers"].items():
        read_mpc_config(own, f"{path}: {who}")  # raises if it is none
    return record


def chosen_controller(record: Mapping[str, Any]) -> MPCConfig | None:
    """The controller that a rehearsal chose; None: the base policy."""
    return None if record["choice"] == BASE else read_mpc_config(record["controllers"][record["choice"]])


def _identity(run: Run, play: PlayConfig) -> dict[str, Any]:
    """What a rehearsal record must match to belong to a run."""
    return {"networks": digests(run), "environment": play.env_id or run.info.env_id, "physics": play.physics}


def _mismatches(old: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """What of a record differs from what is expected, each as "part.key: value there, value here"; of candidates and further runs that
    one side lacks, which those are."""
    old, new, found = {key: old.get(key) for key in expected}, dict(expected), []
    for key in ("controllers", "other_networks"):
        if key not in new:
            continue
        there, here = old[key] or {}, new[key]
        if there.keys() != here.keys():
            found.append(f"{key}: {', '.join(there) or 'none'} there, {', '.join(here) or 'none'} here")
        old[key], new[key] = ({name: own[name] for name in own if name in there.keys() & here.keys()} for own in (there, here))
    return found + [f"{key}: {a} there, {b} here" for key, (a, b) in differences(old, new).items()]


def _model_digests(runs: Mapping[str, Run] | None) -> dict[str, Any]:
    """Checksums of the world and reward models of additional runs."""
    return {name: {part: digests(other)[part] for part in ("dynamics", "reward")} for name, other in (runs or {}).items()}


@torch.no_grad()
def _imagine(
    player: Controller, policy: nn.Module, world: World, starts: np.ndarray, config: RehearsalConfig, ended: Termination | None
) -> ImaginedEpisodes:
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
        # finished rows stay where they are: noise and arithmetic are separate for each row
        state = torch.where(torch.as_tensor(alive, device=state.device).unsqueeze(-1), following, state)
        if not alive.any():
            break
    return ImaginedEpisodes(returns.tolist(), lengths.tolist(), int(lost.sum()))


def _within(world: World, state: torch.Tensor, limit: float) -> np.ndarray:
    """Which states (n, d) are finite and, if the world model stores the data's scales, within the data's range."""
    standardise = getattr(world.dynamics, "standardise", None)
    distance = state if standardise is None else standardise(state)
    bound = math.inf if standardise is None else limit
    return (torch.isfinite(distance) & (distance.abs() <= bound)).all(-1).cpu().numpy()
