"""A pool of helper threads of a test's own."""

import time

import pytest

from jacrec.kernels.cpu.base import helpers


@pytest.fixture(params=[True, False], ids=["futex", "semaphore"])
def pool(request, monkeypatch):
    """Up to three helpers, whatever the machine, that sleep on a futex or a semaphore."""
    if request.param and not helpers.FUTEX:
        pytest.skip("no futex here")
    own = helpers.Pool()
    monkeypatch.setattr(helpers, "FUTEX", request.param)
    monkeypatch.setattr(helpers, "_pool", own)
    monkeypatch.setattr(helpers, "processors", lambda: 4)
    if not request.param:  # a semaphore wakes a thread of Python, which takes its time on a busy machine
        take = own.take

        def take_awake(count):
            free = take(count)
            time.sleep(0.003 if free else 0)
            return free

        monkeypatch.setattr(own, "take", take_awake)
    yield own
    own.close()
    assert not any(helper.thread.is_alive() for helper in own.helpers)
