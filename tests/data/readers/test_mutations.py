"""Mutated files of every kind: each is read as a plain loop reads it, or refused with an error that names what is wrong."""

import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jacrec.data import load
from tests.conftest import property_cases
from tests.data.readers.mutations import mutations_for, outcome
from tests.data.readers.sources import KINDS, assert_reads_as, make, plain_rows


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("sets")
        patch.setenv("MINARI_DATASETS_PATH", str(folder))
        yield folder


@pytest.mark.parametrize("kind", KINDS)
def test_a_valid_set_reads_as_a_plain_loop_reads_it(root, tmp_path, kind):
    shutil.rmtree(root / "test", ignore_errors=True)
    case = make(kind, tmp_path, root)
    for repair in (False, True):
        assert_reads_as(load(case.source, download=False, repair=repair), plain_rows(case))


@pytest.mark.parametrize("kind", KINDS)
def test_a_mutated_set_is_read_right_or_refused(root, tmp_path, kind):
    shutil.rmtree(root / "test", ignore_errors=True)
    case = make(kind, tmp_path, root)
    files = [path for path in (case.path, case.metadata) if path is not None]
    valid = [path.read_bytes() for path in files]

    @property_cases(0.025)
    @given(mutation=st.sampled_from(mutations_for(kind)), seed=st.integers(0, 2**32 - 1), repair=st.booleans())
    def check(mutation, seed, repair):
        for path, content in zip(files, valid, strict=True):
            path.write_bytes(content)
        outcome(case, mutation(case, np.random.default_rng(seed)), repair)

    check()
