"""The fused CPU kernels against their plain twins and autodiff, in any number of threads and processes."""

import os
import subprocess
import sys
import threading
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from jacrec import Adjoint, Auto, Autograd, DeterministicDynamics, DiffusionDynamics, Forward, World, policy_gradient
from jacrec.engine.jacobians import chain as plain_chain
from jacrec.engine.shapes import problem as check
from jacrec.kernels.cpu.base import helpers, host, products, threads
from jacrec.kernels.cpu.base.tiles import integers
from jacrec.kernels.cpu.gradient import chain as fused_chain
from jacrec.kernels.cpu.gradient import plans, sized
from tests.conftest import property_cases
from tests.cpu_cases import FORWARD, FUSED, anchored, problem_of, team_of
from tests.oracles import looped_gradient, relative_error, well_posed
from tests.strategies import ForeignDynamics, cases, shake

TEAM = Adjoint(kernel="fused", team=2)


@pytest.fixture(autouse=True)
def _fresh():
    """Start every test with no workspace and no plans."""
    threads.forget_workspace()
    plans.forget()


def served(**options):
    """Random problems that the kernels claim to serve."""
    return cases(foreign=False, **options)


@property_cases(0.12)
@given(case=served(max_M=6), transposed=st.booleans())
def test_fused_agrees_with_the_plain_adjoint(case, transposed):
    problem = case.build()
    assume(well_posed(*problem))
    threads.forget_workspace()
    with patch.multiple(sized, LEAST_ROWS=1, LEAST_USES=1 if transposed else 10**9):
        expected, got = (policy_gradient(*problem, method=method) for method in (Adjoint(), FUSED))
    assert relative_error(got.gradient, expected.gradient) < 1e-12
    torch.testing.assert_close(got.value, expected.value, rtol=1e-12, atol=1e-13)
    for name, parameter in problem[0].named_parameters():
        assert got.gradient[name].shape == parameter.shape


@property_cases(0.01)
@given(case=served(max_H=2, max_M=3))
def test_fused_agrees_with_one_particle_at_a_time(case):
    policy, world, state, noise = case.build()
    assume(well_posed(policy, world, state, noise))
    got = policy_gradient(policy, world, state, noise, method=FUSED)
    if case.single:
        state, noise = state[None], noise[None]
    value, gradient = looped_gradient(policy, world, state, noise)
    if case.single and case.batched:
        value = value.squeeze(0)
    assert relative_error(got.gradient, gradient) < 1e-12
    torch.testing.assert_close(got.value.reshape(-1), value.reshape(-1), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("networks", [{}, {"activation": "gelu", "residual": True}, {"activation": "tanh", "layer_norm": True}])
@pytest.mark.parametrize(("B", "T"), [(1, 0), (1, 3), (5, 14), (33, 6)])
def test_the_chain_and_its_twin(networks, B, T):
    """Same arguments, same returns: values, tangents, cotangents, recorded and recomputed."""
    torch.manual_seed(B)
    f = DiffusionDynamics(11, 3, (20, 33, 33), steps=4, **networks).double()
    shake(f, 0.1)
    s, a, noise = (torch.randn(*shape, dtype=torch.float64) for shape in ((B, 11), (B, 3), (B, 5, 11)))
    ds, da, lam = (torch.randn(*shape, dtype=torch.float64) for shape in ((B, T, 11), (B, T, 3), (B, 11)))
    close = dict(rtol=1e-12, atol=1e-12)
    pushed = [chain.chain_forward(f, s, a, noise, ds, da) for chain in (fused_chain, plain_chain)]
    torch.testing.assert_close(*pushed, **close)
    for recompute in (False, True):
        answers = []
        for chain in (plain_chain, fused_chain):
            next_state, tape = chain.chain_record(f, s, a, noise, recompute=recompute)
            answers.append((next_state, *chain.chain_adjoint(f, tape, lam), *chain.chain_adjoint(f, tape, 2 * lam)))
        torch.testing.assert_close(*answers, **close)


@pytest.mark.parametrize("hidden", [(7,), (16, 16), (33, 12, 33), (40, 40, 40, 40)])
@pytest.mark.parametrize("M", [1, 3, 16, 17, 35])
def test_ragged_widths_and_particles(hidden, M):
    for networks in ({}, {"activation": "silu", "residual": True}, {"activation": "mish", "layer_norm": True}):
        problem = problem_of(hidden=hidden, M=M, **networks)
        expected, got, forward = (policy_gradient(*problem, method=method) for method in (Autograd(), FUSED, FORWARD))
        assert relative_error(got.gradient, expected.gradient) < 1e-12
        assert relative_error(forward.gradient, expected.gradient) < 1e-12


def test_deterministic_dynamics_and_no_horizon():
    policy, world, state, _ = problem_of()
    world = World(DeterministicDynamics(11, 3, (20, 20)).double(), world.reward, world.critic, 0.9)
    for H in (0, 1, 4):
        noise = torch.zeros(1, 4, H, 0, 11, dtype=torch.float64)
        expected, *found = (policy_gradient(policy, world, state, noise, method=m) for m in (Autograd(), FUSED, FORWARD))
        for got in found:
            assert relative_error(got.gradient, expected.gradient) < 1e-12


@pytest.mark.parametrize("activation", ["relu", "mish", "gelu"])
def test_float32_error_is_at_most_twice_plain_torchs(activation):
    ours, theirs = [], []
    for seed in range(40):
        exact = problem_of(hidden=(64, 64), M=8, K=5, seed=seed, activation=activation)
        reference = policy_gradient(*exact, method=Autograd()).gradient
        single = problem_of(hidden=(64, 64), M=8, K=5, seed=seed, activation=activation)
        parts = single[0].float(), single[1].to(torch.float32), single[2].float(), single[3].float()
        ours.append(relative_error(policy_gradient(*parts, method=FUSED).gradient, reference))
        theirs.append(relative_error(policy_gradient(*parts, method=Autograd()).gradient, reference))
    for quantile in (0.5, 0.9):
        assert np.quantile(ours, quantile) <= 2 * np.quantile(theirs, quantile)


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("method", [FUSED, FORWARD], ids=["adjoint", "forward"])
def test_any_number_of_threads(monkeypatch, batched, method, pool):
    problem = problem_of(N=3, M=7, batched=batched)
    monkeypatch.setattr(threads, "LEAST_WORK", 1.0)
    before = torch.get_num_threads()
    expected = policy_gradient(*problem, method=Adjoint())
    try:
        for count in (1, 2, 3, 5):
            torch.set_num_threads(count)
            plans.forget()  # so that LEAST_WORK is asked again
            got = policy_gradient(*problem, method=method)
            again = policy_gradient(*problem, method=method)
            assert torch.get_num_threads() == count
            assert relative_error(got.gradient, expected.gradient) < 1e-12
            assert all(torch.equal(got.gradient[k], again.gradient[k]) for k in got.gradient)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("shared", [False, True], ids=["two worlds", "one world"])
def test_two_callers_at_once(monkeypatch, shared):
    monkeypatch.setattr(threads, "LEAST_WORK", 1.0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    problems = [problem_of(seed=0 if shared else seed, M=20, hidden=(32, 32)) for seed in range(2)]
    if shared:
        problems[1] = problems[0]
    expected = [policy_gradient(*p, method=FUSED).gradient for p in problems]
    wrong = []

    def work(i):
        for _ in range(30):
            got = policy_gradient(*problems[i], method=FUSED).gradient
            wrong.extend(k for k in got if not torch.equal(got[k], expected[i][k]))

    workers = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_small_tiles_where_the_tape_is_long(monkeypatch):
    problem = problem_of(M=9)
    expected = policy_gradient(*problem, method=FUSED).gradient
    monkeypatch.setattr(sized, "TAPE_BYTES", 1)
    plans.forget()
    assert relative_error(policy_gradient(*problem, method=FUSED).gradient, expected) < 1e-13


def test_the_default_device_is_none_of_their_business():
    problem = problem_of()
    expected = policy_gradient(*problem, method=FUSED).gradient
    threads.forget_workspace()
    torch.set_default_device("meta")
    try:
        got = policy_gradient(*problem, method=FUSED).gradient
    finally:
        torch.set_default_device(None)
    assert all(torch.equal(got[k], expected[k]) for k in got)


def test_a_chains_arguments_are_checked():
    f = DiffusionDynamics(11, 3, (16,), steps=2)
    good = [torch.zeros(2, 11), torch.zeros(2, 3), torch.zeros(2, 3, 11), torch.zeros(2, 4, 11), torch.zeros(2, 4, 3)]
    bad_ones = (1, torch.zeros(2, 2)), (2, torch.zeros(2, 2, 11)), (4, torch.zeros(2, 3, 3)), (0, torch.zeros(2, 11).double())
    for i, bad in bad_ones:
        with pytest.raises(ValueError, match="expected"):
            fused_chain.chain_forward(f, *good[:i], bad, *good[i + 1 :])


def test_a_chains_tape_is_as_long_as_it_says():
    f = DiffusionDynamics(11, 3, (16,), steps=2)
    arguments = torch.zeros(2, 11), torch.zeros(2, 3), torch.zeros(2, 3, 11)
    _, tape = fused_chain.chain_record(f, *arguments, recompute=True)
    before = len(tape.job.addresses.kept)
    for _ in range(3):
        fused_chain.chain_adjoint(f, tape, torch.ones(2, 11))
    assert tape.tape is None
    assert len(tape.job.addresses.kept) == before


@pytest.mark.parametrize("H", [0, 1, 3])
@pytest.mark.parametrize(
    "networks",
    [
        {"hidden": (7,)},
        {"hidden": (40, 40, 40), "residual": True, "activation": "gelu"},
        {"hidden": (33, 33, 33), "residual": True, "activation": "mish", "layer_norm": True},
        {"hidden": (64, 48)},
    ],
)
def test_a_team_on_one_particle(monkeypatch, networks, H, pool):
    """Two threads share one particle's layers."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    for seed in range(3):
        problem = problem_of(M=1, H=H, seed=seed, **networks)
        if seed:
            problem = anchored(problem, terminal=seed == 2 and H > 0)
        assert team_of(plans.plan_or_reason(*problem[:3]).job(check(*problem), 2).row) == 2
        got, again = (policy_gradient(*problem, method=TEAM).gradient for _ in range(2))
        assert relative_error(got, policy_gradient(*problem, method=Autograd()).gradient) < 1e-12
        assert all(torch.equal(got[k], again[k]) for k in got)


def test_missing_team_members_are_not_waited_for(monkeypatch):
    """One thread where two were requested: it does all the work, with the same bits."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    for hidden in ((33, 33), (64, 48), (256, 256)):
        problem = problem_of(M=1, hidden=hidden, layer_norm=hidden[0] == 64)
        expected = policy_gradient(*problem, method=Autograd()).gradient
        with monkeypatch.context() as patch:
            patch.setattr(helpers.Pool, "take", lambda self, count: [])
            alone = policy_gradient(*problem, method=TEAM).gradient
        together = policy_gradient(*problem, method=TEAM).gradient
        assert relative_error(alone, expected) < 1e-12
        assert all(torch.equal(alone[k], together[k]) for k in alone)


def test_a_forked_child_has_threads_of_its_own():
    """Its parent's are gone after a fork; a child that waited for them would wait for ever."""
    script = (
        "import os, torch\n"
        "from jacrec.kernels.cpu.base import threads\n"
        "from jacrec import DeterministicDynamics, World, policy_gradient\nfrom tests.cpu_cases import FUSED, problem_of, team_of\n"
        "torch.set_num_threads(2)\n"
        "threads.LEAST_WORK = 1.0\n"
        "policy, world, state, _ = problem_of()\n"
        # no product of torch's own: those wait for OpenMP in the child
        "world = World(DeterministicDynamics(11, 3, (20, 20)).double(), world.reward, world.critic, 0.9)\n"
        "noise = torch.zeros(1, 40, 2, 0, 11, dtype=torch.float64)\n"
        "gradient = lambda: policy_gradient(policy, world, state, noise, method=FUSED).gradient\n"
        "before = gradient()\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    after = gradient()\n"
        "    os._exit(7 if all(torch.equal(after[k], before[k]) for k in before) else 8)\n"
        "print('child', os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], env=env, capture_output=True, text=True, timeout=120, check=True
    )
    assert "child 7" in done.stdout


def test_critics_that_tie_share_the_gradient():
    policy, world, state, noise = problem_of()
    for p in world.critic.parameters():
        p.data[1] = p.data[0]
    expected, got = (policy_gradient(policy, world, state, noise, method=method) for method in (Adjoint(), FUSED))
    assert relative_error(got.gradient, expected.gradient) < 1e-12


def test_a_choice_that_cannot_be_served_raises_and_auto_falls_back(caplog):
    policy, world, state, _ = problem_of()
    foreign = World(ForeignDynamics(11, 3).double(), world.reward, world.critic, 0.9)
    noise = torch.randn(1, 2, 2, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"dynamics: expected .*MultiStepDynamics.*, got ForeignDynamics.*Auto"):
        policy_gradient(policy, foreign, state, noise, method=FUSED)
    strange = torch.nn.Sequential(policy)
    noise = torch.randn(1, 2, 2, 4, 11, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"policy: expected .*Actor.*, got Sequential"):
        policy_gradient(strange, world, state, noise, method=FUSED)
    from jacrec.engine import choice

    choice._logged.clear()
    for _ in range(2):
        policy_gradient(strange, world, state, noise, method=Auto())
    assert Auto().choose(check(strange, world, state, noise)) == Adjoint()
    assert sum("policy: expected an unmodified jacrec Actor" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: Adjoint(kernel="fast"),
        lambda: Forward(precision="ieee"),
        lambda: Adjoint(kernel="fused", precision="bf16"),
        lambda: Adjoint(team=2),
        lambda: Adjoint(kernel="fused", team=0),
        lambda: Forward("dense", kernel="fused"),
    ],
)
def test_options_that_do_not_exist(make):
    with pytest.raises(ValueError, match="expected"):
        make()


def test_tf32_is_not_of_a_cpu():
    with pytest.raises(ValueError, match='expected None or "ieee" on a CPU'):
        policy_gradient(*problem_of(), method=Adjoint(kernel="fused", precision="tf32"))


@host.part
def _multiply(like, job_address):
    job = integers(job_address)
    products.dot(like, job[0], job[1], job[2], job[3], job[1], job[4], job[1], job[5], job[4] + 2)
    products.axpy(like, job[6], 1, job[2], job[2], job[7], job[1], job[4], job[1], job[8], job[1])
    products.axpy_add(like, job[6], 1, job[2], job[2], job[7], job[1], job[4], job[1], job[8], job[1])
    products.transpose(like, job[3], job[1], job[4], job[1], job[9], job[4] + 2)


@given(R=st.integers(1, 19), O=st.integers(1, 40), vectors=st.integers(1, 5), double=st.booleans())
def test_products_of_any_size(R, O, vectors, double):
    """dot, axpy and transpose against numpy, with a margin around the result that has to stay as it was."""
    dtype = np.float64 if double else np.float32
    n = vectors * host.VECTOR_BYTES // np.dtype(dtype).itemsize
    rng = np.random.default_rng(R + 100 * O)
    x, w, turned = (rng.standard_normal(shape).astype(dtype) for shape in ((R, n), (O, n), (O, R)))
    y, z, w_t = np.full((R, O + 2), 7, dtype), np.full((R, n), np.nan, dtype), np.full((n, O + 2), 7, dtype)
    addresses = [array.ctypes.data for array in (x, w, y, turned, z, w_t)]
    job = np.array([addresses[0], n, R, addresses[1], O, addresses[2], addresses[3], addresses[1], *addresses[4:]])
    host.entry(_multiply, dtype).ctypes(job.ctypes.data)
    close = dict(rtol=0, atol=1e-12 if double else 2e-4)
    np.testing.assert_allclose(y[:, :O], x @ w.T, **close)
    assert (y[:, O:] == 7).all()
    np.testing.assert_allclose(z, 2 * (turned.T @ w), **close)
    np.testing.assert_array_equal(w_t[:, :O], w.T)
    assert (w_t[:, O:] == 7).all()


@pytest.mark.slow
def test_another_process_compiles_nothing(tmp_path):
    """What one process has compiled the next one reads from disk."""
    script = (
        "import torch\n"
        "from numba.core.ccallback import CFunc\n"
        "from jacrec import policy_gradient\nfrom tests.cpu_cases import FUSED, problem_of, team_of\n"
        "made = []\n"
        "old = CFunc._compile_uncached\n"
        "CFunc._compile_uncached = lambda self: (made.append(1), old(self))[1]\n"
        "policy_gradient(*problem_of(), method=FUSED)\n"
        "print('compiled', len(made))"
    )
    env = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    outputs = [
        subprocess.run([sys.executable, "-W", "ignore", "-c", script], env=env, capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    first, second = (int(done.stdout.split("compiled")[1]) for done in outputs)
    assert first == 3  # the copies, the gradient, and what follows it
    assert second == 0


@pytest.mark.slow
def test_two_threads_may_begin_at_once():
    """One loads the kernels while the other asks whether they keep anything."""
    script = (
        "import threading\n"
        "from jacrec import Auto, policy_gradient\nfrom tests.cpu_cases import problem_of\n"
        "problems, errors = [problem_of(seed=i) for i in range(6)], []\n"
        "def work(i):\n"
        "    threading.Event().wait(0.05 * i)\n"
        "    try:\n"
        "        policy_gradient(*problems[i], method=Auto())\n"
        "    except Exception as error:\n"
        "        errors.append(repr(error))\n"
        "threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]\n"
        "[t.start() for t in threads]\n[t.join() for t in threads]\n"
        "print('errors', errors)"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "errors []"
