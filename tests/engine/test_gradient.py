"""Property tests: every way to the gradient agrees with every other, on random problems."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from jacrec import Adjoint, Auto, Autograd, FiniteDifference, Forward, policy_gradient
from tests.conftest import property_cases
from tests.oracles import looped_gradient, relative_error, well_posed
from tests.strategies import cases

EXACT = {
    "dense": Forward(sensitivities="dense"),
    "factored": Forward(),
    "adjoint": Adjoint(),
    "recomputed adjoint": Adjoint(recompute=True),
    "autograd": Autograd(),
}


@property_cases(0.5)
@given(case=cases())
def test_every_pair_agrees_in_float64(case):
    problem = case.build()
    assume(well_posed(*problem))
    results = {name: policy_gradient(*problem, method=method) for name, method in EXACT.items()}
    for (a, left), (b, right) in itertools.combinations(results.items(), 2):
        assert left.value.shape == right.value.shape
        torch.testing.assert_close(left.value, right.value, rtol=1e-12, atol=1e-12, msg=lambda m, a=a, b=b: f"{a}, {b}: {m}")
        assert relative_error(left.gradient, right.gradient) <= 1e-12, f"{a} and {b} disagree"


@property_cases(0.15)
@given(case=cases(max_H=3, max_M=3))
def test_batched_equals_looped(case):
    policy, world, state, noise = case.build()
    assume(well_posed(policy, world, state, noise))
    rows = (state, noise) if not case.single else (state[None], noise[None])
    value, gradient = looped_gradient(policy, world, *rows)
    for method in (Forward(), Adjoint()):
        got = policy_gradient(policy, world, state, noise, method=method)
        torch.testing.assert_close(got.value, value[0] if case.single else value, rtol=1e-12, atol=1e-12)
        assert relative_error(got.gradient, gradient) <= 1e-12


@property_cases(0.05)
@given(case=cases(max_H=2, max_M=2))
def test_finite_differences_agree_where_the_problem_is_smooth(case):
    for part in (case.policy, case.dynamics[1], case.reward, case.critic):
        if part and part.get("activation") == "relu":
            part["activation"] = "tanh"  # a kink within the difference's width would make it wrong, not us
    problem = case.build()
    exact = policy_gradient(*problem, method=Adjoint())
    differences = policy_gradient(*problem, method=FiniteDifference())
    size = max(1.0, float(exact.value.abs().max()))
    for name, g in exact.gradient.items():
        scale = size + float(g.abs().max())
        torch.testing.assert_close(differences.gradient[name], g, rtol=0, atol=2e-6 * scale)


def test_float32_is_as_good_as_plain_torch():
    """Against float64, the errors' median and 90th percentile are at most twice those of autograd in float32.

    One case alone proves nothing: whose roundings happen to cancel is luck.
    """
    errors = {name: [] for name in EXACT}

    @property_cases(0.15, at_least=300)  # percentiles of a few cases are noise
    @given(case=cases(foreign=False))
    def collect(case):
        policy, world, state, noise = case.build(torch.float32)
        single = {name: policy_gradient(policy, world, state, noise, method=method) for name, method in EXACT.items()}
        policy.double()
        world.to(torch.float64)
        state, noise = state.double(), noise.double()
        assume(well_posed(policy, world, state, noise))
        truth = policy_gradient(policy, world, state, noise, method=Autograd())
        # imagined states of 1e20, squared by a LayerNorm, overflow float32 in autograd
        assume(np.isfinite(relative_error(single["autograd"].gradient, truth.gradient)))
        for name, result in single.items():
            errors[name].append(relative_error(result.gradient, truth.gradient))

    collect()
    percentiles = {name: np.percentile(error, [50, 90]) for name, error in errors.items()}
    for got in percentiles.values():
        assert (got <= 2 * percentiles["autograd"]).all(), percentiles


@property_cases(0.05)
@given(case=cases(max_M=3), seed=st.integers(0, 99))
def test_same_inputs_same_bits_and_inputs_untouched(case, seed):
    policy, world, state, noise = case.build()
    before = [x.clone() for x in (state, noise, *policy.parameters())]
    for method in (Forward(), Adjoint(), Auto()):
        first = policy_gradient(policy, world, state, noise, method=method)
        torch.manual_seed(seed)  # no hidden use of the global generator
        second = policy_gradient(policy, world, state, noise, method=method)
        assert torch.equal(first.value, second.value)
        assert all(torch.equal(first.gradient[k], second.gradient[k]) for k in first.gradient)
    assert all(torch.equal(a, b) for a, b in zip(before, (state, noise, *policy.parameters()), strict=True))


@pytest.mark.parametrize(("d", "m", "H", "M"), [(11, 3, 5, 16), (17, 6, 3, 7), (29, 8, 2, 5), (1, 1, 1, 1)])
def test_task_sizes(d, m, H, M):
    """The dimensions of the benchmarks, where the factored form changes from columns to unit directions."""
    from tests.strategies import Case

    nets = dict(hidden=(32, 32), activation="relu", layer_norm=False, residual=False)
    case = Case(
        d, m, 2, M, H, True, False, nets, ("diffusion", dict(steps=5, **nets)), nets, {**nets, "layer_norm": True}, 0.99, 3
    )
    problem = case.build()
    reference = policy_gradient(*problem, method=Autograd())
    for method in EXACT.values():
        assert relative_error(policy_gradient(*problem, method=method).gradient, reference.gradient) <= 1e-12


def test_rows_do_not_depend_on_their_neighbours():
    """A row's gradient in a batch of 3 is that of the row alone, to rounding (the BLAS may sum in another order)."""
    from tests.strategies import Case

    nets = dict(hidden=(16, 16), activation="silu", layer_norm=False, residual=True)
    case = Case(4, 2, 3, 4, 3, True, False, nets, ("diffusion", dict(steps=4, **nets)), nets, nets, 0.9, 5)
    policy, world, state, noise = case.build()
    whole = policy_gradient(policy, world, state, noise, method=Forward())
    changed = state.clone()
    changed[1:] += 1.0
    again = policy_gradient(policy, world, changed, noise, method=Forward())
    for k, g in whole.gradient.items():
        torch.testing.assert_close(again.gradient[k][0], g[0], rtol=1e-13, atol=1e-15)
        assert not torch.allclose(again.gradient[k][1], g[1])


@property_cases(0.03)
@given(case=cases(max_H=2, max_M=2), mode=st.sampled_from(["inference", "no grad", "autocast", "enabled"]))
def test_the_callers_mode_changes_nothing(case, mode):
    problem = case.build()
    entered = {
        "inference": torch.inference_mode,
        "no grad": torch.no_grad,
        "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
        "enabled": torch.enable_grad,
    }[mode]
    for method in (Forward(), Adjoint(), Autograd()):
        expected = policy_gradient(*problem, method=method)
        with entered():
            policy, world, state, noise = problem
            got = policy_gradient(policy, world, state.clone(), noise.clone(), method=method)
        assert torch.equal(got.value, expected.value)
        assert all(torch.equal(got.gradient[k], expected.gradient[k]) for k in expected.gradient)
        assert not any(g.is_inference() or g.requires_grad for g in got.gradient.values())


@pytest.mark.parametrize("method", ["adjoint", Adjoint, None, 3])
def test_a_method_is_an_object(method):
    from tests.strategies import Case

    nets = dict(hidden=(4,), activation="relu", layer_norm=False, residual=False)
    problem = Case(2, 1, 1, 1, 1, False, True, nets, ("deterministic", nets), nets, nets, 0.9, 0).build()
    with pytest.raises(ValueError, match=r"method: expected .*Forward\(\), Adjoint\(\), .* got "):
        policy_gradient(*problem, method=method)
