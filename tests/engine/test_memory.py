"""Forward's memory does not grow with K, and the instrument that says so is exact."""

import importlib
from functools import partial

import pytest
import torch

from tests import ROOT

MIB = 2**20


@pytest.fixture
def memory(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("memory")


def test_the_instrument_counts_what_is_held_at_once(memory):
    def two_at_a_time():
        for _ in range(3):
            a = torch.zeros(MIB)
            b = a + 1  # 4 MiB each
            del a, b

    assert memory.peak_cpu(two_at_a_time)[1] == pytest.approx(8 * MIB, abs=1024)


def test_forward_is_flat_in_K_and_autograd_is_not(memory):
    peak = {
        (name, K): memory.peak_cpu(partial(memory.gradient, memory.problem(K, "cpu"), name))[1]
        for name in ("Forward", "Autograd")
        for K in (4, 16)
    }
    table_row = 4 * (256 + 32)  # of the first layer's table, and of the step embedding that it is made of
    assert abs(peak["Forward", 16] - peak["Forward", 4]) <= 12 * table_row + 1024
    assert peak["Autograd", 16] > 2 * peak["Autograd", 4]
