"""Ensembles and multi-step models in the CPU kernels, against their plain twins; what is no chain of one network."""

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from jacrec import Adjoint, Auto, Autograd, EnsembleDynamics, MultiStep, MultiStepDynamics, policy_gradient
from jacrec.engine.shapes import problem as check
from jacrec.kernels.cpu.gradient import plans
from tests.conftest import property_cases
from tests.cpu_cases import FUSED, decide, problem_of, same_decision
from tests.engine.test_multistep import problems
from tests.oracles import relative_error, well_posed
from tests.strategies import shake

EXACT = MultiStep(kernel="fused")


@pytest.fixture(autouse=True)
def _fresh():
    plans.forget()


@property_cases(0.08)
@given(problem=problems(foreign=False), updates=st.integers(0, 2))
def test_a_multi_step_model_in_the_kernels(problem, updates):
    f, H = problem[1].dynamics, problem[3].shape[-3]
    assume(f.passes(H) == H)
    assume(well_posed(*problem))
    for _ in range(2):  # made anew, and kept
        plain, fused = (policy_gradient(*problem, method=method) for method in (MultiStep(), EXACT))
        assert relative_error(fused.gradient, plain.gradient) < 1e-12
        torch.testing.assert_close(fused.value, plain.value, rtol=1e-12, atol=1e-13)
    fused, plain = (decide(problem, method, updates=updates, lr=1e-3) for method in (EXACT, MultiStep()))
    same_decision(fused[0], plain[0], fused[1], plain[1])


def multi_step(stochastic=False, H=3, M=5, N=2, hidden=(24, 24), batched=False, seed=0, **options):
    """policy, world of a multi-step model, state, noise."""
    policy, world, state, _ = problem_of(N=N, M=M, H=H, hidden=hidden, batched=batched, seed=seed)
    f = MultiStepDynamics(11, 3, hidden, horizon=H + 1, stochastic=stochastic, **options).double()
    shake(f)
    return policy, replace(world, dynamics=f), state, torch.randn(N, M, H, *f.noise_shape, dtype=torch.float64)


def ensemble(members=4, N=3, M=7, H=3, hidden=(24, 20), batched=False, seed=0, **options):
    """policy, world of an ensemble, state, noise."""
    policy, world, state, _ = problem_of(N=N, M=M, H=H, hidden=hidden, batched=batched, seed=seed)
    f = EnsembleDynamics(11, 3, hidden, members=members, **options).double()
    shake(f)
    return policy, replace(world, dynamics=f), state, torch.randn(N, M, H, 2, 11, dtype=torch.float64)


MODELS = pytest.mark.parametrize(
    ("make", "options"),
    [
        (ensemble, {}),
        (ensemble, {"members": 1}),
        (ensemble, {"members": 40, "layer_norm": True, "residual": True}),
        (ensemble, {"batched": True, "target": "state"}),
        (multi_step, {}),
        (multi_step, {"stochastic": True}),
        (multi_step, {"stochastic": True, "batched": True, "layer_norm": True}),
        (multi_step, {"M": 35, "H": 1, "N": 1}),
    ],
)


@MODELS
@pytest.mark.parametrize("count", [1, 3])
def test_any_number_of_threads(monkeypatch, make, options, count):
    from jacrec.kernels.cpu.base import threads

    monkeypatch.setattr(torch, "get_num_threads", lambda: count)
    monkeypatch.setattr(threads, "LEAST_WORK", 1.0)
    problem = make(**options)
    expected, got, again = (policy_gradient(*problem, method=method) for method in (Autograd(), Auto(), Auto()))
    assert relative_error(got.gradient, expected.gradient) < 1e-12
    torch.testing.assert_close(got.value, expected.value, rtol=1e-12, atol=1e-13)
    assert all(torch.equal(got.gradient[k], again.gradient[k]) for k in got.gradient)


@MODELS
@pytest.mark.parametrize("change", ["in place", "through .data", "scales"])
def test_changes_are_seen(make, options, change):
    problem = make(**options)
    f = problem[1].dynamics
    policy_gradient(*problem)
    if change == "scales":
        for buffer in f.buffers():
            buffer.mul_(1.5)
    for p in f.parameters():
        (p.data if change == "through .data" else p.detach()).mul_(1.0 if change == "scales" else 1.1)
    expected, got = (policy_gradient(*problem, method=method) for method in (Autograd(), Auto()))
    assert relative_error(got.gradient, expected.gradient) < 1e-12


@MODELS
def test_auto_takes_the_kernels(make, options):
    choice = Auto().choose(check(*make(**options)))
    assert choice == (FUSED if make is ensemble else EXACT)


def test_a_team_is_for_chains_alone():
    problem = ensemble(N=1, M=1)
    alone, together = (policy_gradient(*problem, method=Adjoint(kernel="fused", team=team)) for team in (1, 2))
    assert all(torch.equal(alone.gradient[k], together.gradient[k]) for k in alone.gradient)


@pytest.mark.parametrize("make", [ensemble, multi_step])
def test_no_horizon(make):
    problem = make(H=0)
    expected, got = (policy_gradient(*problem, method=method) for method in (Autograd(), Auto()))
    assert relative_error(got.gradient, expected.gradient) < 1e-12


def test_an_ensembles_networks_have_to_be_as_many_as_it_says():
    problem = ensemble()
    problem[1].dynamics.members = 3
    with pytest.raises(ValueError, match=r"^dynamics.*(3|4)"):
        policy_gradient(*problem, method=FUSED)


def test_noise_that_is_no_number_reads_no_other_memory():
    policy, world, state, noise = ensemble(N=1)
    p = check(policy, world, state, noise)
    noise[0, 0, 0, 1, 0] = torch.nan
    object.__setattr__(p, "noise", noise)  # the checks refuse it from a caller
    value = FUSED.gradient(p).value
    assert value.shape == (1,)


def test_sweeps_that_are_not_exact_are_plain_torchs():
    problem = multi_step(sweeps=2)
    with pytest.raises(ValueError, match="got sweeps=2 of 3"):
        policy_gradient(*problem, method=EXACT)
    assert Auto().choose(check(*problem)) == MultiStep()
    problem[1].dynamics.sweeps = None
    assert Auto().choose(check(*problem)) == EXACT
    problem[1].dynamics.sweeps = 1
    assert Auto().choose(check(*problem)) == MultiStep()
    expected, got = (policy_gradient(*problem, method=method) for method in (Autograd(), Auto()))
    assert relative_error(got.gradient, expected.gradient) < 1e-12


def test_what_the_kernels_cannot_imagine_is_said():
    policy, world, state, _ = multi_step()
    with pytest.raises(ValueError, match="expected at most 4"):
        policy_gradient(policy, world, state, torch.zeros(2, 5, 6, 0, 11, dtype=torch.float64), method=EXACT)
    with pytest.raises(ValueError, match="the adjoint form is not that of MultiStepDynamics"):
        policy_gradient(policy, world, state, torch.zeros(2, 5, 3, 0, 11, dtype=torch.float64), method=FUSED)
    with pytest.raises(ValueError, match=r"MultiStep: expected .*MultiStepDynamics, got DiffusionDynamics"):
        policy_gradient(*problem_of(), method=EXACT)
    with pytest.raises(ValueError, match="kernel"):
        MultiStep(kernel="fast")
