"""Worker processes: an interrupt is never lost."""

import subprocess
import sys

INTERRUPTED_IN_A_CALLBACK = """
import ctypes
import signal
import time

from jacrec.studies.workers import handle_signals

handle_signals()


@ctypes.CFUNCTYPE(None)
def callback():
    signal.raise_signal(signal.SIGTERM)


try:
    callback()
    time.sleep(30)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_an_interrupt_inside_a_callback_is_raised_after_it():
    command = [sys.executable, "-c", INTERRUPTED_IN_A_CALLBACK]
    done = subprocess.run(command, capture_output=True, text=True, timeout=25, check=True)
    assert done.stdout == "interrupted\n"
    assert done.stderr == ""
