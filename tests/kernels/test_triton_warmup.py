"""Kernels are compiled ahead of their use, several at once, without a launch."""

import inspect
import json
import os
import subprocess
import sys
import threading
from contextlib import ExitStack
from unittest import mock

import pytest
from triton.runtime._async_compile import AsyncCompileMode, active_mode

from jacrec.engine.shapes import problem
from jacrec.kernels import chain_adjoint, chain_forward, graphs, launch, rollout, warmup
from jacrec.kernels.failures import KernelBuildError
from jacrec.kernels.warmup import warm_up
from tests import ROOT
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


class Submitted(Kernel):
    """Leaves its compilation to the active mode, as Triton's do."""

    def __init__(self, name, compile_one):
        super().__init__(name)
        self.compile_one = compile_one

    def run(self, *arguments, grid, warmup, **named):
        mode = active_mode.get()
        rest = len(inspect.signature(mode.submit).parameters) - 2  # more of them in later versions
        return mode.submit((self.__name__, named["SHAPE"]), lambda: self.compile_one(self), *[self.compiled.append] * rest)


@pytest.fixture
def submitted():
    """Kernels by name; `compile_one(kernel)` is what a thread of the pool does."""

    def make(compile_one):
        made = {name: Submitted(name, compile_one) for name in NAMES}
        for name, module in NAMES.items():
            stack.enter_context(mock.patch.object(module, name, made[name]))
        return made

    with ExitStack() as stack:
        yield make


def test_compilations_run_side_by_side(submitted):
    both, inside, most = threading.Barrier(2, timeout=60), [], []
    p = problem(*imagine(1, 2, 1, False, dict(hidden=(7,)), 0))

    def meet(kernel):
        both.wait()  # for the other kernel's thread
        return kernel.__name__

    made = submitted(meet)
    warm_up([p], ("adjoint",), workers=2)
    assert made["chain_record_kernel"].compiled == ["chain_record_kernel"]
    assert made["chain_adjoint_kernel"].compiled == ["chain_adjoint_kernel"]

    def count(kernel):
        inside.append(threading.get_ident())
        most.append(len(set(inside)))
        return kernel

    submitted(count)
    warm_up([p], ("adjoint",), workers=1)
    assert most == [1, 1]
    assert inside[0] != threading.get_ident()


def test_one_failure_is_named_and_the_rest_is_kept(submitted):
    def compile_one(kernel):
        if kernel.__name__ == "chain_record_kernel":
            raise RuntimeError("PassManager::run failed")
        return kernel.__name__

    made = submitted(compile_one)
    problems = [problem(*imagine(1, M, 2, False, dict(hidden=(7,)), 0)) for M in (2, 200)]
    with pytest.raises(KernelBuildError, match=r"chain_record_kernel \(float64, tiles of 16 rows.*PassManager") as caught:
        warm_up(problems, ("adjoint",))
    assert "chain_adjoint_kernel" not in str(caught.value)
    assert made["chain_adjoint_kernel"].compiled
    assert active_mode.get() is None
    assert not launch.is_compiling()


def test_other_errors_are_raised_as_they_are(submitted):
    submitted(mock.Mock(side_effect=ValueError("wrong")))
    with pytest.raises(ValueError, match="wrong"):
        warm_up([problem(*imagine(1, 2, 1, False, dict(hidden=(7,)), 0))], ("adjoint",))
    assert active_mode.get() is None


def test_a_mode_that_stays_active_harms_nobody(kernels):
    """Triton 3.6 and 3.7 leave it so where a compilation failed."""

    class Staying(AsyncCompileMode):
        def __exit__(self, *error):
            pass

    with mock.patch.object(warmup, "AsyncCompileMode", Staying):
        warm_up([problem(*imagine(1, 2, 1, False, dict(hidden=(7,)), 0))], ("adjoint",))
    assert active_mode.get() is None


REAL = """
import json, sys, threading, time
from pathlib import Path
import triton
from tests.triton_ahead import absent_gpu, launch_chains
from jacrec import DiffusionDynamics
from jacrec.kernels import launch
from jacrec.kernels.failures import KernelBuildError
from jacrec.kernels.warmup import compile_calls

compile, inside, most = triton.compiler.compile, [], []

def compile_one(source, **options):
    inside.append(1)
    most.append(len(inside))
    try:
        if source.fn.__name__ == "chain_record_kernel":
            raise RuntimeError("PassManager::run failed")
        return compile(source, **options)
    finally:
        inside.pop()

triton.compiler.compile = compile_one
f = DiffusionDynamics(3, 2, hidden=(16,), steps=2)
with absent_gpu():
    try:
        compile_calls([lambda: launch_chains(f, 64, 3, recompute=(False,))], workers=3)
        failed = ""
    except KernelBuildError as error:
        failed = str(error)
    # in this process they are ready
    triton.compiler.compile = None
    with launch.compiling() as launches:
        launch_chains(f, 64, 3, recompute=(False,))
print(json.dumps({"failed": failed, "most": max(most), "ready": [type(made).__name__ for _, made in launches]}))
"""


@pytest.mark.slow
def test_triton_compiles_side_by_side_and_keeps_what_it_can(tmp_path):
    variables = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    variables.pop("TRITON_INTERPRET", None)
    done = subprocess.run([sys.executable, "-c", REAL], env=variables, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert (
        "chain_record_kernel (float32, tiles of 16 rows × 32 columns, grid (4, 1)): RuntimeError: PassManager"
        in found["failed"]
    )
    assert "chain_forward" not in found["failed"]
    assert found["most"] > 1
    assert found["ready"] == ["CompiledKernel", "KernelBuildError", "CompiledKernel"]
    assert {path.stem for path in tmp_path.rglob("*.cubin")} == {"chain_forward_kernel", "chain_adjoint_kernel"}
