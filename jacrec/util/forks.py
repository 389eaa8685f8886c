"""Torch in a forked child: it has none of its parent's threads, and would wait for them."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

_forked = False
_ANY = nullcontext()


def _notice() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_notice)


def one_thread_after_fork() -> AbstractContextManager[None]:
    """Let torch compute in the calling thread alone, in a forked child; elsewhere nothing changes."""
    return _one_thread() if _forked else _ANY


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    if threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
