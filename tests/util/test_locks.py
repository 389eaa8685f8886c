"""Lock files: held once, freed however the holder ends, and file systems without locks."""

import errno
import os
import subprocess
import sys
import threading

import filelock
import pytest

from jacrec.util import locks

HOLD = """
import sys, time
from pathlib import Path
from jacrec.util.locks import acquire
release = acquire(Path(sys.argv[1]))
assert release is not None
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def without_locks(monkeypatch):
    """As on a file system that does not support locks."""

    def refuse(*args):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    if sys.platform == "win32":
        pytest.skip("there are locks on every file system of Windows")
    monkeypatch.setattr("fcntl.flock", refuse)


def test_a_lock_is_held_once(tmp_path):
    path = tmp_path / ".lock"
    assert not locks.is_locked(path)
    with locks.locked(path, ValueError("busy")):
        assert locks.is_locked(path)
        assert locks.acquire(path) is None
        with pytest.raises(ValueError, match="busy"), locks.locked(path, ValueError("busy")):
            pass
    assert not locks.is_locked(path)
    with pytest.raises(KeyError), locks.locked(path, ValueError("busy")):
        raise KeyError
    assert not locks.is_locked(path)


def test_another_thread_may_release(tmp_path):
    release = locks.acquire(tmp_path / ".lock")
    assert release is not None
    thread = threading.Thread(target=release)
    thread.start()
    thread.join()
    assert not locks.is_locked(tmp_path / ".lock")


def test_a_killed_process_frees_its_lock(tmp_path):
    path = tmp_path / ".lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert locks.is_locked(path)
        holder.kill()
        holder.wait()
        assert not locks.is_locked(path)


def test_a_file_system_without_locks_is_warned_of(tmp_path, without_locks):
    with (
        pytest.warns(RuntimeWarning, match=r"expected a file system with locks, got one without \(.*\); make sure"),
        locks.locked(tmp_path / ".lock", ValueError("busy")),
    ):
        pass


def test_a_file_system_without_locks_is_refused_where_a_lock_is_required(tmp_path, without_locks):
    with (
        pytest.raises(
            locks.NoLocksError, match=r"expected a file system with locks, got one without \(.*\); use a folder"
        ) as error,
        locks.locked(tmp_path / ".lock", ValueError("busy"), required=True),
    ):
        pass
    assert error.value.errno is None  # for the command line: a whole sentence


def test_other_errors_of_the_system_are_its_own(tmp_path):
    with pytest.raises(FileNotFoundError):
        locks.acquire(tmp_path / "no folder" / ".lock")


def test_files_are_locked_on_every_system():
    """Without fcntl, as on Windows, everything that locks can be imported."""
    modules = (
        "jacrec.data, jacrec.training, jacrec.online, jacrec.studies.ledger, jacrec.studies.workers, jacrec.online.process"
    )
    code = f"import sys; sys.modules['fcntl'] = None; import {modules}"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert issubclass(filelock.FileLock, filelock.BaseFileLock)
