"""Altered models: whatever is done to a policy or a world, the gradient is the right one or the error names the part."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import property_cases
from tests.engine.alterations import alter
from tests.strategies import cases


@pytest.mark.slow
@property_cases(0.04)
@given(case=cases(max_H=2, max_M=2), data=st.data())
def test_an_altered_model_has_its_gradient_or_an_error_that_names_the_part(case, data):
    alter(case, data.draw)
