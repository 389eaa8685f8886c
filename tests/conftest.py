"""Shared by all tests: Hypothesis profiles, the number of property cases, and uninitialised memory filled with NaN.

Property tests draw the same cases each time; `--hypothesis-profile random` draws new ones, and keeps those that fail in
.hypothesis, from where later random runs replay them.
"""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis.database import DirectoryBasedExampleDatabase

from tests import ROOT

# the driver's files tell without initialising CUDA
HAS_GPU = torch.version.cuda is not None and any(Path(x).exists() for x in ("/dev/nvidiactl", "/dev/dxg"))
if not HAS_GPU:
    # before triton is imported: its kernels are then interpreted on the CPU
    os.environ["TRITON_INTERPRET"] = "1"

# cuBLAS reads this before its first use, to compute reproducible sums
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

shared = settings(
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
)
settings.register_profile("jacrec", shared, derandomize=True, database=None)
settings.register_profile(
    "random", shared, derandomize=False, database=DirectoryBasedExampleDatabase(ROOT / ".hypothesis" / "examples")
)
# for benchmarks/gpu.py, where each smaller example would be a compilation
settings.register_profile("no-shrinking", settings.get_profile("jacrec"), phases=(Phase.explicit, Phase.reuse, Phase.generate))
settings.load_profile("jacrec")


def pytest_addoption(parser):
    parser.addoption("--cases", type=int, default=None, help="total number of property-test cases (default 1800)")


def pytest_configure(config):
    if config.getoption("--cases"):
        os.environ["JACREC_TEST_CASES"] = str(config.getoption("--cases"))
    torch.set_num_threads(1)


def property_cases(share: float, at_least: int = 1):
    """Hypothesis settings for a test with this share of all property cases."""
    total = int(os.environ.get("JACREC_TEST_CASES", "1800"))
    return settings(max_examples=max(at_least, round(share * total)))


@pytest.fixture(autouse=True)
def _poison_uninitialised_memory():
    """Fill torch.empty with NaN, so that reading before writing shows."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def rng():
    """A seeded torch generator."""
    return torch.Generator().manual_seed(0)


@pytest.fixture
def threads():
    """A function that sets torch's number of threads for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
