"""The Triton kernels' tests in a process of their own, where an earlier import has made Triton a compiler in this one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .triton_cases import HOW, TOO_LATE

HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.skipif(not TOO_LATE, reason="the kernels' tests run in this process")
def test_interpreted_in_a_new_process():
    files = [str(HERE / f"test_kernels_triton{which}.py") for which in ("", "_gradient")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *files]
    done = subprocess.run(command, env={**os.environ, **HOW}, cwd=HERE.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
