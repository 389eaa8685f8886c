"""Importing the benchmarks as the scripts import each other."""

import importlib

import pytest

from tests.benchmarks.scripts import FOLDER


@pytest.fixture
def load(monkeypatch):
    """Import a benchmark module by name."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module
