"""The signal and noise of a gradient, and the growth of the rollout's Jacobian, against their definitions."""

import math

import pytest
import torch
from hypothesis import assume, given

from jacrec import Autograd, World, gradient_signal, linearize, policy_gradient, state_growth
from tests.conftest import property_cases
from tests.engine.test_linearize import setup
from tests.oracles import relative_error, well_posed
from tests.strategies import cases


def particle_rows(problem, case):
    """Every particle's gradient over the parameters that may move, (N, M, P), from M·P numbers."""
    policy = problem[0]
    rows = linearize(*problem).particle_gradients()
    moving = [v for k, v in rows.items() if dict(policy.named_parameters())[k].requires_grad]
    lead = (1, case.M) if case.single else (case.N, case.M)
    return torch.cat([v.reshape(*lead, -1) for v in moving], -1)


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch's own mish, vmapped
@property_cases(0.08)
@given(case=cases(max_H=3))
def test_signal_is_that_of_the_particles(case):
    assume(case.M > 1)
    problem = case.build()
    assume(well_posed(*problem))
    found = gradient_signal(*problem)
    reference = policy_gradient(*problem, method=Autograd())
    assert relative_error(found.estimate.gradient, reference.gradient) <= 1e-11
    torch.testing.assert_close(found.estimate.value, reference.value, rtol=1e-11, atol=1e-12)
    rows = particle_rows(problem, case)
    scatter = rows.var(1).sum(-1) / case.M  # (N,): tr Σ / M
    mean = rows.mean(1)
    if not case.batched:
        mean, scatter = mean.mean(0), scatter.sum() / len(rows) ** 2
    square = mean.square().sum(-1)
    # what each of the two is a difference of decides how well it can be known
    size = float(rows.square().sum(-1).max())
    torch.testing.assert_close(found.square, square, rtol=1e-10, atol=1e-10 * size)
    torch.testing.assert_close(found.noise, scatter, rtol=1e-10, atol=1e-10 * size)
    torch.testing.assert_close(found.signal, square - scatter, rtol=1e-10, atol=2e-10 * size)


def test_signal_is_the_mean_product_of_two_different_particles():
    problem = setup()
    flat = torch.cat([v.flatten(1) for v in linearize(*problem).particle_gradients().values()], 1)
    products = flat @ flat.T
    expected = (products.sum() - products.trace()) / (4 * 3)
    torch.testing.assert_close(gradient_signal(*problem).signal, expected)


def test_signal_and_noise_are_without_bias():
    """Averaged over many draws of few particles, they are those of very many particles."""
    policy, world, state, _ = setup()
    torch.manual_seed(2)
    noise = torch.randn(4000, 2, *world.dynamics.noise_shape).double()
    many = gradient_signal(policy, world, state, noise)
    few = [gradient_signal(policy, world, state, part) for part in noise.split(4)]
    mean_noise = torch.stack([x.noise for x in few]).mean()
    signals = torch.stack([x.signal for x in few])
    torch.testing.assert_close(mean_noise, many.noise * 1000, rtol=0.05, atol=0.0)
    error = signals.std() / math.sqrt(len(few))
    assert abs(signals.mean() - many.signal) < 3 * error
    assert error < 0.2 * many.signal, "the test has to be able to see a bias"


def test_particles_needed_reach_the_ratio():
    policy, world, state, noise = setup()
    found = gradient_signal(policy, world, state, noise)
    assert found.signal < 0
    assert found.particles_needed(0.1) == math.inf, "four particles that disagree show no signal"
    torch.manual_seed(3)
    found = gradient_signal(policy, world, state, torch.randn(200, *noise.shape[1:]).double())
    for target in (0.1, 1.0, 30.0):
        M = float(found.particles_needed(target))
        at = found.signal / (found.noise * found.particles / M)  # noise falls as 1/M
        assert at >= target * (1 - 1e-9)
        assert M == 1 or found.signal / (found.noise * found.particles / (M - 1)) < target


def test_nothing_random_is_all_signal():
    policy, world, state, noise = setup()
    found = gradient_signal(policy, world, state, noise[:, :0])
    assert found.noise == 0
    assert found.snr == math.inf
    assert found.particles_needed(10.0) == 1
    with pytest.raises(ValueError, match="expected M >= 2 particles, got 1"):
        gradient_signal(policy, world, state, noise[:1])


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@property_cases(0.03)
@given(case=cases(max_H=3, max_M=3))
def test_growth_is_that_of_the_linearised_rollout(case):
    problem = case.build()
    assume(well_posed(*problem))
    torch.testing.assert_close(state_growth(*problem), linearize(*problem).jacobian_growth(), rtol=1e-9, atol=1e-12)


def test_growth_in_other_units_is_that_of_the_rescaled_world():
    policy, world, state, noise = setup()
    unit = torch.tensor([0.1, 3.0, 20.0]).double()
    rescaled = World(Rescaled(world.dynamics, unit), world.reward, world.critic, world.discount)
    expected = state_growth(torch.nn.Sequential(Times(unit), policy), rescaled, state / unit, noise)
    found = state_growth(policy, world, state, noise, unit=unit)
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, state_growth(policy, world, state, noise))
    with pytest.raises(ValueError, match=r"unit: expected shape \(3,\), got \(2,\)"):
        state_growth(policy, world, state, noise, unit=unit[:2])


class Times(torch.nn.Module):
    """x ↦ x ⊙ unit."""

    def __init__(self, unit):
        super().__init__()
        self.unit = unit

    def forward(self, x):
        return x * self.unit


class Rescaled:
    """Dynamics in which every component of the state is counted in units of its own."""

    def __init__(self, dynamics, unit):
        self.dynamics, self.unit, self.noise_shape = dynamics, unit, dynamics.noise_shape

    def __call__(self, state, action, noise):
        return self.dynamics(state * self.unit, action, noise) / self.unit
