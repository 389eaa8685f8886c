"""Ctrl-C while something is being closed, and interrupts of processes that work for another."""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Ignore Ctrl-C inside the block; only the main thread receives it, so in others this does nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)


def is_interrupt(error: BaseException | None) -> bool:
    """Whether an error is a KeyboardInterrupt, or was raised because of one.

    Python 3.11 raises a RuntimeError from what `__set_name__` raises, so that an interrupt of an import may look like a broken library.
    """
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__
    return error is not None


class OrderlyExit(contextlib.ExitStack):
    """An ExitStack that closes everything before it gives way to a second Ctrl-C."""

    def __exit__(self, *details) -> bool:
        with uninterrupted():
            return bool(super().__exit__(*details))


def handle_signals() -> None:
    """Let SIGTERM raise KeyboardInterrupt in this process, and ignore Ctrl-C, which reaches the whole process group."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles it
    signal.signal(signal.SIGTERM, _interrupt)
    keep_interrupts(signal.SIGTERM)


def keep_interrupts(number: signal.Signals) -> None:
    """Raise a KeyboardInterrupt that a callback drops again, by this signal, when the callback has returned.

    Exceptions end nowhere in callbacks of weak references, in finalizers, and where C code calls Python, as the kernels'
    compiler does.
    """

    def again(unraisable: "sys.UnraisableHookArgs") -> None:
        if unraisable.exc_type is not KeyboardInterrupt:
            sys.__unraisablehook__(unraisable)
            return
        if number == signal.SIGTERM:
            signal.signal(signal.SIGTERM, _interrupt)
        # not from here, where it would be dropped as well
        threading.Timer(0.01, _signal_main_thread, (number,)).start()

    sys.unraisablehook = again


def _signal_main_thread(number: signal.Signals) -> None:
    if hasattr(signal, "pthread_kill"):  # it also ends a wait of that thread
        signal.pthread_kill(threading.main_thread().ident or 0, number)
    else:
        signal.raise_signal(number)


def _interrupt(number: int, frame: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt
