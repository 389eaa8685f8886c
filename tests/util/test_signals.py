"""A second Ctrl-C while something is being closed, and interrupts inside callbacks."""

import signal
import subprocess
import sys
import threading

import pytest

from jacrec.util.signals import OrderlyExit, uninterrupted


def test_closing_is_finished_before_a_second_interrupt_counts():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    closed = []

    def interrupted():
        with OrderlyExit() as stack:
            stack.callback(closed.append, "file")
            stack.callback(signal.raise_signal, signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    try:
        with pytest.raises(KeyboardInterrupt):
            interrupted()
        assert closed == ["file"]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_receive_no_interrupts():
    entered = []

    def run():
        with uninterrupted():
            entered.append(True)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert entered == [True]


INTERRUPTED_IN_A_CALLBACK = """
import ctypes
import signal
import time

from jacrec.util.signals import handle_signals

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


INTERRUPTED_VERB = """
import signal
import sys
import time
import types
import weakref

from jacrec import cli


class Thing:
    pass


def run(args):
    thing = Thing()
    reference = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGINT))
    del thing
    time.sleep(30)


signal.signal(signal.SIGINT, signal.default_int_handler)
sys.modules["jacrec.commands.doctor"] = types.SimpleNamespace(run=run)
sys.argv = ["jacrec", "doctor"]
print(cli.main())
"""


def test_ctrl_c_inside_a_callback_interrupts_a_verb():
    command = [sys.executable, "-c", INTERRUPTED_VERB]
    done = subprocess.run(command, capture_output=True, text=True, timeout=25, check=True)
    assert done.stdout == "130\n"
    assert done.stderr == "\ninterrupted; to resume: jacrec doctor\n"


def test_an_interrupt_inside_a_callback_is_raised_after_it():
    command = [sys.executable, "-c", INTERRUPTED_IN_A_CALLBACK]
    done = subprocess.run(command, capture_output=True, text=True, timeout=25, check=True)
    assert done.stdout == "interrupted\n"
    assert done.stderr == ""
