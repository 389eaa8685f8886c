"""Shared by all tests: the number of property cases, and memory that tells when it is read before it is written."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings

# the driver's files tell without waking CUDA up
HAS_GPU = torch.version.cuda is not None and any(Path(x).exists() for x in ("/dev/nvidiactl", "/dev/dxg"))
if not HAS_GPU:
    # before anything imports triton: its kernels are then interpreted on the CPU
    os.environ["TRITON_INTERPRET"] = "1"

# cuBLAS wants to know before its first use that sums are to come out the same each time
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

settings.register_profile(
    "jacrec",
    deadline=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
)
settings.load_profile("jacrec")


def pytest_addoption(parser):
    parser.addoption("--cases", type=int, default=None, help="property-test cases in all (default 2400)")


def pytest_configure(config):
    if config.getoption("--cases"):
        os.environ["JACREC_TEST_CASES"] = str(config.getoption("--cases"))
    torch.set_num_threads(1)


def property_cases(share: float, at_least: int = 1):
    """Hypothesis settings for a test that takes this share of all property cases."""
    total = int(os.environ.get("JACREC_TEST_CASES", "2400"))
    return settings(max_examples=max(at_least, round(share * total)))


@pytest.fixture(autouse=True)
def _poison_uninitialised_memory():
    """torch.empty holds NaN in every test: reading what nobody wrote shows."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def rng():
    """A seeded torch generator."""
    return torch.Generator().manual_seed(0)
