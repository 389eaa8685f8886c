"""The Triton kernels compile for a Hopper GPU, and fit it, on a machine that has none."""

import importlib
import json
import os
import subprocess
import sys

import pytest

from jacrec.kernels import launch, rollout
from tests import ROOT

LIMIT = 227 * 1024
"""bytes of shared memory that a program may have on an H100 or H200"""


def compiled(tmp_path, *arguments):
    """What tests/triton_ahead.py prints, by row."""
    variables = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    variables.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-W", "error", "-m", "tests.triton_ahead", *arguments]
    done = subprocess.run(command, env=variables, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_every_kernel_compiles_and_fits(tmp_path):
    kernels = compiled(tmp_path)
    adjoint = ["chain_record_kernel", "chain_adjoint_kernel"]
    assert [k["kernel"] for k in kernels if k["dtype"] == "float32"] == [
        "chain_forward_kernel",
        *adjoint,
        *adjoint,
        "rollout_kernel",
    ]
    assert [k["kernel"] for k in kernels if k["dtype"] == "float64"] == ["chain_forward_kernel", *adjoint]
    assert all(k["shared"] <= LIMIT and k["binary"] > 0 and k["tensor_core"] for k in kernels)
    # 64 particles of each form: spilled registers would be reads and writes of memory
    assert all(k["stack"] == 0 for k in kernels)


@pytest.mark.slow
def test_every_specialisation_of_arguments_compiles(tmp_path):
    """With the JIT's own rules: one particle, one tangent, one of everything else, pointers that 16 divides or not."""
    kernels = compiled(tmp_path, "--stage", "ttir", "--specialisations")
    integers = {
        "chain_forward_kernel": {"B", "NOISE_STRIDE", "T", "ROUNDS"},
        "chain_record_kernel": {"B", "NOISE_STRIDE", "ROUNDS"},
        "chain_adjoint_kernel": {"B", "ROUNDS"},
        "rollout_kernel": {"PARTICLES", "GROUP"},
    }
    # run-time integers whatever their value: sizes of a batch cost no compilation of their own
    assert all(k["integers"].keys() == integers[k["kernel"]] for k in kernels)
    for name, arguments in integers.items():
        own = [k for k in kernels if k["kernel"] == name]
        assert set().union(*(k["ones"] for k in own)) == arguments
        assert len({k["aligned"] for k in own}) > 1
    assert sum(k["launches"] for k in kernels) > 5 * len(kernels)


def test_the_chosen_tiles_are_recorded_without_stack(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    record = json.loads((ROOT / "benchmarks/results/kernel_resources_sm_90.json").read_text(encoding="utf-8"))
    rows, now = record["rows"], importlib.import_module("kernel_resources").sources()
    assert record["environment"]["sources"] == now, "recorded of other kernels; run python benchmarks/kernel_resources.py"
    tiles = [(form, "float32", tile) for tile in launch.TILES.values() for form in ("forward", "adjoint", "recompute")]
    tiles += [("rollout", "float32", tile) for tile in rollout.ROLLOUT_TILES]
    tiles += [(form, "float64", launch.DOUBLE) for form in ("forward", "adjoint", "recompute", "rollout")]
    for form, dtype, tile in tiles:
        sizes = {"form": form, "dtype": dtype} | {k: getattr(tile, k) for k in ("rows", "columns", "inner", "warps", "stages")}
        found = [row for row in rows if all(row[k] == v for k, v in sizes.items())]
        assert found, f"not recorded: {sizes}; run python benchmarks/kernel_resources.py"
        for row in found:
            assert row["chosen"]
            assert row["stack"] == 0 or (form, tile.rows) == ("rollout", 64)
            assert row["stack"] <= 16
            assert row["shared"] <= LIMIT
            assert row["resident"] >= tile.resident
