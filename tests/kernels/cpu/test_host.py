"""How the CPU kernels are compiled and kept."""

import os
import subprocess
import sys

import numpy as np
import pytest
from llvmlite.binding import Linkage

from jacrec.kernels.cpu.base.host import entry
from jacrec.kernels.cpu.base.scalar import exp
from tests.kernels.cpu.test_gradient import _multiply


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_compiled_code_lends_and_borrows_no_part(dtype):
    """Names left open are bound to whatever code of that name the process holds: other bits in other processes."""
    task = entry(_multiply, dtype)
    functions = [f for f in task._library._get_module_for_linking().functions if not f.is_declaration]
    inner = {f.name for f in functions if f.linkage == Linkage.internal}
    assert any("products" in name for name in inner)
    assert all(task.__name__ in f.name for f in functions if f.name not in inner)


def test_a_part_refuses_calls_from_python():
    for arguments, keywords in (((1.0,), {}), ((), {"x": 1.0}), ((1.0,), {})):
        with pytest.raises(TypeError, match="not callable"):
            exp(*arguments, **keywords)


@pytest.mark.slow
def test_the_process_that_compiles_trains_to_the_bits_of_those_after_it(tmp_path):
    script = (
        "import hashlib, torch\n"
        "from jacrec.training.stages.rebrac import ReBRACStage\n"
        "from tests.training.test_run import SMALL, linear_system\n"
        "torch.set_num_threads(1)\n"
        "stage = ReBRACStage(linear_system(), SMALL.rebrac, seed=5)\n"
        "for update in range(5):\n"
        "    stage.step(update)\n"
        "numbers = torch.cat([value.flatten().double() for value in stage.state().values()])\n"
        "print(hashlib.sha256(numbers.numpy().tobytes()).hexdigest())"
    )
    env = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = [
        subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True) for _ in range(2)
    ]
    assert ["compiling" in process.stderr for process in done] == [True, False]
    assert done[0].stdout == done[1].stdout
