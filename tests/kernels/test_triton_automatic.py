"""`Auto` on a GPU: which form it takes, and what it does where a kernel cannot be built or is wrong. Failures are mocked."""

import logging
import re
import subprocess
import sys
from unittest import mock

import pytest
import torch
from triton.compiler import CompilationError
from triton.runtime.errors import OutOfResources, PTXASError

from jacrec import Autograd, DiffusionDynamics, World
from jacrec.engine.methods import policy_gradient
from jacrec.engine.shapes import problem
from jacrec.kernels import automatic, chain_adjoint, chain_forward, gradient, kept, launch, rollout, served
from jacrec.kernels.failures import KernelBuildError, is_build_failure
from tests.oracles import relative_error
from tests.strategies import foreign_reward
from tests.triton_cases import imagine

BUILD_FAILURES = [
    CompilationError("source", None, "'int' object has no attribute 'to'"),
    PTXASError("Internal error"),
    OutOfResources(300_000, 232_448, "shared memory"),
    RuntimeError("Failed to find C compiler. Please specify via CC environment variable or set triton.knobs.build.impl."),
    RuntimeError("PassManager::run failed"),
    RuntimeError("0 active drivers ([]). There should only be one."),
    subprocess.CalledProcessError(1, ["gcc"]),
    FileNotFoundError("ptxas"),
    ImportError("__triton_launcher.so: failed to map segment from shared object"),
]
RUN_TIME_ERRORS = [
    RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
    getattr(torch, "AcceleratorError", RuntimeError)("CUDA error: unspecified launch failure"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    ValueError("wrong argument"),
]


def names(error):
    return f"{type(error).__name__} {str(error)[:20]}"


@pytest.fixture(autouse=True)
def fresh():
    automatic.forget()
    kept.forget()
    yield
    automatic.forget()
    kept.forget()


@pytest.fixture
def case():
    args = imagine(1, 2, 2, False, dict(hidden=(7,), activation="silu"), 0)
    return problem(*args), policy_gradient(*args, method=Autograd())


@pytest.fixture(params=["rollout", "forward", "adjoint"])
def form(request):
    one_launch = [mock.patch.object(x, "worthwhile", return_value=request.param == "rollout") for x in (automatic, gradient)]
    other = "adjoint" if request.param == "forward" else "forward"
    with one_launch[0], one_launch[1], mock.patch.dict(automatic.OPERATIONS, {other: (10**6, 0)}):
        yield request.param


class Kernel:
    """A kernel whose launch raises."""

    __name__ = "broken_kernel"

    def __init__(self, error):
        self.error, self.launches = error, 0

    def __getitem__(self, grid):
        return self.run

    def run(self, *arguments, **named):
        self.launches += 1
        raise self.error


def broken(error):
    """All kernels raise `error` at their launch."""
    kernel = Kernel(error)
    places = (
        (chain_forward, "chain_forward_kernel"),
        (chain_adjoint, "chain_record_kernel"),
        (chain_adjoint, "chain_adjoint_kernel"),
        (rollout, "rollout_kernel"),
    )
    patches = [mock.patch.object(module, name, kernel) for module, name in places]
    for patch in patches:
        patch.start()
    return kernel, patches


@pytest.fixture(params=BUILD_FAILURES, ids=names)
def unbuildable(request):
    kernel, patches = broken(request.param)
    yield kernel
    for patch in patches:
        patch.stop()


def test_auto_takes_plain_torch_where_a_kernel_cannot_be_built(case, form, unbuildable, caplog):
    p, exact = case
    with caplog.at_level(logging.WARNING, "jacrec"):
        for _ in range(3):
            got = gradient.auto_gradient(p)
            assert relative_error(got.gradient, exact.gradient) < 1e-12
        launches = unbuildable.launches
        gradient.auto_gradient(p)
    # once per size: it is neither compiled nor told again
    assert unbuildable.launches == launches <= 3
    (record,) = caplog.records
    for word in (form, "N 1, M 2, H 2", "float64", "broken_kernel", type(unbuildable.error).__name__):
        assert word in record.getMessage()
    (reason,) = automatic.refusals()
    assert "broken_kernel" in reason


@pytest.mark.parametrize("error", BUILD_FAILURES, ids=names)
def test_explicit_kernels_raise_what_failed(case, error):
    _, patches = broken(error)
    try:
        for compute in (gradient.forward_gradient, gradient.adjoint_gradient):
            with pytest.raises(KernelBuildError, match=r"broken_kernel.*rows.*columns.*grid") as caught:
                compute(case[0])
            assert caught.value.__cause__ is error
    finally:
        for patch in patches:
            patch.stop()


@pytest.mark.parametrize("error", RUN_TIME_ERRORS, ids=names)
def test_errors_of_a_running_gpu_are_raised(case, form, error):
    assert not is_build_failure(error)
    kernel, patches = broken(error)
    try:
        for _ in range(2):
            with pytest.raises(type(error)) as caught:
                gradient.auto_gradient(case[0])
            assert caught.value is error
        assert kernel.launches == 2
    finally:
        for patch in patches:
            patch.stop()
    assert automatic.refusals() == []


@pytest.mark.parametrize("error", [IndexError("map::at"), AssertionError(), KeyError("sm_100a")], ids=names)
def test_a_fault_of_the_compiler_is_no_fault_of_the_caller(error):
    def catch(module):
        scope = {"__name__": module, "error": error}
        exec("def build(): raise error", scope)
        try:
            scope["build"]()
        except Exception as caught:
            return caught.with_traceback(caught.__traceback__)

    assert is_build_failure(catch("triton.compiler.compiler"))
    error.__traceback__ = None
    assert not is_build_failure(catch("tests"))


def test_a_refusal_by_another_thread_stays(case, form):
    p, exact = case
    kind = automatic.choose(p).kind

    def refused_meanwhile(*_):
        automatic._verdicts[kind] = "wrong"

    with mock.patch.object(automatic, "disagreement", side_effect=refused_meanwhile):
        gradient.auto_gradient(p)
    with mock.patch.dict(gradient.FORMS, {form: None}):
        assert relative_error(gradient.auto_gradient(p).gradient, exact.gradient) < 1e-12


def test_running_out_of_memory_in_a_kernel_is_raised(case, form):
    def full(p):
        raise torch.OutOfMemoryError("CUDA out of memory")

    compute, calls = wrong(gradient.FORMS[form], times=1)

    def once(p):
        return full(p) if calls else compute(p)

    with mock.patch.dict(gradient.FORMS, {form: once}), pytest.raises(torch.OutOfMemoryError):
        gradient.auto_gradient(case[0])


def test_torch_without_an_exception_of_accelerators_will_do():
    code = (
        "import torch; vars(torch).pop('AcceleratorError', None); from jacrec.kernels.failures import is_build_failure as built\n"
        "print(*map(built, (torch.OutOfMemoryError('full'), RuntimeError('CUDA error: x'), RuntimeError('PassManager'))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False", "True"]


def test_another_size_is_tried_again(case, unbuildable):
    gradient.auto_gradient(case[0])
    first = unbuildable.launches
    policy, world, state, noise = imagine(1, 2, 1, False, dict(hidden=(9,)), 0)
    gradient.auto_gradient(problem(policy, world, state, noise))
    assert unbuildable.launches > first
    assert len(automatic.refusals()) == 2


def wrong(compute, times=10**6, factor=1.01):
    """The first `times` answers are not right."""
    calls = []

    def other(p):
        calls.append(p)
        got = compute(p)
        if len(calls) <= times:
            next(iter(got.gradient.values())).mul_(factor)
        return got

    return other, calls


def test_a_wrong_kernel_is_refused_at_its_first_result(case, form, caplog):
    p, exact = case
    compute, calls = wrong(gradient.FORMS[form])
    with mock.patch.dict(gradient.FORMS, {form: compute}), caplog.at_level(logging.WARNING, "jacrec"):
        for _ in range(3):
            assert relative_error(gradient.auto_gradient(p).gradient, exact.gradient) < 1e-12
    assert len(calls) == automatic.LOOKS
    (record,) = caplog.records
    assert "differs from plain torch's by" in record.getMessage()


@pytest.mark.parametrize("factor", [1.01, float("nan")])
def test_one_mismatch_may_be_a_kink(case, form, factor):
    compute, calls = wrong(gradient.FORMS[form], times=1, factor=factor)
    with mock.patch.dict(gradient.FORMS, {form: compute}):
        for _ in range(3):
            gradient.auto_gradient(case[0])
    assert len(calls) == 4
    assert automatic.refusals() == []


def test_the_first_result_alone_is_compared(case, form):
    with mock.patch.object(automatic, "plain", side_effect=automatic.plain) as plain:
        for change in range(3):
            policy, world = case[0].policy, case[0].world
            gradient.auto_gradient(problem(policy, world, case[0].state + change, case[0].noise))
        assert plain.call_count == 1
        float_case = imagine(1, 2, 2, False, dict(hidden=(7,), activation="silu"), 0)
        policy, world, state, noise = (float_case[0].float(), float_case[1].to(torch.float32), *float_case[2:])
        gradient.auto_gradient(problem(policy, world, state.float(), noise.float()))
        assert plain.call_count == 2


def test_no_verdict_where_plain_torch_has_none(case, form):
    p = case[0]
    with mock.patch.object(automatic, "plain", side_effect=torch.OutOfMemoryError("CUDA out of memory")):
        gradient.auto_gradient(p)
    with torch.no_grad():
        p.world.critic.mlp.layers[1].bias.fill_(float("inf"))
    automatic.forget()
    gradient.auto_gradient(p)
    assert automatic.refusals() == []


def test_one_launch_wherever_it_fits_one_wave():
    def chosen(M, H=3, reward=None, processors=132, steps=20):
        policy, world, state, _ = imagine(1, 1, H, False, dict(hidden=(7, 7, 7)), 0, d=11, m=3)
        dynamics = DiffusionDynamics(11, 3, (7, 7, 7), steps=steps)
        world = World(dynamics, reward or world.reward.float(), world.critic.float(), 0.99)
        p = problem(policy.float(), world, state.float(), torch.zeros(1, M, H, *dynamics.noise_shape))
        places = [mock.patch.object(part, "multiprocessors", return_value=processors) for part in (launch, rollout, automatic)]
        with places[0], places[1], places[2]:
            return automatic.choose(p)

    # 12 columns of H = 3: a tile of 16 rows holds one particle, one of 64 rows four
    assert [chosen(M).form for M in (1, 64, 132, 133, 528)] == ["rollout"] * 5
    assert [chosen(M).form for M in (529, 4096)] == ["adjoint"] * 2
    assert chosen(256, processors=16).form == "adjoint"
    assert chosen(1).kind == chosen(64).kind != chosen(133).kind
    # few particles of a third-party reward: more operations, but half as many layers behind each other
    assert chosen(1, reward=foreign_reward).form == "forward"
    assert chosen(1, reward=foreign_reward, steps=2).form == chosen(4096, reward=foreign_reward).form == "adjoint"


@pytest.mark.parametrize(
    ("hip", "capability", "words"),
    [
        (None, (8, 0), None),
        (None, (9, 0), None),
        (None, (7, 5), r"compute capability of at least 8.0, got 7.5 \(Some GPU\)"),
        ("6.4", (9, 4), "an NVIDIA GPU, got one of ROCm 6.4"),
    ],
)
def test_old_gpus_and_rocm_are_refused(hip, capability, words):
    device = torch.device("cuda", 0)
    cuda = dict(get_device_capability=lambda _: capability, get_device_name=lambda _: "Some GPU")
    served.compute_capability.cache_clear()
    compiled, version = (
        mock.patch.object(served, "interpreted", return_value=False),
        mock.patch.object(torch.version, "hip", hip),
    )
    with compiled, version, mock.patch.multiple(torch.cuda, **cuda):
        reason = served._device_reason(device)
    served.compute_capability.cache_clear()
    assert reason is None if words is None else re.search(words, reason)
