"""Derivative-free minimisation by CMA-ES.

Hansen, "The CMA evolution strategy: a tutorial" (2016), with its standard constants: weighted recombination, cumulative
step-size adaptation, rank-one and rank-μ updates of the covariance.
"""

from collections.abc import Callable

import numpy as np


def minimise(
    cost: Callable[[np.ndarray], np.ndarray],
    mean: np.ndarray,
    std: np.ndarray,
    *,
    generations: int,
    rng: np.random.Generator,
    population: int | None = None,
    report: Callable[[int, np.ndarray, np.ndarray], None] | None = None,
) -> np.ndarray:
    """Minimise `cost`; return the mean (d,) of the search distribution after `generations`.

    Args:
        cost: maps points (population, d) to costs (population,); may be noisy.
        mean: initial mean (d,).
        std: initial standard deviation of each coordinate (d,), which also sets its scale.
        population: points per generation; default: 4 + ⌊3 ln d⌋.
        report: called with the generation, the costs and the mean.
    """
    d = len(mean)
    n = population or 4 + int(3 * np.log(d))
    weights = np.log((n + 1) / 2) - np.log(np.arange(1, n // 2 + 1))
    weights /= weights.sum()
    mu = 1 / np.square(weights).sum()
    c_sigma = (mu + 2) / (d + mu + 5)
    damping = 1 + 2 * max(0.0, np.sqrt((mu - 1) / (d + 1)) - 1) + c_sigma
    c_path = (4 + mu / d) / (d + 4 + 2 * mu / d)
    c_one = 2 / ((d + 1.3) ** 2 + mu)
    c_mu = min(1 - c_one, 2 * (mu - 2 + 1 / mu) / ((d + 2) ** 2 + mu))
    expected = np.sqrt(d) * (1 - 1 / (4 * d) + 1 / (21 * d * d))  # E‖N(0, I)‖
    center, sigma, C = np.zeros(d), 1.0, np.eye(d)
    path, path_sigma = np.zeros(d), np.zeros(d)
    for generation in range(1, generations + 1):
        values, B = np.linalg.eigh(C)
        D = np.sqrt(np.maximum(values, 1e-20))
        y = (rng.standard_normal((n, d)) * D) @ B.T  # (n, d), distributed as N(0, C)
        costs = cost(mean + std * (center + sigma * y))
        best = y[np.argsort(costs, kind="stable")[: len(weights)]]
        step = weights @ best
        center = center + sigma * step
        path_sigma = (1 - c_sigma) * path_sigma + np.sqrt(c_sigma * (2 - c_sigma) * mu) * (B @ ((B.T @ step) / D))
        length = np.linalg.norm(path_sigma)
        # h_σ: no rank-one update while the step size is still growing fast
        keep = length / np.sqrt(1 - (1 - c_sigma) ** (2 * generation)) < (1.4 + 2 / (d + 1)) * expected
        path = (1 - c_path) * path + keep * np.sqrt(c_path * (2 - c_path) * mu) * step
        C = (
            (1 - c_one - c_mu + (not keep) * c_one * c_path * (2 - c_path)) * C
            + c_one * np.outer(path, path)
            + c_mu * (best.T * weights) @ best
        )
        C = (C + C.T) / 2
        sigma *= float(np.exp((length / expected - 1) * c_sigma / damping))
        if report is not None:
            report(generation, costs, mean + std * center)
    return mean + std * center
