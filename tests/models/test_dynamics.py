"""Schedules, reverse steps and the dynamics built on them."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jacrec import DeterministicDynamics, DiffusionDynamics, FlowDynamics, MeanFlowDynamics
from jacrec.engine.jacobians.chain import chain_forward
from jacrec.models.dynamics.flow import TIME_SCALE
from jacrec.models.dynamics.schedule import SCHEDULES, alphas, reverse_steps
from tests.conftest import property_cases


@property_cases(0.02)
@given(schedule=st.sampled_from(SCHEDULES), steps=st.integers(1, 200))
def test_schedules_are_sequences_of_shares(schedule, steps):
    alpha = alphas(schedule, steps)
    assert alpha.dtype == torch.float64
    assert alpha.shape == (steps,)
    assert ((alpha > 0) & (alpha < 1)).all()


def test_schedules_are_those_of_their_papers():
    linear = alphas("linear", 1000)  # Ho et al. (2020), section 4: β from 1e-4 to 0.02 in 1000 steps
    torch.testing.assert_close(1 - linear[[0, 499, 999]], torch.tensor([1e-4, 0.01004, 0.02]).double(), rtol=2e-3, atol=0)
    assert float(linear.prod()) == pytest.approx(4.04e-5, rel=0.01)
    assert 1 - float(alphas("linear", 100)[0]) == pytest.approx(1e-3)
    cosine = alphas("cosine", 1000).cumprod(0)  # Nichol & Dhariwal (2021), (17)
    f = [math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for t in (0, 1, 500)]
    assert float(cosine[0]) == pytest.approx(f[1] / f[0])
    assert float(cosine[499]) == pytest.approx(f[2] / f[0])
    for steps in (1, 5, 20, 1000):  # the vp process ends at exp(−∫β/2·2) whatever the number of steps
        assert float(alphas("vp", steps).prod()) == pytest.approx(math.exp(-0.1 - 0.5 * 9.9))


def test_ddpm_coefficients_are_those_of_ho_et_al():
    alpha = alphas("cosine", 8)
    bar, table = alpha.cumprod(0), reverse_steps(alpha)
    torch.testing.assert_close(table.c_u, alpha.rsqrt(), rtol=1e-12, atol=0)
    torch.testing.assert_close(table.c_net, -(1 - alpha) / (alpha * (1 - bar)).sqrt(), rtol=1e-11, atol=1e-12)
    previous = torch.cat([torch.ones(1).double(), bar[:-1]])
    torch.testing.assert_close(table.sigma**2, (1 - previous) / (1 - bar) * (1 - alpha), rtol=1e-12, atol=1e-15)
    assert table.sigma[0] == 0


@property_cases(0.02)
@given(schedule=st.sampled_from(SCHEDULES), steps=st.integers(1, 12), data=st.data())
def test_predicting_noise_or_sample_is_the_same_step(schedule, steps, data):
    """Both parametrisations of one denoised sample give one s^(k−1), for DDPM, DDIM and any subset of levels."""
    alpha = alphas(schedule, steps)
    levels = data.draw(st.none() | st.sets(st.integers(1, steps), min_size=1).map(sorted))
    for sampler, eta in (("ddpm", 0.0), ("ddim", 0.0), ("ddim", 0.7), ("ddim", 1.0)):
        by_eps = reverse_steps(alpha, sampler=sampler, prediction="epsilon", eta=eta, levels=levels)
        by_x0 = reverse_steps(alpha, sampler=sampler, prediction="x0", eta=eta, levels=levels)
        bar = alpha.cumprod(0)[by_eps.level - 1]
        x0, eps = 0.7, -1.3
        u = bar.sqrt() * x0 + (1 - bar).sqrt() * eps
        left, right = by_eps.c_u * u + by_eps.c_net * eps, by_x0.c_u * u + by_x0.c_net * x0
        # x0 from ε is (u − √(1−ᾱ) ε) / √ᾱ: where little of the signal is left, its rounding is what comes back
        assert ((left - right).abs() <= 1e-12 * right.abs() + 4e-15 / bar.sqrt()).all()
        assert torch.equal(by_eps.sigma, by_x0.sigma)


def test_ddim_with_full_noise_is_ddpm():
    alpha = alphas("vp", 9)
    a, b = reverse_steps(alpha, sampler="ddim", eta=1.0, levels=[2, 5, 9]), reverse_steps(alpha, levels=[2, 5, 9])
    torch.testing.assert_close((a.c_u, a.c_net, a.sigma), (b.c_u, b.c_net, b.sigma), rtol=1e-12, atol=1e-12)


def test_the_exact_denoiser_samples_the_exact_gaussian():
    """For s' ~ N(μ, v) the best ε̂ is linear and known; the chain then ends in N(μ, v), as the printed one does not."""
    mu, v, n, K = 1.5, 0.25, 40_000, 400
    generator = torch.Generator().manual_seed(0)
    for sampler, right in (("ddpm", True), ("ddim", True), ("printed", False)):
        alpha = alphas("vp", K)
        bar, table = alpha.cumprod(0), reverse_steps(alpha, sampler=sampler, eta=0.0)
        # from the exact marginal at level K: vp leaves a trace of the signal there
        base = torch.randn(n, dtype=torch.float64, generator=generator)
        x = bar[-1].sqrt() * mu + (bar[-1] * v + 1 - bar[-1]).sqrt() * base
        for k in range(K, 0, -1):
            b = bar[k - 1]
            eps = (1 - b).sqrt() * (x - b.sqrt() * mu) / (b * v + 1 - b)
            z = torch.randn(n, dtype=torch.float64, generator=generator)
            x = table.c_u[k - 1] * x + table.c_net[k - 1] * eps + table.sigma[k - 1] * z
        good = abs(x.mean() - mu) < 0.03 and abs(x.std() - math.sqrt(v)) < 0.03
        assert good == right, (sampler, x.mean(), x.std())


@pytest.mark.parametrize("make", [DiffusionDynamics, DeterministicDynamics, FlowDynamics, MeanFlowDynamics])
@pytest.mark.parametrize("target", ["difference", "state"])
def test_encode_inverts_decode(make, target):
    f = make(3, 2, (4,), target=target).double()
    f.set_scales(*(torch.rand(3) + 0.5 for _ in range(4)))
    s, x = torch.randn(5, 3).double(), torch.randn(5, 3).double()
    torch.testing.assert_close(f.encode(s, f.decode(s, x)), x)


def test_loss_is_the_error_of_the_predicted_noise_at_the_marginal():
    f = DiffusionDynamics(2, 1, (4,), steps=5).double()
    s, a, following = torch.randn(6, 2).double(), torch.rand(6, 1).double(), torch.randn(6, 2).double()
    k, noise = torch.tensor([1, 2, 3, 4, 5, 5]), torch.randn(6, 2).double()
    for i in range(6):
        b = f.alpha_bar[k[i] - 1]
        u = b.sqrt() * (following[i] - s[i]) + (1 - b).sqrt() * noise[i]
        expected = (f.denoiser(u, k[i], s[i], a[i]) - noise[i]).square().mean()
        torch.testing.assert_close(f.loss(s, a, following, k, noise)[i], expected)


MU, STD = 0.7, 0.6
"""of the Gaussian whose flow from and to noise is known in closed form"""


def path(t):
    """Mean and standard deviation of (1 − t) x + t e for x ~ N(MU, STD²), e ~ N(0, 1)."""
    return (1 - t) * MU, ((1 - t) ** 2 * STD**2 + t**2) ** 0.5


def velocity(z, t):
    """The marginal velocity E[e − x | z_t = z]."""
    mean, std = path(t)
    return -MU + (t - (1 - t) * STD**2) / std**2 * (z - mean)


def sampled_by(f, network):
    """f with another network: (u, what it is told of time, s, a) -> output."""
    f.denoiser.forward = network
    return f.double()


@pytest.mark.parametrize("prediction", ["velocity", "x0"])
def test_the_exact_velocity_flows_to_the_exact_gaussian(prediction):
    """With the true velocity the error of n steps falls as 1/n against the known map e ↦ MU + STD e."""
    e = torch.randn(500, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def network(u, k, s, a):
        t = (k / TIME_SCALE).unsqueeze(-1)
        v = velocity(u, t)
        return v if prediction == "velocity" else u - t * v

    def error(steps):
        f = sampled_by(FlowDynamics(1, 1, (2,), steps=steps, prediction=prediction, target="state"), network)
        return float((f(torch.zeros(500, 1).double(), torch.zeros(500, 1).double(), e) - (MU + STD * e[:, 0])).abs().max())

    coarse, fine = error(16), error(32)
    assert 2**0.75 < coarse / fine < 2**1.4
    assert fine < 0.1


def average_velocity(z, r, t):
    """(z_t − z_r) / (t − r) of the exact flow, whose paths keep (z − mean) / std."""
    (mean, std), (mean_r, std_r) = path(t), path(r)
    return (z - mean_r - std_r * (z - mean) / std) / (t - r)


@pytest.mark.parametrize("prediction", ["velocity", "x0"])
@pytest.mark.parametrize("steps", [1, 3])
def test_the_exact_average_velocity_samples_the_exact_gaussian_in_any_number_of_steps(steps, prediction):
    e = torch.randn(50, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def network(z, k, s, a):
        t, span = (k / TIME_SCALE).unsqueeze(-2).unbind(-1)
        u = average_velocity(z, t - span, t)
        return u if prediction == "velocity" else z - t * u

    f = sampled_by(MeanFlowDynamics(1, 1, (2,), steps=steps, prediction=prediction, target="state"), network)
    got = f(torch.zeros(50, 1).double(), torch.zeros(50, 1).double(), e)
    torch.testing.assert_close(got, MU + STD * e[:, 0], rtol=1e-12, atol=1e-12)


def test_the_identity_of_meanflow_holds_for_the_exact_average_velocity():
    """u = v − (t − r) du/dt, with x and e chosen so that e − x is the marginal velocity at z."""
    z, r, t = (torch.rand(200, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in range(3))
    r, t = torch.minimum(r, t), torch.maximum(r, t)
    keep = t - r > 0.05
    z, r, t = 4 * z[keep] - 2, r[keep], t[keep]
    v = velocity(z, t)
    f = MeanFlowDynamics(1, 1, (2,), target="state").double()
    f.average_velocity = lambda z, r, t, s, a: average_velocity(z, r.unsqueeze(-1), t.unsqueeze(-1))
    nothing = torch.zeros(len(z), 1).double()
    u, goal = f.goal(nothing, nothing, (z - t * v).unsqueeze(-1), r, t, (z + (1 - t) * v).unsqueeze(-1))
    torch.testing.assert_close(goal, u, rtol=1e-9, atol=1e-11)
    other = f.goal(nothing, nothing, (z - t * v).unsqueeze(-1) + 0.1, r, t, (z + (1 - t) * v).unsqueeze(-1))
    assert (other[1] - other[0]).abs().min() > 1e-3  # the identity is no tautology


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FlowDynamics(2, 1, prediction="epsilon"), "prediction: expected one of"),
        (lambda: FlowDynamics(2, 1, steps=0), "steps: expected an integer >= 1"),
        (lambda: MeanFlowDynamics(2, 1, steps=0), "steps: expected an integer >= 1"),
        (lambda: MeanFlowDynamics(2, 1, target="velocity"), "target: expected one of"),
        (lambda: MeanFlowDynamics(2, 1, prediction="epsilon"), "prediction: expected one of"),
    ],
)
def test_flows_say_what_was_expected(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "sigmoid"}, "schedule: expected one of 'linear', 'cosine', 'vp', got 'sigmoid'"),
        ({"steps": 0}, "steps: expected an integer >= 1, got 0"),
        ({"sampler": "ddim", "eta": 50.0}, "eta: expected 0 <= eta <= 1"),
        ({"eta": 0.5}, "eta: expected 0 with sampler 'ddpm', got 0.5"),
        ({"levels": [3, 2]}, r"levels: expected ascending steps within 1..10, got \[3, 2\]"),
        ({"levels": [0]}, "levels: expected ascending steps"),
        ({"levels": []}, "levels: expected ascending steps"),
        ({"sampler": "printed", "prediction": "x0"}, "predicts the noise"),
        ({"target": "velocity"}, "target: expected one of"),
        ({"activation": "swish"}, "activation: expected one of"),
        ({"embedding_dim": 3}, "embedding_dim: expected a positive even number, got 3"),
        ({"hidden": ()}, "a hidden layer"),
    ],
)
def test_bad_settings_say_what_was_expected(options, message):
    options = {"hidden": (4,), **options}
    with pytest.raises(ValueError, match=message):
        DiffusionDynamics(3, 2, **options)


def test_bad_scales_are_refused():
    f = DeterministicDynamics(2, 1, (4,))
    with pytest.raises(ValueError, match="state_std: expected 2 finite values"):
        f.set_scales([0, 0], [1, 0], [0, 0], [1, 1])


@pytest.mark.parametrize("make", [lambda: FlowDynamics(3, 2, (8,), steps=3), lambda: DiffusionDynamics(3, 2, (8,), steps=3)])
def test_times_are_not_rounded_with_the_weights(make):
    dynamics = make()
    exact = dynamics.time.clone()
    assert torch.equal(dynamics.to(torch.float32).to(torch.float64).time, exact)
    assert torch.equal(copy.deepcopy(dynamics).float().double().time, exact)
    state, action, noise = (torch.randn(4, *shape, dtype=torch.float64) for shape in ((3,), (2,), dynamics.noise_shape))
    by_chain, _ = chain_forward(dynamics, state, action, noise, state.new_zeros(4, 0, 3), state.new_zeros(4, 0, 2))
    torch.testing.assert_close(by_chain, dynamics(state, action, noise), rtol=1e-13, atol=1e-13)
