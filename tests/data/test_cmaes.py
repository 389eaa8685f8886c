"""CMA-ES: convergence, scaling, reproducibility."""

import numpy as np
import pytest

from jacrec.data.behaviour.cmaes import minimise


@pytest.mark.parametrize(("d", "condition"), [(3, 1.0), (10, 1e3)])
def test_cmaes_finds_the_minimum(d, condition):
    scale = condition ** (np.arange(d) / (d - 1) / 2)
    goal = np.linspace(-1, 2, d)
    seen = []
    found = minimise(
        lambda x: np.square(scale * (x - goal)).sum(1),
        np.zeros(d),
        np.ones(d),
        generations=50 * d,
        rng=np.random.default_rng(0),
        report=lambda generation, costs, mean: seen.append(costs.min()),
    )
    assert found == pytest.approx(goal, abs=1e-3)
    assert len(seen) == 50 * d
    assert seen[-1] < 1e-6 < seen[0]


def test_cmaes_is_scale_invariant_and_reproducible():
    spread = np.array([1e-3, 1e3])

    def run(scale):
        rng = np.random.default_rng(7)
        return minimise(lambda x: np.square(x / scale - 1).sum(1), np.zeros(2), scale, generations=20, rng=rng)

    assert run(spread) / spread == pytest.approx(run(np.ones(2)), rel=1e-9)
