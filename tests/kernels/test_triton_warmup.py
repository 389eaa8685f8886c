"""Kernels are compiled ahead of their use, without a launch."""

from unittest import mock

import pytest
from triton.runtime._async_compile import active_mode

from jacrec.engine.shapes import problem
from jacrec.kernels import chain_adjoint, chain_forward, graphs, launch, rollout
from jacrec.kernels.failures import KernelBuildError
from jacrec.kernels.warmup import warm_up
from tests.triton_cases import imagine


class Kernel:
    """Records what is compiled, and what is launched."""

    def __init__(self, name, error=None):
        self.__name__, self.error, self.compiled = name, error, []

    def run(self, *arguments, grid, warmup, **named):
        assert warmup
        assert active_mode.get() is not None
        if self.error is not None:
            raise self.error
        self.compiled.append(named["SHAPE"])

    def __getitem__(self, grid):
        raise AssertionError("launched")


NAMES = {
    "chain_forward_kernel": chain_forward,
    "chain_record_kernel": chain_adjoint,
    "chain_adjoint_kernel": chain_adjoint,
    "rollout_kernel": rollout,
}


@pytest.fixture
def kernels():
    made = {name: Kernel(name) for name in NAMES}
    patches = [mock.patch.object(module, name, made[name]) for name, module in NAMES.items()]
    for patch in patches:
        patch.start()
    yield made
    for patch in patches:
        patch.stop()


def test_what_a_gradient_launches_is_compiled_and_not_launched(kernels):
    problems = [problem(*imagine(1, M, 2, False, dict(hidden=(7,)), 0)) for M in (1, 200)]
    with mock.patch.object(graphs, "recordable", return_value=True), mock.patch.object(graphs, "replayed") as replayed:
        assert warm_up(problems, ("auto", "adjoint")) >= 0
        assert not replayed.called
    counts = {name: len(kernel.compiled) for name, kernel in kernels.items()}
    # one multiprocessor, interpreted: a rollout of one particle is one launch
    assert counts == {"chain_forward_kernel": 0, "chain_record_kernel": 6, "chain_adjoint_kernel": 6, "rollout_kernel": 1}
    assert not launch.is_compiling()
    assert active_mode.get() is None


def test_failures_have_their_type_and_end_the_mode(kernels):
    kernels["chain_record_kernel"].error = RuntimeError("PassManager::run failed")
    p = problem(*imagine(1, 2, 1, False, dict(hidden=(7,)), 0))
    with pytest.raises(KernelBuildError, match="PassManager"):
        warm_up([p], ("adjoint",))
    assert active_mode.get() is None
    assert not launch.is_compiling()
