"""Statistics over tasks, training seeds and episodes: definitions, invariances, and coverage of a known truth."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jacrec.evaluation.statistics import interquartile_mean, t_quantile
from jacrec.studies.analysis.hierarchy import (
    average_over_tasks,
    hierarchical_mean,
    interquartile_mean_of_runs,
    probability_of_improvement,
    t_over_seeds,
    t_over_tasks,
    trimmed_mean,
)
from tests.conftest import property_cases

SCORES = st.floats(-200, 200).map(lambda x: round(x, 3))


@st.composite
def run_lists(draw):
    """A few tasks, each with one to four training seeds of one to five episodes."""
    return [
        [np.array(draw(st.lists(SCORES, min_size=1, max_size=5))) for _ in range(draw(st.integers(1, 4)))]
        for _ in range(draw(st.integers(1, 3)))
    ]


@property_cases(0.02)
@given(st.lists(SCORES, min_size=1, max_size=40))
def test_the_trimmed_mean_is_the_interquartile_mean_of_every_row(values):
    rows = np.stack([np.array(values), np.array(values)[::-1]])
    assert trimmed_mean(rows) == pytest.approx([interquartile_mean(values)] * 2)
    if len(values) % 4 == 0:  # then a quarter is a whole number of values, as scipy.stats.trim_mean(x, 0.25) cuts them
        quarter = len(values) // 4
        assert trimmed_mean(rows)[0] == pytest.approx(np.mean(sorted(values)[quarter : len(values) - quarter]))


@property_cases(0.02)
@given(run_lists())
def test_estimates_are_the_plain_means(tasks):
    means = [[x.mean() for x in runs] for runs in tasks]
    got = average_over_tasks(tasks, resamples=50)
    assert got.mean == pytest.approx(np.mean([np.mean(m) for m in means]))
    assert got.n == (len(tasks[0]) if len(tasks) == 1 else len(tasks))
    assert interquartile_mean_of_runs(tasks, resamples=50).mean == pytest.approx(interquartile_mean(np.concatenate(means)))
    for runs, seeds in zip(tasks, means, strict=True):
        one = hierarchical_mean(runs, resamples=50)
        assert one.std == pytest.approx(np.std(seeds, ddof=1) if len(seeds) > 1 else 0.0)
        every = np.concatenate(runs)
        assert every.min() - 1e-9 <= one.low <= one.high <= every.max() + 1e-9


@property_cases(0.02)
@given(run_lists(), st.floats(-50, 50), st.floats(0.1, 10))
def test_intervals_move_and_stretch_with_the_scores(tasks, shift, scale):
    moved = [[shift + scale * x for x in runs] for runs in tasks]
    for estimate in (average_over_tasks, interquartile_mean_of_runs, t_over_tasks):
        options = {} if estimate is t_over_tasks else {"resamples": 50}
        before, after = estimate(tasks, **options), estimate(moved, **options)
        for name in ("mean", "low", "high"):
            assert getattr(after, name) == pytest.approx(shift + scale * getattr(before, name), abs=1e-6)


@property_cases(0.02)
@given(run_lists(), st.floats(0.5, 20))
def test_pairing_removes_common_variation(tasks, gain):
    """A constant paired difference has no width, however much both sides vary."""
    differences = [[(x + gain) - x for x in runs] for runs in tasks]
    got = average_over_tasks(differences, resamples=50)
    assert (got.mean, got.low, got.high) == pytest.approx((gain, gain, gain))
    better = [[x + gain for x in runs] for runs in tasks]
    improvement = probability_of_improvement(better, tasks, resamples=50)
    assert 0.5 <= improvement.mean <= 1
    if all(len(runs) == 1 for runs in tasks):
        assert improvement.mean == 1


@property_cases(0.02)
@given(run_lists())
def test_improvement_over_itself_is_one_half(tasks):
    got = probability_of_improvement(tasks, tasks, resamples=50)
    assert (got.mean, got.low, got.high) == pytest.approx((0.5, 0.5, 0.5))


def test_probability_of_improvement_by_hand():
    ours, theirs = [[np.array([3.0]), np.array([1.0])]], [[np.array([2.0]), np.array([1.0])]]
    # 3 > 2, 3 > 1, 1 < 2, 1 = 1
    assert probability_of_improvement(ours, theirs).mean == pytest.approx((1 + 1 + 0 + 0.5) / 4)


def test_both_levels_are_drawn():
    rng = np.random.default_rng(0)
    same_seeds = [[5 + rng.normal(size=50) for _ in range(10)]]
    same_episodes = [[np.full(50, x) for x in 5 + rng.normal(size=10)]]
    # one number per seed as noisy as one episode: the spread between seeds cannot be averaged away by episodes
    widths = [(e := average_over_tasks(t)).high - e.low for t in (same_seeds, same_episodes)]
    assert widths[0] < 0.5 * widths[1]
    assert widths[0] > 2 * 1.96 / math.sqrt(500)


def test_tasks_are_strata_with_equal_weights():
    constant = [[np.full(3, 1.0)] * 2, [np.full(7, 9.0)] * 5]
    got = average_over_tasks(constant, resamples=50)
    assert (got.mean, got.low, got.high) == (5.0, 5.0, 5.0)


def coverage(estimate, truth, draw, studies=300):
    """How often the interval of a simulated study holds the truth."""
    hits = [e.low <= truth <= e.high for e in (estimate(draw()) for _ in range(studies))]
    return float(np.mean(hits))


def simulated(rng, tasks, seeds, episodes, between, within):
    """Studies whose gains are 2 on average, with Gaussian spread between training seeds and between episodes."""
    return lambda: [[rng.normal(2 + between * rng.normal(), within, episodes) for _ in range(seeds)] for _ in range(tasks)]


def test_the_bootstrap_covers_a_known_gaussian_with_ten_seeds():
    draw = simulated(np.random.default_rng(1), tasks=1, seeds=10, episodes=10, between=1.0, within=3.0)
    # measured 0.95: episodes' noise is counted twice, once in the seeds' means, which makes up for few seeds
    assert 0.90 <= coverage(lambda t: hierarchical_mean(t[0], resamples=300), 2.0, draw) <= 0.99


def test_with_three_seeds_student_covers_and_the_bootstrap_falls_short():
    draw = simulated(np.random.default_rng(2), tasks=1, seeds=3, episodes=10, between=3.0, within=1.0)
    assert coverage(lambda t: hierarchical_mean(t[0], resamples=300), 2.0, draw) < 0.88  # measured 0.78
    draw = simulated(np.random.default_rng(2), tasks=1, seeds=3, episodes=10, between=3.0, within=1.0)
    assert coverage(lambda t: t_over_seeds(t[0]), 2.0, draw) >= 0.91  # measured 0.98


def test_an_average_over_twelve_tasks_is_covered_with_three_seeds():
    draw = simulated(np.random.default_rng(3), tasks=12, seeds=3, episodes=10, between=1.0, within=3.0)
    assert 0.91 <= coverage(t_over_tasks, 2.0, draw) <= 0.99  # measured 0.96


def test_welch_and_satterthwaite_by_hand():
    tasks = [[np.array([x]) for x in (1.0, 2.0, 3.0)], [np.array([x]) for x in (0.0, 4.0)]]
    a, b = 1.0 / 3, 8.0 / 2  # variances of the two means
    degrees = math.floor((a + b) ** 2 / (a**2 / 2 + b**2 / 1))
    half = t_quantile(0.975, degrees) * math.sqrt(a + b) / 2
    got = t_over_tasks(tasks)
    assert (got.mean, got.low, got.high) == pytest.approx((2.0, 2.0 - half, 2.0 + half))


def test_one_seed_has_no_finite_t_interval_and_no_spread_has_no_width():
    assert t_over_tasks([[np.array([1.0, 2.0])], [np.array([1.0])] * 3]).high == math.inf
    same = t_over_tasks([[np.array([1.0])] * 3])
    assert (same.low, same.high) == (1.0, 1.0)


def test_episodes_of_different_numbers_are_drawn_from_their_own_seed():
    runs = [np.array([1.0]), np.array([5.0, 5.0, 5.0, 5.0])]
    got = hierarchical_mean(runs, resamples=2000)
    assert (got.mean, got.low, got.high) == (3.0, 1.0, 5.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: average_over_tasks([]), "tasks: .*at least one task"),
        (lambda: average_over_tasks([[]]), "at least one training seed"),
        (lambda: hierarchical_mean([np.array([])]), "task 0, seed 0: expected a non-empty"),
        (lambda: hierarchical_mean([np.array([1.0, math.nan])]), "finite"),
        (lambda: hierarchical_mean([np.array([1.0])], level=95), "level: .*got 95"),
        (lambda: probability_of_improvement([[np.zeros(2)]], [[np.zeros(3)]]), "same tasks, seeds and numbers of episodes"),
    ],
)
def test_invalid_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
