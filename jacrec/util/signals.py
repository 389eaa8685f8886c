"""Ctrl-C while something is being closed."""

import contextlib
import signal
import threading
from collections.abc import Iterator


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


class OrderlyExit(contextlib.ExitStack):
    """An ExitStack that closes everything before it gives way to a second Ctrl-C."""

    def __exit__(self, *details) -> bool:
        with uninterrupted():
            return bool(super().__exit__(*details))
