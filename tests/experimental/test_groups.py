"""Signal and noise of groups of particles against those of the particles."""

import pytest
import torch

from jacrec import Auto, gradient_signal
from jacrec.engine.shapes import problem
from jacrec.experimental.groups import groups_of, in_groups
from tests.engine.test_linearize import setup
from tests.oracles import relative_error


@pytest.mark.parametrize("particles", [2, 5, 16])
def test_groups_of_particles_weigh_like_particles(particles):
    """Five single particles are five groups; sixteen are four groups of four, and their means scatter."""
    policy, world, state, noise = setup()
    torch.manual_seed(4)
    p = problem(policy, world, state, torch.randn(particles, *noise.shape[1:]).double())
    groups = in_groups(p, Auto().gradient)
    assert len(groups.estimates) == {2: 2, 5: 5, 16: 4}[particles]
    found, exact = groups.signal(p), gradient_signal(policy, world, state, p.noise[0])
    assert relative_error(found.estimate.gradient, exact.estimate.gradient) <= 1e-11
    torch.testing.assert_close(found.square, exact.square)
    if particles < 16:
        torch.testing.assert_close((found.noise, found.snr), (exact.noise, exact.snr))
    flat = torch.stack([torch.cat([g.flatten() for g in x.gradient.values()]) for x in groups.estimates])
    torch.testing.assert_close(found.noise, flat.var(0).sum() / len(flat))


def test_the_number_of_groups_divides_the_particles():
    assert [groups_of(M) for M in (1, 2, 3, 4, 5, 6, 8, 9, 12, 16, 25, 64)] == [1, 2, 3, 2, 5, 2, 2, 3, 3, 4, 5, 4]
