"""The Triton kernels compile for a Hopper GPU, and fit it, on a machine that has none."""

import json
import os
import subprocess
import sys

import pytest

from tests import ROOT

LIMIT = 227 * 1024
"""bytes of shared memory that a program may have on an H100 or H200"""


@pytest.mark.slow
def test_every_kernel_compiles_and_fits(tmp_path):
    variables = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    variables.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-W", "error", "-m", "tests.triton_ahead"]
    root = ROOT
    done = subprocess.run(command, env=variables, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    kernels = [json.loads(line) for line in done.stdout.splitlines()]
    adjoint = ["chain_record_kernel", "chain_adjoint_kernel"]
    assert [k["kernel"] for k in kernels if k["dtype"] == "torch.float32"] == [
        "chain_forward_kernel",
        *adjoint,
        *adjoint,
        "rollout_kernel",
    ]
    assert [k["kernel"] for k in kernels if k["dtype"] == "torch.float64"] == ["chain_forward_kernel", *adjoint]
    assert all(k["shared"] <= LIMIT and k["binary"] > 0 and k["tensor_core"] for k in kernels)
