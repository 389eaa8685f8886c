"""Intervals: known quantiles, coverage of simulated truth, and what pairing buys."""

import math
from statistics import NormalDist

import numpy as np
import pytest

from jacrec.evaluation.results import interval as interval_text
from jacrec.evaluation.results import verdict
from jacrec.evaluation.statistics import (
    Estimate,
    bootstrap_mean,
    interquartile_mean,
    paired_difference,
    stratified_bootstrap,
    t_mean,
    t_quantile,
)


@pytest.mark.parametrize(
    ("p", "df", "value"),
    [(0.975, 1, 12.7062), (0.975, 2, 4.30265), (0.975, 9, 2.26216), (0.95, 4, 2.13185), (0.995, 30, 2.74999)],
)
def test_t_quantile_matches_printed_tables(p, df, value):
    assert t_quantile(p, df) == pytest.approx(value, abs=2e-4)


@pytest.mark.parametrize("p", [0.6, 0.975, 0.9999])
def test_t_quantile_is_exact_where_there_is_a_formula(p):
    """Closed forms for one, two and four degrees of freedom; nearly the normal quantile for many."""
    tail = 4 * p * (1 - p)
    root = math.cos(math.acos(math.sqrt(tail)) / 3) / math.sqrt(tail)
    assert t_quantile(p, 1) == pytest.approx(math.tan(math.pi * (p - 0.5)), rel=1e-11)
    assert t_quantile(p, 2) == pytest.approx((2 * p - 1) * math.sqrt(2 / tail), rel=1e-11)
    assert t_quantile(p, 4) == pytest.approx(2 * math.sqrt(root - 1), rel=1e-11)
    assert t_quantile(p, 2_000_001) == pytest.approx(NormalDist().inv_cdf(p), rel=1e-5)


def test_t_interval_is_the_textbook_formula():
    x = np.array([1.0, 2.0, 4.0, 7.0])
    got = t_mean(x)
    half = 3.182446 * x.std(ddof=1) / 2
    assert (got.mean, got.low, got.high) == pytest.approx((3.5, 3.5 - half, 3.5 + half), rel=1e-5)


@pytest.mark.parametrize("interval", [bootstrap_mean, t_mean])
def test_coverage_of_the_intervals(interval):
    rng = np.random.default_rng(0)
    options = {"resamples": 400} if interval is bootstrap_mean else {}
    hits = [interval(rng.normal(3.0, 2.0, 20), level=0.9, **options) for _ in range(300)]
    covered = np.mean([e.low <= 3.0 <= e.high for e in hits])
    assert 0.83 <= covered <= 0.95


def test_pairing_removes_the_variation_of_seeds():
    rng = np.random.default_rng(1)
    seed_effect = rng.normal(0, 50, 12)
    ours, theirs = seed_effect + 5 + rng.normal(0, 1, 12), seed_effect + rng.normal(0, 1, 12)
    paired = paired_difference(ours, theirs)
    assert paired.excludes_zero
    assert 3 < paired.low < paired.mean < paired.high < 7
    assert bootstrap_mean(ours).high - bootstrap_mean(ours).low > 10 * (paired.high - paired.low)
    wide = paired_difference(ours, theirs, method="t")
    assert wide.mean == pytest.approx(paired.mean)
    assert wide.high - wide.low > paired.high - paired.low


def test_interquartile_mean_by_hand():
    assert interquartile_mean([100.0, 2.0, 3.0, -50.0]) == pytest.approx(2.5)
    # five values: a quarter is 1.25 values, so the ends of the middle three count three quarters
    assert interquartile_mean([0.0, 1.0, 2.0, 3.0, 40.0]) == pytest.approx((0.75 * 1 + 2 + 0.75 * 3) / 2.5)


def test_stratified_bootstrap_resamples_within_tasks():
    # constant tasks: resampling within them changes nothing, resampling across them would
    got = stratified_bootstrap([[1.0] * 8, [9.0] * 8], np.mean, resamples=50)
    assert (got.mean, got.low, got.high) == (5.0, 5.0, 5.0)
    spread = stratified_bootstrap([np.arange(10.0), np.arange(10.0) + 100], resamples=200)
    assert spread.low < spread.mean < spread.high


def test_single_episode_has_no_finite_t_interval():
    assert t_mean([4.0]).high == math.inf
    assert bootstrap_mean([4.0]).low == 4.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bootstrap_mean([]), "values: .*non-empty"),
        (lambda: bootstrap_mean([1.0, np.nan]), "finite"),
        (lambda: bootstrap_mean([1.0], level=95), "level: .*got 95"),
        (lambda: paired_difference([1.0, 2.0], [1.0]), "got 2 and 1"),
        (lambda: paired_difference([1.0], [1.0], method="z"), "method: .*got 'z'"),
        (lambda: stratified_bootstrap([]), "strata: .*got none"),
        (lambda: t_quantile(0.2, 3), "0.5 <= p"),
    ],
)
def test_invalid_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_intervals_show_small_numbers_and_no_negative_zero():
    assert interval_text(Estimate(3.14, 1.0, -1.2, 4.94, 10), signed=True) == "+3.1 [-1.2, +4.9]"
    assert interval_text(Estimate(-0.001, 1.0, -0.04, 0.02, 10), signed=True) == "+0.00 [-0.04, +0.02]"
    assert interval_text(Estimate(0.0004, 1.0, -0.0002, 0.0031, 10), signed=True) == "+0.0004 [-0.0002, +0.0031]"
    assert interval_text(None) == "–"
    assert verdict(Estimate(0.5, 1.0, 0.2, 0.9, 3), "MPC", "base", "points").endswith("points (3 episodes are few).")
    assert verdict(Estimate(-0.5, 1.0, -0.9, -0.2, 10), "MPC", "base", "points").startswith("MPC loses against base")
