"""A race in a deployment: its own episodes decide between the base policy and candidate controllers.

After three episodes of the base policy it is the race of `jacrec tune` (`jacrec.evaluation.tuning.Race`) with rounds of one episode:
the base policy plays, then each remaining candidate, from the same reset seed. Successive halving leaves one candidate, which has to
show its gain in at least ten further rounds; otherwise the base policy plays on. Differences within a round estimate the gain
without bias whether or not an environment can repeat a start; if it can, with less noise.

Episodes cost, so there is an allowance, in units of the base policy's mean |return|. An episode of a candidate that returns less than the
base policy's mean adds the difference to what is lost, one that returns more takes it off again, down to zero. The race goes on
only if another loss as large as the mean |return|, or as the largest loss of one episode so far, would stay within the allowance;
otherwise the base policy plays from then on. The winner is held to the same rule for as long as it plays. Half of the allowance is for
the selection, in equal parts: a candidate that has lost more than its part leaves at once, so that a few bad ones do not end the
race for the others.

So in any stretch of a deployment the candidates' episodes return at least as much as that many episodes of the base policy's mean
return, as it was known when the last of them began, less the allowance, as long as no episode returns less than zero; one that
does can exceed the allowance, by what it lost beyond the mean and beyond any before it, and is the last. The mean is that of
the base policy's episodes in the race: an estimate, which is not renewed when the race is over.
"""

import math
from collections.abc import Sequence
from typing import TypedDict

from jacrec.evaluation.results import interval
from jacrec.evaluation.tuning import BASE, Race, TuneConfig

OPENING = 2
"""episodes of the base policy before the first round, so that its mean return is not that of a single one"""
LAST = 10
"""least number of rounds for the last candidate"""


def longest(candidates: int) -> int:
    """The most episodes after which a race of so many candidates is decided: all but the best leave after the first round."""
    return OPENING + 1 + 2 * _budget(candidates) - candidates


def _budget(candidates: int) -> int:
    """Episodes of the candidates."""
    return LAST + 2 * candidates


class Dropped(TypedDict):
    """A candidate that left."""

    name: str
    episode: int
    """number of the last episode before it left, from 1"""
    why: str


class RaceRecord(TypedDict):
    """What a deployment records of its race; who played is in its episodes."""

    winner: str | None
    """a candidate or "base"; None as long as it goes on. A winner can be dropped later"""
    decided: int | None
    """number of the episode that decided it, from 1"""
    gain: dict[str, float] | None
    """of the last candidate, from rounds that did not select it; in returns"""
    mean: float
    """the base policy's mean return in the race"""
    lost: float
    """what the candidates have lost against it"""
    allowance: float
    """what they may lose, in returns"""
    dropped: list[Dropped]


class DeployedRace:
    """Who plays the next episode, from the returns of those before. Nothing in it is random.

    Args:
        names: of the candidates.
        allowance: what the candidates may lose together, in units of the base policy's mean |return|.

    Raises:
        ValueError: no candidates, one that is called "base", or an allowance below a single episode.
    """

    def __init__(self, names: Sequence[str], allowance: float):
        if BASE in names:
            raise ValueError(f"candidates: expected names other than that of the base policy, got {BASE!r}; rename it")
        if not 1 <= allowance < math.inf:
            raise ValueError(
                f"race_allowance: expected at least 1, since a single episode can lose the base policy's whole return, got {allowance}"
            )
        self.allowance, self.share, self.players = allowance, allowance / (2 * max(len(names), 1)), list[str]()
        self.race = Race(list(names), TuneConfig(budget=_budget(len(names)), round=1))
        self.turns = self.race.turns()
        self.player: str = next(self.turns)[0]
        """who plays the next episode"""
        self.start = 0
        """number of the episode, from 0, whose reset seed the next one takes"""
        self.winner: str | None = None
        """a candidate or "base"; None as long as the race goes on"""
        self.decided: int | None = None
        """number of the episode that decided it, from 1"""
        self.base: list[float] = []
        """returns of the base policy in the race"""
        self.tried: list[tuple[str, float]] = []
        """names and returns of the candidates' episodes"""
        self.lost = self.worst = 0.0
        """what those have lost together, by the latest of them, and the most that one of them has lost"""
        self.own = dict.fromkeys(names, 0.0)
        """what each has lost; gains of others do not count"""
        self.dropped: list[Dropped] = []

    @property
    def mean(self) -> float:
        """The base policy's mean return in the race; 0 before its first episode."""
        return sum(self.base) / max(len(self.base), 1)

    @property
    def granted(self) -> float:
        """The allowance in returns."""
        return self.allowance * abs(self.mean)

    @property
    def affordable(self) -> bool:
        """Whether the allowance covers another episode of a candidate."""
        return self.lost + max(abs(self.mean), self.worst) <= self.granted

    def played(self, value: float) -> list[str]:
        """Take the return of the episode that `player` has played; a sentence for everything that it decides.

        Raises:
            ValueError: it is not finite.
        """
        if not math.isfinite(value):
            raise ValueError(f"race: expected an episode with a finite return, got {value}; correct the environment's reward")
        known, undecided = len(self.dropped), self.winner is None
        self.players.append(self.player)
        if undecided or self.player != BASE:
            self._count(value)
        if undecided and len(self.players) > OPENING:
            self._expect_share()
            self._advance(value)
        if (self.winner is None or self.player != BASE) and not self.affordable:
            self._end(f"{self.lost:.1f} of the allowance of {self.granted:.1f} lost")
        if self.player == BASE or self.winner is not None:
            self.start = len(self.players)
        said = [f"race: {own['name']} is dropped after episode {own['episode']}: {own['why']}" for own in self.dropped[known:]]
        if self.player == BASE and len(self.dropped) > known and self.winner is not None:
            said.append("race: the base policy plays on")
        elif undecided and self.winner is not None:
            said.append(f"race: {self.winner} wins after episode {self.decided}: {self._shown_gain()}")
        return said

    def record(self) -> RaceRecord:
        """What there is to know of the race, ready for JSON."""
        return {
            "winner": self.winner,
            "decided": self.decided,
            "gain": None if self.race.gain is None else self.race.gain.as_dict(),
            "mean": self.mean,
            "lost": self.lost,
            "allowance": self.granted,
            "dropped": self.dropped,
        }

    def _count(self, value: float) -> None:
        counted = [(self.player, value)]
        if self.player == BASE:  # another mean: all of them anew
            self.base.append(value)
            self.lost, self.worst, self.own, counted = 0.0, 0.0, dict.fromkeys(self.own, 0.0), self.tried
        else:
            self.tried += counted
        for name, x in counted:
            loss = self.mean - x
            self.lost, self.own[name] = max(0.0, self.lost + loss), max(0.0, self.own[name] + loss)
            self.worst = max(self.worst, loss)

    def _expect_share(self) -> None:
        """Let the candidate that has just played leave if it has spent its part of the allowance, unless it is the only one."""
        name = self.player
        if name != BASE and len(self.race.remaining) > 1 and self.own[name] > self.share * abs(self.mean):
            self.race.drop(name)
            self._drop(
                name,
                f"it alone has lost {self.own[name]:.1f}, more than its part of the allowance, {self.share * abs(self.mean):.1f}",
            )

    def _advance(self, value: float) -> None:
        remaining = self.race.remaining
        try:
            self.player = self.turns.send([value])[0]
        except StopIteration:
            if self.race.choice == BASE:
                self._end(f"no clear gain: {self._shown_gain()}")
            else:
                self._decide(self.race.choice)
        for name in remaining:
            if name not in self.race.remaining:
                means = self.race.ranking[-1]
                self._drop(name, f"in the lower half, with a gain of {means[name]:+.1f} by round {len(self.race.ranking)}")

    def _shown_gain(self) -> str:
        gain = self.race.gain
        return f"{interval(gain, signed=True)} in {0 if gain is None else gain.n} rounds"

    def _end(self, why: str) -> None:
        """Let the base policy play on."""
        for name in self.race.remaining if self.winner is None else [self.player]:
            self._drop(name, why)
        if self.winner is None:
            self._decide(BASE)
        self.player = BASE

    def _decide(self, winner: str) -> None:
        self.winner, self.decided, self.player = winner, len(self.players), winner

    def _drop(self, name: str, why: str) -> None:
        self.dropped.append({"name": name, "episode": len(self.players), "why": why})
