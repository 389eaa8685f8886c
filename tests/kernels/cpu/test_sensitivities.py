"""The compiled forward form against plain torch: gradient, Jacobians, growth; the weights and norms of particles."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from jacrec import Autograd, Forward, gradient_signal, linearize, policy_gradient, state_growth
from jacrec.engine import diagnostics
from jacrec.engine import linearize as plain
from jacrec.engine.dispatch import compiled
from jacrec.engine.shapes import problem as check
from jacrec.kernels.cpu.base import host, products, threads
from jacrec.kernels.cpu.base.tiles import LISTED, integers
from jacrec.kernels.cpu.gradient import gradient, plans
from jacrec.kernels.cpu.gradient.sensitivities import GRADIENT
from tests.conftest import property_cases
from tests.cpu_cases import FORWARD, problem_of
from tests.oracles import relative_error, well_posed
from tests.strategies import cases


@pytest.fixture(autouse=True)
def _fresh():
    threads.forget_workspace()
    plans.forget()


def without_kernels(patch):
    """Let the diagnostics compute in plain torch."""
    for module in (diagnostics, plain):
        patch.setattr(module, "compiled", lambda p, form: None)


def same(got, expected, tolerance=1e-11):
    for name, a, b in zip(expected._fields, got, expected, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype), name
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}")


@property_cases(0.04)
@given(case=cases(foreign=False, max_H=6, max_M=3))
def test_the_gradient_agrees_with_the_plain_one(case):
    assume(case.dynamics[0] != "ensemble")
    problem = case.build()
    assume(well_posed(*problem))
    threads.forget_workspace()
    expected, got = (policy_gradient(*problem, method=method) for method in (Forward(), FORWARD))
    assert relative_error(got.gradient, expected.gradient) < 1e-12
    torch.testing.assert_close(got.value, expected.value, rtol=1e-12, atol=1e-13)


@property_cases(0.03)
@given(case=cases(max_H=4, max_M=4), count=st.integers(1, 3))
def test_all_of_it_is_that_of_plain_torch(case, count):
    assume(case.policy is not None and case.dynamics[0] not in ("foreign", "ensemble") and not isinstance(case.anchor, str))
    parts = case.build()
    assume(well_posed(*parts))
    p = check(*parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threads, "LEAST_WORK", 1.0)
        patch.setattr(torch, "get_num_threads", lambda: count)
        assert gradient.unsupported_reason(p, "forward") is None
        threads.forget_workspace()
        ends_in_base = p.world.anchor is not None and p.world.anchor.terminal
        assert (compiled(p, "forward") is None) == ends_in_base
        found, growth = None if ends_in_base else gradient.rollout_jacobians(p), state_growth(*parts)
        visited, signal = diagnostics.visit(p), gradient_signal(*parts) if case.M > 1 else None
        without_kernels(patch)
        if found is not None:
            same(found, plain.rollout_jacobians(p))
        torch.testing.assert_close(growth, state_growth(*parts), rtol=1e-9, atol=1e-12)
        expected = diagnostics.visit(p)
        for a, b in ((visited.value, expected.value), (visited.states, expected.states), (visited.w, expected.w)):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)
        if signal is not None:
            other = gradient_signal(*parts)
            size = float(other.square.max() + other.noise.max())
            for a, b in ((signal.square, other.square), (signal.noise, other.noise)):
                torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10 * size)
            assert relative_error(signal.estimate.gradient, other.estimate.gradient) < 1e-11


def test_it_is_in_compiled_code(monkeypatch):
    """Else these tests would compare plain torch with itself."""
    problem, asked = problem_of(), []
    for name in ("rollout_jacobians", "growth", "particle_squares", "visits"):
        real = getattr(gradient, name)
        monkeypatch.setattr(gradient, name, lambda *x, name=name, real=real: asked.append(name) or real(*x))
    linearize(*problem)
    state_growth(*problem)
    gradient_signal(*problem)
    diagnostics.visit(check(*problem))
    assert asked == ["rollout_jacobians", "growth", "particle_squares", "visits"]


def test_the_forward_forms_memory_does_not_grow_with_K():
    sizes = []
    for K in (2, 50):
        problem = problem_of(K=K)
        sizes.append(plans.plan_or_reason(*problem[:3]).job(check(*problem), kind=GRADIENT).sized.memory)
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("M", [1, 7, 40])
@pytest.mark.parametrize("H", [1, 6])
def test_tangents_behind_a_relu_without_active_units(M, H):
    """A layer all of whose units are off for every particle, and one with a few that are on."""
    problem = problem_of(M=M, H=H, hidden=(33, 40, 33))
    layers = problem[1].dynamics.denoiser.mlp.layers
    layers[1].bias.data[:37] = -100.0
    expected, got = (policy_gradient(*problem, method=method).gradient for method in (Autograd(), FORWARD))
    assert relative_error(got, expected) < 1e-12
    layers[2].bias.data[:] = -100.0
    expected, got = (policy_gradient(*problem, method=method).gradient for method in (Autograd(), FORWARD))
    assert relative_error(got, expected) < 1e-12


def test_float32_error_is_at_most_twice_the_plain_forms():
    ours, theirs = [], []
    for seed in range(20):
        exact = problem_of(hidden=(64, 64), M=8, K=5, H=3, seed=seed)
        reference = policy_gradient(*exact, method=Autograd()).gradient
        single = problem_of(hidden=(64, 64), M=8, K=5, H=3, seed=seed)
        parts = single[0].float(), single[1].to(torch.float32), single[2].float(), single[3].float()
        for errors, method in ((ours, FORWARD), (theirs, Forward())):
            errors.append(relative_error(policy_gradient(*parts, method=method).gradient, reference))
    for quantile in (0.5, 0.9):
        assert np.quantile(ours, quantile) <= 2 * np.quantile(theirs, quantile)


def test_a_reward_that_uses_the_kernels_itself():
    """Its own call takes the workspace that the path was computed in."""
    policy, world, state, noise = problem_of(M=3)
    own = problem_of(M=40, H=3, seed=1)

    def reward(s, a):
        policy_gradient(*own, method=FORWARD)
        return s.sin().sum(-1) * a.sum(-1)

    busy, quiet = replace(world, reward=reward), replace(world, reward=lambda s, a: s.sin().sum(-1) * a.sum(-1))
    found, expected = (linearize(policy, w, state, noise).w for w in (busy, quiet))
    assert torch.equal(found, expected)


@host.part
def _multiply_listed(like, job_address):
    job = integers(job_address)
    products.dot_listed(like, job[0], job[1], job[2], job[3], job[1], job[4], job[5], job[1], job[6], job[5] + 1)


@given(R=st.integers(1, 19), count=st.integers(0, 6), vectors=st.integers(1, 3), double=st.booleans())
def test_products_of_listed_rows(R, count, vectors, double):
    """Against numpy, with a margin beside the result that has to stay as it was."""
    dtype = np.float64 if double else np.float32
    n = vectors * host.VECTOR_BYTES // np.dtype(dtype).itemsize
    rng = np.random.default_rng(R + 100 * count)
    x, w = (rng.standard_normal(shape).astype(dtype) for shape in ((R, n), (50, n)))
    index, y = rng.integers(0, 50, LISTED * count), np.full((R, LISTED * count + 1), 7, dtype)
    job = np.array([x.ctypes.data, n, R, w.ctypes.data, index.ctypes.data, LISTED * count, y.ctypes.data])
    host.entry(_multiply_listed, dtype).ctypes(job.ctypes.data)
    np.testing.assert_allclose(y[:, :-1], x @ w[index].T, rtol=0, atol=1e-12 if double else 1e-4)
    assert (y[:, -1] == 7).all()
