"""Fixtures shared by the tests of downloads."""

import pytest

from jacrec.data import fetch
from tests.file_server import serving


@pytest.fixture
def server(monkeypatch):
    """A local server of one file; retries do not wait."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(fetch, "WAIT", 0.0)
    with serving() as state:
        yield state
