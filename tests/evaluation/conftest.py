"""A small trained run for each module."""

import pytest

from tests.small_run import hardly_trained


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a barely trained run on a few hundred steps of Hopper."""
    return hardly_trained(tmp_path_factory.mktemp("trained"))
