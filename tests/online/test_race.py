"""Races in deployments over synthetic returns: what they may cost, and what they decide."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jacrec.evaluation.tuning import BASE
from jacrec.online.race import OPENING, DeployedRace, longest
from tests.conftest import property_cases

KINDS = {
    "steady": lambda rng, mean: rng.normal(mean, 0.05),
    "scattered": lambda rng, mean: max(0.0, rng.normal(mean, 0.4)),
    "falls": lambda rng, mean: mean / 0.7 if rng.random() < 0.7 else 0.1,
    "exponential": lambda rng, mean: rng.exponential(mean),
}
FIELDS = {
    "all fail": {"a": 0.0, "b": 0.0, "c": 0.0},
    "all lose": {"a": 0.6, "b": 0.6, "c": 0.6},
    "one fails": {"a": 1.1, "b": 0.9, "c": 0.0},
    "a single one": {"a": 0.5},
}


def simulate(kind, means, allowance, episodes, seed):
    """A race whose returns have the given means, 1 for the base policy, and who played."""
    rng, race = np.random.default_rng(seed), DeployedRace(list(means), allowance)
    for _ in range(episodes):
        race.played(KINDS[kind](rng, ({BASE: 1.0} | means)[race.player]))
    return race


def true_mean(kind, mean):
    """The expectation of a kind of returns."""
    rng = np.random.default_rng(1)
    return float(np.mean([KINDS[kind](rng, mean) for _ in range(20_000)]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("field", FIELDS)
def test_worse_candidates_lose_at_most_the_allowance_on_average(kind, field):
    means = FIELDS[field]
    base = true_mean(kind, 1.0)
    worse = {name: base - true_mean(kind, mean) for name, mean in means.items()}
    for allowance in (1.0, 3.0, 6.0):
        losses = []
        for seed in range(100):
            played = Counter(simulate(kind, means, allowance, 60, seed).players)
            losses.append(sum(count * worse[name] for name, count in played.items() if name != BASE))
        error = np.std(losses) / len(losses) ** 0.5
        assert np.mean(losses) <= allowance * base + 3 * error + 0.01, allowance


def stretches(race):
    """For each episode of a candidate: the largest loss of a stretch that ends with it, its own, and the mean by which they count."""
    base, tried, found = [], [], []
    for i, (player, value) in enumerate(zip(race.players, race.returns, strict=True)):
        if player == BASE:
            base += [value] if race.decided is None or i < race.decided else []
            continue
        tried.append(value)
        mean = sum(base) / len(base)
        found.append((max(sum(mean - x for x in tried[k:]) for k in range(len(tried))), mean - value, mean))
    return found


class Recording(DeployedRace):
    """Keeps all returns."""

    def __init__(self, *args):
        super().__init__(*args)
        self.returns = []

    def played(self, value):
        self.returns.append(value)
        return super().played(value)


@property_cases(0.2)
@given(
    values=st.lists(st.floats(0, 10), min_size=1, max_size=60),
    count=st.integers(1, 6),
    allowance=st.floats(1, 8),
)
def test_no_stretch_of_episodes_loses_more_than_the_allowance(values, count, allowance):
    race = Recording([f"c{i}" for i in range(count)], allowance)
    for value in values:
        race.played(value)
    for loss, _, mean in stretches(race):
        assert loss <= allowance * mean + 1e-9


@property_cases(0.2)
@given(values=st.lists(st.floats(-10, 10), min_size=1, max_size=60), allowance=st.floats(1, 8))
def test_only_the_last_episode_of_a_candidate_exceeds_the_allowance(values, allowance):
    race = Recording(["a", "b", "c"], allowance)
    for value in values:
        race.played(value)
    found = stretches(race)
    for loss, _, mean in found[:-1]:
        assert loss <= allowance * abs(mean) + 1e-9
    for loss, own, mean in found[-1:]:
        before = max([abs(mean), *(mean - x for name, x in race.tried[:-1])])
        assert loss <= allowance * abs(mean) + max(0.0, own - before) + 1e-9


@pytest.mark.parametrize("kind", ["steady", "scattered"])
def test_a_clearly_better_candidate_wins_and_plays_on(kind):
    gain = {"steady": 1.3, "scattered": 2.5}[kind]
    races = [simulate(kind, {"a": 0.9, "b": gain, "c": 0.5}, 6.0, 60, seed) for seed in range(50)]
    won = [race for race in races if race.winner == "b"]
    assert len(won) >= 45
    for race in won:
        assert race.decided is not None
        assert set(race.players[race.decided :]) == {"b"}
        assert {own["name"] for own in race.dropped} == {"a", "c"}


@pytest.mark.parametrize("kind", KINDS)
def test_luck_wins_as_rarely_as_the_level_says(kind):
    won = sum(simulate(kind, {"a": 1.0, "b": 1.0, "c": 1.0}, 20.0, 40, seed).winner != BASE for seed in range(300))
    assert won <= 0.025 * 300 + 3 * (0.025 * 0.975 * 300) ** 0.5


def test_a_winner_that_deteriorates_is_dropped():
    rng, race, said = np.random.default_rng(0), DeployedRace(["a", "b"], 3.0), []
    while race.winner is None:
        race.played(rng.normal({BASE: 100, "a": 150, "b": 120}[race.player], 1.0))
    assert race.player == race.winner == "a"
    for _ in range(50):
        race.played(150.0)  # gains are no credit
    for _ in range(4):
        said += race.played(40.0 if race.player == "a" else 100.0)
    assert race.players[-4:] == ["a"] * 4  # 60 lost in each of four: a fifth could lose another 100
    assert race.player == BASE
    assert race.winner == "a"
    assert race.dropped[-1]["name"] == "a"
    assert "allowance" in race.dropped[-1]["why"]
    assert said[-1] == "race: the base policy plays on"
    assert race.played(100.0) == []
    assert race.player == BASE


def test_candidates_that_fail_at_once_do_not_end_the_race_for_the_others():
    rng, race = np.random.default_rng(0), DeployedRace(["good", "bad", "worse"], 4.0)
    for _ in range(40):
        race.played(rng.normal({BASE: 100.0, "good": 113.0, "bad": 4.0, "worse": -10.0}[race.player], 1.0))
    assert race.winner == race.player == "good"
    assert race.players.count("bad") == race.players.count("worse") == 1
    assert [own["name"] for own in race.dropped] == ["bad", "worse"]
    assert all("part of the allowance" in own["why"] for own in race.dropped)


def test_the_worst_loss_so_far_is_held_back():
    race = DeployedRace(["bad", "good"], 4.0)
    while race.winner is None:
        race.played(100.0 if race.player == BASE else -150.0)
    assert race.players == [BASE] * (OPENING + 1) + ["bad"]  # 250 of 400 lost: 150 would cover a mean return, but not the like
    assert race.winner == race.player == BASE


@pytest.mark.parametrize("order", [("bad", "good"), ("good", "bad")])
def test_a_part_of_the_allowance_is_what_one_candidate_may_lose_in_the_selection(order):
    race = DeployedRace(order, 4.0)  # a part: one mean return
    while len(race.players) < OPENING + 3:
        race.played({BASE: 100.0, "good": 101.0, "bad": 0.5}[race.player])
    assert [own["name"] for own in race.dropped] == ["bad"]
    assert "lower half" in race.dropped[0]["why"]
    race = DeployedRace(order, 4.0)
    while len(race.players) < OPENING + 3:
        race.played({BASE: 100.0, "good": 101.0, "bad": -0.5}[race.player])
    assert [own["name"] for own in race.dropped] == ["bad"]
    assert "part of the allowance" in race.dropped[0]["why"]


def test_a_policy_that_returns_nothing_has_nothing_to_lose():
    race = DeployedRace(["a"], 1.0)
    for _ in range(60):
        race.played(0.0 if race.player == BASE else 1.0 + 0.01 * len(race.players))
    assert race.winner == race.player == "a"


@property_cases(0.02)
@given(kind=st.sampled_from(sorted(KINDS)), seed=st.integers(0, 999), count=st.integers(1, 5), allowance=st.floats(1, 6))
def test_a_race_goes_on_from_its_episodes_as_if_it_had_not_stopped(kind, seed, count, allowance):
    rng, names = np.random.default_rng(seed), [f"c{i}" for i in range(count)]
    whole, returns = DeployedRace(names, allowance), []
    for done in range(40):
        again = DeployedRace(names, allowance)
        for value in returns:
            again.played(value)
        assert (again.player, again.start, again.players) == (whole.player, whole.start, whole.players), done
        assert again.record() == whole.record()
        returns.append(KINDS[kind](rng, {BASE: 1.0}.get(whole.player, 1.1)))
        whole.played(returns[-1])


def test_candidates_begin_where_the_base_policy_began_its_round():
    race, starts = DeployedRace(["a", "b"], 3.0), []
    for i in range(OPENING + 5):
        starts.append((race.player, race.start))
        race.played(1.0 + 0.01 * i)
    assert starts == [(BASE, 0), (BASE, 1), (BASE, 2), ("a", 2), ("b", 2), (BASE, 5), (starts[-1][0], 5)]
    assert starts[-1][0] != BASE


@pytest.mark.parametrize("n", [1, 2, 3, 5, 12])
@pytest.mark.parametrize("spread", [0.0, 0.3, 1.5])
def test_a_race_is_decided_in_time(n, spread):
    rng, lengths = np.random.default_rng(n), []
    for _ in range(40):
        race = DeployedRace([str(i) for i in range(n)], 50.0)
        while race.winner is None:
            race.played(1.0 + spread * rng.standard_normal())
        lengths.append(race.decided)
    assert max(lengths) <= longest(n)
    if not spread and n < 4:  # it takes that long, or one more round of two
        assert max(lengths) >= longest(n) - 2


@pytest.mark.parametrize("allowance", [0.9, float("inf"), float("nan")])
def test_allowances_below_an_episode_are_refused(allowance):
    with pytest.raises(ValueError, match=r"^race_allowance: expected .* got "):
        DeployedRace(["a"], allowance)


def test_returns_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match=r"^race: expected .* got nan"):
        DeployedRace(["a"], 3.0).played(float("nan"))
