"""A second Ctrl-C while something is being closed, and interrupts inside callbacks."""

import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

from jacrec import cli
from jacrec.engine import dispatch
from jacrec.studies.executors import Failed, perform
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


def wrapped_interrupt(*args):
    """What Python 3.11 makes of a Ctrl-C while a class is made."""
    raise RuntimeError("Error calling __set_name__") from KeyboardInterrupt()


def other_error(*args):
    raise RuntimeError("broken") from ValueError()


def test_an_interrupted_import_is_no_broken_library(monkeypatch):
    monkeypatch.setattr(dispatch, "_loaded", {})
    monkeypatch.setattr(dispatch, "import_module", wrapped_interrupt)
    with pytest.raises(KeyboardInterrupt):
        dispatch._load("cpu")
    assert dispatch._loaded == {}
    monkeypatch.setattr(dispatch, "import_module", other_error)
    assert dispatch._load("cpu") == "numba cannot be imported (broken); pip install numba"


def test_a_job_whose_import_is_interrupted_has_not_failed():
    with pytest.raises(KeyboardInterrupt):
        perform(SimpleNamespace(id="job", perform=wrapped_interrupt), "worker", print)
    assert isinstance(perform(SimpleNamespace(id="job", perform=other_error), "worker", print), Failed)


def test_a_verb_whose_import_is_interrupted_can_be_resumed(monkeypatch, capsys):
    monkeypatch.setattr(cli, "import_module", wrapped_interrupt)
    assert cli.main(["doctor"]) == 130
    assert "interrupted; to resume: jacrec doctor" in capsys.readouterr().err
    monkeypatch.setattr(cli, "import_module", other_error)
    with pytest.raises(RuntimeError, match="broken"):
        cli.main(["doctor"])
