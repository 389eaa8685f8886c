"""A pool of helper threads of a test's own."""

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
    yield own
    own.close()
    assert not any(helper.thread.is_alive() for helper in own.helpers)
