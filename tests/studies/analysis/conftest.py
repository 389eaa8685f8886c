"""A finished study in which every contestant gains the same on all tasks and seeds."""

import pytest

from jacrec.studies.analysis.read import read_study
from tests.study_folder import constant_gains, fill, write_study


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The study's folder."""
    return fill(write_study(tmp_path_factory.mktemp("study") / "exact"), constant_gains)


@pytest.fixture
def study(folder):
    """The study as read from its folder."""
    return read_study(folder)
