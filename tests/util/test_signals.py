"""A second Ctrl-C while something is being closed."""

import signal
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
