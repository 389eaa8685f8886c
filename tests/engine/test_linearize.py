"""The linearised rollout against torch.func, and what is derived from it."""

import pickle

import pytest
import torch
from hypothesis import assume, given

from jacrec import Actor, Autograd, DiffusionDynamics, World, linearize, mpc_update, policy_gradient, rollout
from tests.conftest import property_cases
from tests.oracles import relative_error, well_posed
from tests.strategies import ForeignPolicy, cases


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch's own mish, vmapped
@property_cases(0.05)
@given(case=cases(max_H=3, max_M=3))
def test_particle_gradients_average_to_the_gradient(case):
    problem = case.build()
    assume(well_posed(*problem))
    reference = policy_gradient(*problem, method=Autograd())
    lin = linearize(*problem)
    rows = lin.particle_gradients()
    particles = 0 if case.single else 1
    mean = {k: v.mean(particles) for k, v in rows.items()}
    if not case.single and not case.batched:
        mean = {k: v.mean(0) for k, v in mean.items()}  # one ψ for all states: the mean over them
    if case.single and case.batched:
        mean = {k: v.unsqueeze(0) for k, v in mean.items()}  # a BatchedPolicy of one keeps its axis
    assert relative_error(mean, reference.gradient) <= 1e-12
    torch.testing.assert_close(lin.returns.mean(-1), reference.value, rtol=1e-12, atol=1e-12)


def setup():
    torch.manual_seed(1)
    policy = Actor(3, 2, (8,)).double()
    dynamics = DiffusionDynamics(3, 2, (8,), steps=3).double()
    world = World(dynamics, lambda s, a: s.sin().sum(-1) * a.sum(-1), lambda s, a: (s * s).sum(-1) - a.prod(-1), 0.9)
    return policy, world, torch.randn(3).double(), torch.randn(4, 2, *dynamics.noise_shape).double()


def test_jacobians_are_those_of_torch_func():
    policy, world, state, noise = setup()
    lin = linearize(policy, world, state, noise)
    for i in range(4):
        for j in range(2):
            s, a, e = lin.states[i, j], lin.actions[i, j], noise[i, j]
            F_s, F_a = torch.func.jacrev(lambda s, a, e=e: world.dynamics(s, a, e), (0, 1))(s, a)
            torch.testing.assert_close((lin.F_s[i, j], lin.F_a[i, j]), (F_s, F_a))
            torch.testing.assert_close(lin.Pi_s[i, j], torch.func.jacrev(policy)(s).detach())
            torch.testing.assert_close((lin.r_s[i, j], lin.r_a[i, j]), torch.func.grad(world.reward, (0, 1))(s, a))
        s, a = lin.states[i, -1], lin.actions[i, -1]
        torch.testing.assert_close((lin.Q_s[i], lin.Q_a[i]), torch.func.grad(world.critic, (0, 1))(s, a))


def test_growth_is_the_norm_of_the_rollouts_own_jacobian():
    policy, world, state, noise = setup()
    growth = linearize(policy, world, state, noise).jacobian_growth()
    assert growth.shape == (4, 3)
    for i in range(4):
        J = torch.func.jacrev(lambda s, i=i: rollout(policy, world, s[None], noise[None, i : i + 1]).states[0, 0])(state)
        torch.testing.assert_close(growth[i], torch.linalg.matrix_norm(J, 2).detach())


def test_signal_to_noise_is_that_of_the_particles():
    problem = setup()
    lin = linearize(*problem)
    flat = torch.cat([v.flatten(1) for v in lin.particle_gradients().values()], 1)
    noise = flat.var(0).sum() / 4
    torch.testing.assert_close(lin.signal_to_noise(), (flat.mean(0).square().sum() - noise) / noise)
    with pytest.raises(ValueError, match="expected M >= 2 particles, got 1"):
        linearize(*problem[:3], problem[3][:1]).signal_to_noise()


def test_it_stays_what_it_was_when_the_policy_moves_on():
    policy, world, state, noise = setup()
    lin = linearize(policy, world, state, noise)
    before = {k: v.clone() for k, v in lin.particle_gradients().items()}
    mpc_update(policy, world, state, noise=noise, lr=1.0)
    assert all(torch.equal(v, before[k]) for k, v in lin.particle_gradients().items())


def test_signal_to_noise_of_a_row_is_its_own():
    """With a parameter that is a single number, too."""
    _, world, _, _ = setup()
    policy = ForeignPolicy(3, 2).double()
    state, noise = torch.randn(3, 3).double(), torch.randn(3, 4, 2, *world.dynamics.noise_shape).double()
    together = linearize(policy, world, state, noise).signal_to_noise()
    alone = [linearize(policy, world, s, e).signal_to_noise() for s, e in zip(state, noise, strict=True)]
    torch.testing.assert_close(together, torch.stack(alone))


@pytest.mark.parametrize("make", [lambda: Actor(3, 2, (8,), layer_norm=True), lambda: ForeignPolicy(3, 2)])
def test_it_can_be_sent_to_another_process(make):
    _, world, state, noise = setup()
    lin = linearize(make().double(), world, state, noise)
    sent = pickle.loads(pickle.dumps(lin)).particle_gradients()
    assert all(torch.equal(v, sent[k]) for k, v in lin.particle_gradients().items())
