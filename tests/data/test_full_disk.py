"""Data sets on a full disk: told before HDF5, which may crash there, writes."""

import pytest

from jacrec.data.behaviour.make import make_dataset
from tests.util.test_files import largest_file, small_disk

__all__ = ["small_disk"]


def test_a_full_disk_is_told_and_left_as_it_was(small_disk, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(small_disk))
    with pytest.raises(
        OSError, match=rf"{small_disk}/\.making-.*: expected room for \d+ bytes, .* \d+ bytes are missing; free"
    ) as error:
        make_dataset("hopper", "random", steps=300)
    assert error.value.errno is None
    assert not [p for p in small_disk.rglob("*") if p.is_file()]
    assert not list(small_disk.glob(".making-*"))


def test_the_allowed_size_of_files_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    with largest_file(500_000), pytest.raises(OSError, match=r"expected room for .* got 'File too large'"):
        make_dataset("hopper", "random", steps=300)
    assert not list(tmp_path.glob(".making-*"))
    assert make_dataset("hopper", "random", steps=300).steps == 300
