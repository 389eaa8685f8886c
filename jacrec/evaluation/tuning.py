"""Choose controller settings by episodes in the environment, on seeds apart from the evaluation's: the paper's protocol.

The candidates of a family race by successive halving. In every round base policy and remaining candidates play the same new
seeds; candidates are ranked by their mean paired gain over the base policy, and the better half stays. A third of the budget is
kept for the last one, which plays on, on new seeds alone: what was selected by its luck has to show it again. It is chosen if the
interval of its mean gain lies above zero once the budget is spent, otherwise the base policy is. Before that a race ends only where
the candidate clearly loses: an early look at few episodes would take a policy that falls rarely, and deep, for a winner. Falls
rarer than one in the number of these episodes stay invisible.

H = 0 is a family of its own, raced by the same rule with the same budget, so that a comparison with it is fair.
"""

import contextlib
import json
from collections.abc import Callable, Generator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from jacrec.control.config import MPCConfig
from jacrec.envs.batch import BatchedEnv
from jacrec.evaluation.config import PlayConfig
from jacrec.evaluation.contestant import digests, environment_record, expect_value_scale, make_controller, open_env
from jacrec.evaluation.episodes import PolicyController
from jacrec.evaluation.episodes import play as episodes
from jacrec.evaluation.records import only_one, read_tuning_record, record_differences
from jacrec.evaluation.results import interval
from jacrec.evaluation.statistics import Estimate, t_mean
from jacrec.evaluation.versions import machine, versions
from jacrec.experimental.config import read_mpc_config
from jacrec.training.folder import differences
from jacrec.training.run import Run, torch_threads
from jacrec.util.errors import check_fields, expect_count, expect_seed
from jacrec.util.files import write_json, write_text

FILE, CHOICE = "tuning.json", "tuned.yaml"
BASE = "base"
SEEDS = 1000
LEAST = 1e-3
"""smallest gain that counts, as a share of the base policy's own mean: less does not show in a printed score"""
AS_BASE = MPCConfig(horizon=0, particles=1, updates=0)
"""a controller that acts as the base policy"""

Families = Mapping[str, Mapping[str, MPCConfig]]
"""candidates by family ("mpc", "h0") and name"""


@dataclass(frozen=True)
class TuneConfig:
    """Settings of a race."""

    budget: int = 300
    """real episodes of candidates, for each family; the base policy's come on top. At least one and a half rounds of all
    candidates: a third is kept for the best of them"""
    round: int = 10
    """episodes of each candidate in a round, played in lock-step"""
    seed: int = 7
    """tuning seed; round i plays environment seeds from 1000 · seed + i · round on. An evaluation refuses the seed of its tuning"""
    level: float = 0.95
    """confidence level, two-sided, of the interval that decides"""

    def __post_init__(self):
        check_fields(self)
        expect_seed("seed", self.seed)
        expect_count("round", self.round, 1)
        expect_count("budget", self.budget, self.round)
        if self.budget > SEEDS:
            raise ValueError(
                f"budget: expected at most {SEEDS} episodes, which is how many seeds lie between 1000 · seed and the next"
            )
        if not 0 < self.level < 1:
            raise ValueError(f"level: expected a probability between 0 and 1, got {self.level}")

    @property
    def selection(self) -> int:
        """Episodes for selecting one candidate; the rest, a third and at least a round, decides about it."""
        return self.budget - max(self.budget // 3, self.round)


def default_families() -> dict[str, dict[str, MPCConfig]]:
    """Twelve candidates each, around one step that serves critics of any scale (`units="value"`).

    Those of mpc are what won, and what won nearly as cheaply, in paper_checks/results/thinking.md and base_value.md; a few are
    anchored, for critics that cannot be trusted far from the data.
    """
    common: dict[str, Any] = {"particles": 4, "updates": 1, "units": "value"}
    mpc = {
        f"h{horizon}-lr{lr:g}": MPCConfig(horizon=horizon, lr=lr, **common)
        for horizon, lr in ((1, 1e-2), (3, 3e-3), (3, 1e-2), (3, 3e-2), (5, 3e-3), (5, 1e-2))
    }
    mpc |= {
        f"h{horizon}-lr{lr:g}-base": MPCConfig(horizon=horizon, lr=lr, terminal="base", **common)
        for horizon, lr in ((1, 1e-2), (1, 3e-2), (3, 1e-2))
    }
    mpc |= {
        f"h{horizon}-lr{lr:g}-anchor": MPCConfig(horizon=horizon, lr=lr, anchor=0.03, **common)
        for horizon, lr in ((1, 1e-2), (3, 3e-3), (3, 1e-2))
    }
    common["particles"] = 1
    h0 = {
        f"lr{lr:g}-anchor{anchor:g}": MPCConfig(horizon=0, lr=lr, anchor=anchor, **common)
        for lr in (3e-4, 1e-3, 3e-3, 6e-3, 1e-2, 3e-2)
        for anchor in (0.0, 0.03)
    }
    return {"mpc": mpc, "h0": h0}


Turns = Generator[tuple[str, int], list[float], None]
"""asks for turns, (who plays, number of the round), and is sent the returns"""


class Race:
    """One race: what has been played, and what that decides. Nothing in it is random."""

    def __init__(self, names: list[str], config: TuneConfig):
        if not names:
            raise ValueError("candidates: expected at least one, got none")
        least = len(names) * config.round if len(names) > 1 else 0
        if config.selection < least:
            raise ValueError(
                f"budget: expected at least {-(-3 * least // 2)} episodes for {len(names)} candidates and rounds of "
                f"{config.round}, got {config.budget}; a third is kept for the best candidate"
            )
        self.config = config
        self.remaining, self.spent, self.rounds = list(names), 0, 0
        self.base: list[float] = []  # what the base policy has scored
        self.ranking: list[dict[str, float]] = []
        """mean gains of the candidates, by round of selection"""
        self.gain: Estimate | None = None
        """of the last candidate, on seeds that did not select it; None before its first round"""

    @property
    def choice(self) -> str:
        """The name of the candidate that gains, or "base"."""
        if self.gain is None:
            return BASE
        least = LEAST * sum(map(abs, self.base)) / len(self.base)
        return self.remaining[0] if self.gain.low > 0 and self.gain.mean > least else BASE

    def drop(self, name: str) -> None:
        """Leave out one of several remaining candidates from now on, whatever its gains; for who plays the turns."""
        self.remaining = [other for other in self.remaining if other != name]

    def run(self, play: Callable[[str, int], list[float]]) -> "Race":
        """Play until the budget is spent, or the last candidate clearly loses.

        Args:
            play: who plays, number of the round -> returns of that turn.
        """
        turns = self.turns()
        returns: Any = None  # what starts a generator
        while True:
            try:
                who, i = turns.send(returns)
            except StopIteration:
                return self
            returns = play(who, i)

    def turns(self) -> Turns:
        """The turns one by one; in every round the base policy's comes first."""
        last = yield from self._select()
        self.remaining, fresh = [last], []
        for _ in range((self.config.budget - self.spent) // self.config.round):
            fresh += (yield from self._round([last]))[last]
            self.gain = t_mean(fresh, level=self.config.level)
            if self.gain.high < 0:
                break

    def _select(self) -> Generator[tuple[str, int], list[float], str]:
        """The candidate that is best after successive halving."""
        total: dict[str, list[float]] = {name: [] for name in self.remaining}
        while len(self.remaining) > 1 and self.spent + len(self.remaining) * self.config.round <= self.config.selection:
            gained = yield from self._round(self.remaining)
            for name, gains in gained.items():
                total[name] += gains
            means = {name: sum(total[name]) / len(total[name]) for name in self.remaining}
            self.ranking.append(means)
            ordered = sorted(self.remaining, key=lambda name: -means[name])  # stable: ties keep their order
            self.remaining = ordered[: -(-len(ordered) // 2)]
        return self.remaining[0]

    def _round(self, names: list[str]) -> Generator[tuple[str, int], list[float], dict[str, list[float]]]:
        """Paired gains of the next episodes."""
        i = self.rounds
        self.rounds += 1
        self.spent += len(names) * self.config.round
        base = yield BASE, i
        self.base += base
        gains = {}
        for name in names:
            own = yield name, i
            gains[name] = [a - b for a, b in zip(own, base, strict=True)]
        return gains


def tune(
    run: Run,
    folder: Path,
    families: Families | None = None,
    config: TuneConfig | None = None,
    play: PlayConfig | None = None,
    *,
    again: bool = False,
    progress: Callable[[str, float], None] | None = None,
) -> dict[str, Any]:
    """Race the families and write `folder`/tuning.json and tuned.yaml; every finished round is kept, so it can be resumed.

    Args:
        play: environment, physics and threads.
        again: discard an earlier race.
        progress: called after every round of a candidate with a line of text, and with the share of the budgets played.

    Returns:
        The record.

    Raises:
        ValueError: the folder holds a race of other networks, candidates or settings; a candidate with a deadline.
    """
    families, config = families or default_families(), config or TuneConfig()
    play = replace(play or PlayConfig(), episodes=config.round, rows=None, seed=config.seed)
    expect_value_scale(run, [own for candidates in families.values() for own in candidates.values()])
    for family, candidates in families.items():
        Race(list(candidates), config)  # checks the budget, before anything is played
        for name, own in candidates.items():
            if name == BASE:
                raise ValueError(f"{family}.{name}: expected another name, got that of the base policy")
            play.allow(own, f"{family}.{name}")
    path = folder / FILE
    with only_one(folder, "tuning"), contextlib.closing(open_env(run, play)) as env, torch_threads(play.threads):
        record = _new_record(run, families, config, play, env)
        record = record if again else _resumed(path, record)
        for family, candidates in families.items():
            player = _player(run, family, candidates, play, env, record, path, progress)
            race = Race(list(candidates), config).run(player)
            assert race.gain is not None
            chosen = AS_BASE if race.choice == BASE else candidates[race.choice]
            record["choice"][family] = {
                "name": race.choice,
                "controller": asdict(chosen),
                "last": race.remaining[0],
                "gain": race.gain.as_dict(),
                "episodes": race.spent,
                "seed": config.seed,
                "ranking": race.ranking,
            }
            write_json(path, record)
    write_text(folder / CHOICE, _as_yaml(record))
    return record


def _player(
    run: Run,
    family: str,
    candidates: Mapping[str, MPCConfig],
    play: PlayConfig,
    env: BatchedEnv,
    record: dict[str, Any],
    path: Path,
    progress: Callable[[str, float], None] | None,
) -> Callable[[str, int], list[float]]:
    """Plays a round of a candidate or the base policy, or takes it from the record."""

    def returns(name: str, i: int) -> list[float]:
        own = record["played"].setdefault(BASE if name == BASE else f"{family}/{name}", {})
        if str(i) not in own:
            seeds = [1000 * play.seed + i * play.episodes + k for k in range(play.episodes)]
            controller = None if name == BASE else candidates[name]
            player = PolicyController(run.policy) if controller is None else make_controller(run, controller, env.n)
            log = episodes(env, player, seeds)
            scores = run.info.score(log.returns, log.terminated)
            own[str(i)] = log.returns if scores is None else scores.tolist()
            write_json(path, record)
            if progress is not None:
                rounds = sum(len(rounds) for name, rounds in record["played"].items() if name != BASE)
                share = rounds * play.episodes / (record["settings"]["budget"] * len(record["settings"]["families"]))
                progress(f"{family} round {i + 1}, {name}: {sum(own[str(i)]) / len(own[str(i)]):.1f}", share)
        return own[str(i)]

    return returns


def read_tuned(run: Run, folder: Path, play: PlayConfig, environment: Mapping[str, Any]) -> dict[str, Any]:
    """The choices of `tune` in a folder, or in the run's, by family: "name", "controller", "gain", … as in the record.

    Args:
        environment: the `environment_record` of the evaluation.

    Raises:
        FileNotFoundError: nothing was tuned in that folder.
        ValueError: it was tuned for other networks or another environment, or on the evaluation's seed.
    """
    path = folder / FILE
    path = path if path.is_file() else run.path / FILE
    record = _finished_record(run, path, environment)
    played = range(1000 * play.seed, 1000 * play.seed + play.episodes)
    raced = range(1000 * record["settings"]["seed"], 1000 * record["settings"]["seed"] + SEEDS)
    if played.start < raced.stop and raced.start < played.stop:
        raise ValueError(
            f"seed: expected one that was not used for tuning, got {play.seed}, that of {path}; evaluate with another --seed"
        )
    return record["choice"]


def _finished_record(run: Run, path: Path, environment: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The record of a run's races; environment: the one that it has to be of, None for any."""
    command = f"jacrec tune {run.path}" + (f" --out {path.parent}" if path.parent != run.path else "")
    if not path.is_file():
        raise FileNotFoundError(f"no tuning at {path}; make one with `{command}`")
    record = read_tuning_record(path)
    wrong = [] if record["networks"] == digests(run) else ["networks"]
    wrong += [] if environment is None else _other_environment(record["environment"], environment)
    if wrong:
        raise ValueError(
            f"{path}: expected a tuning of this run, got one with different {', '.join(wrong)}; tune again: {command} --again"
        )
    unfinished = [family for family in record["settings"]["families"] if family not in record["choice"]]
    if unfinished:
        raise ValueError(f"{path}: expected a finished race, got none of {', '.join(unfinished)}; resume it: {command}")
    return record


def tuned_controller(run: Run, given: MPCConfig, default: MPCConfig) -> MPCConfig:
    """The settings that `tune` chose for mpc in a run's folder, for playing outside evaluations.

    Args:
        given, default: the settings that were given, and those that mean none.

    Raises:
        FileNotFoundError: nothing was tuned there.
        ValueError: it was tuned for other networks, the race is not over, or settings are given as well.
    """
    if given != default:
        raise ValueError(f"tuned: expected no settings of mpc beside it, since the tuning decides, got {given}")
    return read_mpc_config(_finished_record(run, run.path / FILE)["choice"]["mpc"]["controller"])


def _other_environment(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What differs between two environments; the engine does not count, since both give the same episodes."""
    return [f"environment.{name}" for name in differences(there, here) if name != "engine"]


def _new_record(run: Run, families: Families, config: TuneConfig, play: PlayConfig, env: BatchedEnv) -> dict[str, Any]:
    record = {
        "settings": asdict(config)
        | {
            "families": {family: {name: asdict(own) for name, own in some.items()} for family, some in families.items()},
        },
        "networks": digests(run),
        "environment": environment_record(env),
        "unit": "score" if run.info.scored else "return",
        "versions": versions(),
        "machine": machine(),
        "played": {},
        "choice": {},
    }
    return json.loads(json.dumps(record))


def _resumed(path: Path, fresh: dict[str, Any]) -> dict[str, Any]:
    """The record in `path` if it is of the same race; `fresh` if there is none."""
    if not path.is_file():
        return fresh
    old = read_tuning_record(path)
    different = record_differences(old, fresh) + _other_environment(old["environment"], fresh["environment"])
    if different:
        raise ValueError(
            f"{path}: expected no race or one with these settings, got one that differs in {'; '.join(different)}. "
            "Write to another folder (--out), or replace it (--again)"
        )
    return old


def _as_yaml(record: dict[str, Any]) -> str:
    """The choice as settings of an evaluation, with a comment on how they were found."""
    lines = []
    for family, own in record["choice"].items():
        shown = interval(Estimate(**own["gain"]), signed=True)
        lines.append(
            f"# {family}: {own['name']} after {own['episodes']} episodes; gain of {own['last']}: {shown} {record['unit']}"
        )
    content = {family: own["controller"] for family, own in record["choice"].items()}
    return "\n".join(lines) + "\n" + yaml.safe_dump(content, sort_keys=False)
