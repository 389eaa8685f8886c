"""Property: whatever happens to the files of a run, it loads and resumes as it was, or an error names a file."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import property_cases
from tests.training.damage import damage, finished_run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return finished_run(tmp_path_factory.mktemp("runs") / "run")


@property_cases(0.04)
@given(data=st.data())
def test_damaged_networks_load_as_they_were_or_are_told(finished, data):
    damage(finished, "networks", data.draw)


@property_cases(0.02)
@given(data=st.data())
def test_damaged_texts_are_read_or_told(finished, data):
    damage(finished, "texts", data.draw)


@property_cases(0.02)
@given(data=st.data())
def test_training_resumes_from_damaged_checkpoints_as_it_was_or_tells(finished, data):
    damage(finished, "checkpoints", data.draw)
