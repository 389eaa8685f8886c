"""Means, intervals and paired differences of small samples, in numpy.

Contestants play the same environment seeds, so the quantity of interest is the difference per seed. Two intervals are
provided: the percentile bootstrap, which assumes no distribution and suits bimodal returns (fell or survived), and
Student's t, which is wider for very few episodes, where the bootstrap is too narrow.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

RESAMPLES = 10_000


@dataclass(frozen=True)
class Estimate:
    """The mean of n values, with an interval."""

    mean: float
    std: float
    """sample standard deviation (denominator n − 1); 0 for a single value"""
    low: float
    high: float
    n: int

    def as_dict(self) -> dict:
        """The fields by name."""
        return asdict(self)

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0


def check_sample(values, name: str) -> np.ndarray:
    """The values as a float64 array (n,); raises ValueError if it is empty or not finite."""
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or x.size == 0 or not np.isfinite(x).all():
        raise ValueError(f"{name}: expected a non-empty list of finite numbers, got shape {x.shape} with {x}")
    return x


def check_level(level: float) -> float:
    """The level; raises ValueError unless 0 < level < 1."""
    if not 0 < level < 1:
        raise ValueError(f"level: expected a probability between 0 and 1 such as 0.95, got {level}")
    return level


def bootstrap_mean(values, *, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """Mean and percentile-bootstrap interval: quantiles of the means of `resamples` samples drawn with replacement."""
    x = check_sample(values, "values")
    tail = (1 - check_level(level)) / 2
    index = np.random.default_rng(seed).integers(0, x.size, size=(resamples, x.size))
    low, high = np.quantile(x[index].mean(1), [tail, 1 - tail])
    return Estimate(float(x.mean()), _std(x), float(low), float(high), x.size)


def t_mean(values, *, level: float = 0.95) -> Estimate:
    """Mean and Student-t interval mean ± t(n−1) · std/√n; infinite for a single value."""
    x = check_sample(values, "values")
    if x.size == 1:
        check_level(level)
        return Estimate(float(x[0]), 0.0, -math.inf, math.inf, 1)
    half = t_quantile(0.5 + check_level(level) / 2, x.size - 1) * _std(x) / math.sqrt(x.size)
    return Estimate(float(x.mean()), _std(x), float(x.mean() - half), float(x.mean() + half), x.size)


def paired_difference(ours, theirs, *, level: float = 0.95, method: str = "bootstrap", seed: int = 0) -> Estimate:
    """Mean and interval of ours[i] − theirs[i] over shared seeds i; `method` is "bootstrap" or "t"."""
    a, b = check_sample(ours, "ours"), check_sample(theirs, "theirs")
    if a.shape != b.shape:
        raise ValueError(f"paired difference: expected one value per shared seed on each side, got {a.size} and {b.size}")
    if method == "bootstrap":
        return bootstrap_mean(a - b, level=level, seed=seed)
    if method == "t":
        return t_mean(a - b, level=level)
    raise ValueError(f"method: expected 'bootstrap' or 't', got {method!r}")


def spearman(a, b) -> float | None:
    """Spearman's rank correlation of two lists, with mean ranks for ties; None if one of them is constant."""
    x, y = check_sample(a, "a"), check_sample(b, "b")
    if x.shape != y.shape:
        raise ValueError(f"rank correlation: expected lists of the same length, got {x.size} and {y.size}")
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(np.corrcoef(ranks(x), ranks(y))[0, 1])


def ranks(x: np.ndarray) -> np.ndarray:
    """Ranks of (n,) values, starting at 0; ties get their mean rank."""
    _, which, count = np.unique(x, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count + 1) / 2)[which]


def interquartile_mean(values) -> float:
    """The mean of the middle half: a quarter of the values is cut off at either end, fractionally if necessary."""
    x = np.sort(check_sample(values, "values"))
    # the sorted values as a step function on [0, 1], averaged over [1/4, 3/4]
    edges = np.arange(x.size + 1) / x.size
    weight = np.clip(edges[1:], 0.25, 0.75) - np.clip(edges[:-1], 0.25, 0.75)
    return float((weight * x).sum() / weight.sum())


def stratified_bootstrap(
    strata: Sequence,
    statistic: Callable[[np.ndarray], float] = interquartile_mean,
    *,
    level: float = 0.95,
    resamples: int = 2_000,
    seed: int = 0,
) -> Estimate:
    """A statistic of the pooled values of several tasks, resampled within each task (Agarwal et al. 2021).

    Args:
        strata: one list of scores per task; lengths may differ.
        statistic: maps the pooled values to a number.
    """
    tasks = [check_sample(values, f"strata[{i}]") for i, values in enumerate(strata)]
    if not tasks:
        raise ValueError("strata: expected at least one list of scores, got none")
    tail = (1 - check_level(level)) / 2
    rng = np.random.default_rng(seed)
    draws = [statistic(np.concatenate([rng.choice(x, x.size) for x in tasks])) for _ in range(resamples)]
    low, high = np.quantile(draws, [tail, 1 - tail])
    pooled = np.concatenate(tasks)
    return Estimate(float(statistic(pooled)), _std(pooled), float(low), float(high), pooled.size)


def _std(x: np.ndarray) -> float:
    return float(x.std(ddof=1)) if x.size > 1 else 0.0


def t_quantile(p: float, df: int) -> float:
    """The p-quantile (p ≥ 1/2) of Student's t with `df` degrees of freedom, by bisection of the distribution function.

    With t = √df tan θ the distribution function is a finite sum (Abramowitz and Stegun 26.7.3 and 26.7.4): with n = df, the
    probability of |T| < t is, for odd n, (2/π) (θ + sin θ (cos θ + 2/3 cos³ θ + … )), for even n, sin θ (1 + 1/2 cos² θ + …).
    """
    if not 0.5 <= p < 1 or df < 1:
        raise ValueError(f"t_quantile: expected 0.5 <= p < 1 and df >= 1, got p = {p}, df = {df}")
    odd = df % 2
    k = np.arange(1, (df - odd) // 2)
    coefficients = np.cumprod(np.concatenate([[1.0], 2 * k / (2 * k + 1) if odd else (2 * k - 1) / (2 * k)]))
    powers = odd + 2 * np.arange(len(coefficients))

    def within(theta: float) -> float:
        total = math.sin(theta) * float(coefficients @ math.cos(theta) ** powers) if df > 1 else 0.0
        return 2 / math.pi * (theta + total) if odd else total

    low, high = 0.0, math.pi / 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle) < 2 * p - 1 else (low, middle)
    return math.sqrt(df) * math.tan((low + high) / 2)
