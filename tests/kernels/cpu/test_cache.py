"""Compiled code on disk: damaged files are made again, and what cannot be written is done without."""

import os
import resource
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from numba.core import config

from jacrec.kernels.cpu.base import cache, host
from jacrec.kernels.cpu.base.tiles import integers
from tests import ROOT


@host.part
def _double(like, job_address):
    job = integers(job_address)
    job[0] *= 2


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where this test's compiled code is kept."""
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(cache, "_warned", [])
    return tmp_path


def run_it():
    """Compile or load as a new process does; whether it was compiled."""
    compiled = host.entry.__wrapped__(_double, np.float64)
    job = np.array([21])
    compiled.ctypes(job.ctypes.data)
    assert job[0] == 42
    return compiled.cache_hits == 0


def files(folder, suffix):
    return sorted(folder.rglob(f"*{suffix}"))


def truncate(path):
    path.write_bytes(path.read_bytes()[:20])


def empty(path):
    path.write_bytes(b"")


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 8
    path.write_bytes(content)


def fill(path):
    path.write_bytes(b"\xff" * 300)


@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
@pytest.mark.parametrize("damage", [truncate, empty, flip, fill, Path.unlink])
def test_a_damaged_cache_is_compiled_again_and_mended(folder, suffix, damage):
    assert run_it()
    assert not run_it()
    (path,) = files(folder, suffix)
    damage(path)
    assert run_it()
    assert not run_it()


def test_a_flipped_byte_of_the_code_is_never_run(folder):
    run_it()
    (path,) = files(folder, ".nbc")
    whole = path.read_bytes()
    for at in np.random.default_rng(0).integers(0, len(whole), 40):
        content = bytearray(whole)
        content[at] ^= 1
        path.write_bytes(content)
        file = cache.CheckedFile(str(path.parent), path.name.removesuffix(".1.nbc"), None)
        with pytest.raises(ValueError, match="expected the checksum of its content"):
            file._load_data(path.name)


def test_a_full_disk_warns_once_and_goes_on(folder):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
        with pytest.warns(RuntimeWarning, match="File too large; set NUMBA_CACHE_DIR"):
            assert run_it()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert run_it()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert run_it()
    assert not run_it()


def test_code_for_other_settings_of_the_compiler_is_kept_apart(tmp_path):
    script = (
        "import numpy as np\n"
        "from jacrec.kernels.cpu.base import host\n"
        "from tests.kernels.cpu.test_cache import _double\n"
        "host.entry(_double, np.float64)\n"
    )
    kept = []
    for settings in ({}, {"NUMBA_OPT": "1"}, {}):
        env = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path), **settings}
        subprocess.run([sys.executable, "-c", script], env=env, check=True, cwd=ROOT)
        kept.append({path.name for path in files(tmp_path, ".nbi")})
    assert [len(names) for names in kept] == [1, 2, 2]


def test_no_folder_at_all_is_one_warning_and_no_promise(tmp_path):
    """A read-only installation of a user without a home."""
    script = (
        "import numpy as np\n"
        "from jacrec.kernels.cpu.base import host\n"
        "from numba.core.caching import FunctionCache\n"
        "from tests.kernels.cpu.test_cache import _double\n"
        "for dtype in (np.float32, np.float64):\n"
        "    host.entry(_double, dtype)\n"
    )
    missing = tmp_path / "file"
    missing.write_text("no folder")
    folder = tmp_path / "package"
    for name in ("jacrec", "kernels", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    # root may write anywhere: a file in the place of each folder keeps it out too
    (folder / "kernels/cpu/base/__pycache__").write_text("")
    env = {k: v for k, v in os.environ.items() if k not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")}
    env |= {"HOME": str(missing), "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True, cwd=folder)
    assert done.stderr.count("RuntimeWarning") == 1
    assert done.stderr.count("NUMBA_CACHE_DIR") == 1
    assert done.stderr.count("compiling") == 2
    assert "to be kept" not in done.stderr
