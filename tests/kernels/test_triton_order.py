"""No copy from a kernel's scratch lies between a store to it and the next barrier, in what Triton compiles."""

import json
import os
import subprocess
import sys

import pytest

from tests import ROOT
from tests.triton_order import Kernel, violations

LOOP = """
tt.func public @kernel(%scratch: !tt.ptr<f32>, %weights: !tt.ptr<f32>) attributes {noinline = false} {
  %c0 = arith.constant 0 : i32
  %c64 = arith.constant 64 : i32
  %second = tt.addptr %scratch, %c64 : !tt.ptr<f32>, i32
  %a = tt.splat %scratch : !tt.ptr<f32> -> tensor<4x16x!tt.ptr<f32>>
  %b = tt.splat %second : !tt.ptr<f32> -> tensor<4x16x!tt.ptr<f32>>
  %w = tt.splat %weights : !tt.ptr<f32> -> tensor<4x16x!tt.ptr<f32>>
  %r:2 = scf.for %i = %c0 to %c64 step %c64 iter_args(%p = %a, %n = %c0) -> (tensor<4x16x!tt.ptr<f32>>, i32)  : i32 {
    tt.store %p, %n : tensor<4x16x!tt.ptr<f32>>
    %early = ttg.async_copy_global_to_local %w, %n : tensor<4x16x!tt.ptr<f32>>
    ttg.barrier all
    %sum = "tt.reduce"(%n) <{axis = 1 : i32}> ({
    ^bb0(%x: f32, %y: f32):
      tt.reduce.return %x : f32
    }) : (tensor<4x16xf32>) -> tensor<4xf32>
    %copy = ttg.async_copy_global_to_local %p, %n : tensor<4x16x!tt.ptr<f32>>
    tt.store %b, %n : tensor<4x16x!tt.ptr<f32>>
    gpu.barrier
    %other = ttg.async_copy_global_to_local %b, %n : tensor<4x16x!tt.ptr<f32>>
  }
}
"""


def test_missing_barriers_are_seen():
    kernel = Kernel(LOOP, 64)
    assert violations(kernel) == []
    lines = LOOP.splitlines()
    first, second = (next(i for i, line in enumerate(lines) if word in line) for word in ("ttg.barrier", "gpu.barrier"))
    assert any("reads buffer 0 of %scratch" in x for x in violations(kernel, first))
    found = violations(kernel, second)
    assert any("reads buffer 1" in x for x in found)
    # around the loop: the next turn stores what this one's copy may still read
    assert any("stores to buffer 0" in x for x in found)


@pytest.mark.slow
def test_compiled_kernels_keep_the_order(tmp_path):
    variables = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    variables.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-W", "error", "-m", "tests.triton_order", "--quick"]
    done = subprocess.run(command, env=variables, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    kernels = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(kernels) == 6
    for kernel in kernels:
        assert kernel["violations"] == [], kernel
        # the examination sees: most barriers could not be missing
        assert kernel["copies"] >= 40
        assert kernel["needed"] >= kernel["barriers"] / 2, kernel
