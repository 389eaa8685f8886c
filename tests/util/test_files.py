"""Files that are whole or not there, errors that name the file, and the types of contents."""

import json
import os
import resource
import subprocess
import sys
from contextlib import contextmanager
from typing import Any, Literal, NotRequired, TypedDict

import pytest

from jacrec.util.content import mismatch
from jacrec.util.files import append_json_line, expect_room, read_json, read_json_lines, write_bytes, write_text


class Inner(TypedDict):
    values: list[float]


class Outer(TypedDict):
    name: str
    count: int
    inner: dict[str, Inner]
    kind: Literal["a", "b"]
    extra: NotRequired[float | None]


GOOD = {"name": "x", "count": 3, "inner": {"p": {"values": [1, 2.5]}}, "kind": "a", "unknown": object()}


@contextmanager
def largest_file(size):
    """Let this process write at most `size` bytes to a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if sys.platform != "linux" or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system needs root on Linux")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": True}, "an integer at count, got True"),
        ({"count": 3.0}, "an integer at count, got 3.0"),
        ({"name": None}, "text at name, got None"),
        ({"inner": {"p": {"values": [1, "2"]}}}, "a number at inner.p.values[1], got '2'"),
        ({"inner": {"p": {}}}, "an entry inner.p.values, got none"),
        ({"inner": {1: {"values": []}}}, "a mapping at inner, got {1: {'values': []}}"),
        ({"inner": []}, "a mapping at inner, got []"),
        ({"kind": "c"}, "one of 'a', 'b' at kind, got 'c'"),
        ({"extra": "1"}, "a number or null at extra, got '1'"),
        ({"inner": {"p": {"values": [10**400]}}}, "a number at inner.p.values[0], got 1"),
    ],
)
def test_contents_of_another_type_are_told_with_their_place(changes, message):
    assert mismatch(GOOD, Outer) is None
    found = mismatch(GOOD | changes, Outer)
    assert found is not None
    assert found.startswith(message)


@pytest.mark.parametrize("content", [[], 3, None, "text"])
def test_a_record_is_a_mapping(content):
    assert mismatch(content, Outer) == f"a mapping, got {content!r}"


@pytest.mark.parametrize("raw", [b"", b'{"name": "x', b"\xff\xfe", b"[" * 100_000, b"[1]", b'{"name": 1}'])
def test_damaged_json_is_one_sentence_with_file_and_remedy(tmp_path, raw):
    (tmp_path / "record.json").write_bytes(raw)
    with pytest.raises(ValueError, match=r"record\.json: expected .*; make it again$"):
        read_json(tmp_path / "record.json", Outer, "make it again")


def test_an_interrupted_line_is_skipped_and_a_foreign_one_told(tmp_path):
    path = tmp_path / "lines.jsonl"
    append_json_line(path, {"a": 1})
    with path.open("ab") as file:
        file.write(b'{"b": 2')
    append_json_line(path, {"c": 3})
    assert read_json_lines(path) == [{"a": 1}, {"c": 3}]
    for foreign in (b"notes\n", b"[1, 2]\n", b"3\n", b"\xff\n"):
        path.write_bytes(b'{"a": 1}\n' + foreign)
        with pytest.raises(ValueError, match=r"lines\.jsonl: .*delete"):
            read_json_lines(path)
    assert read_json_lines(tmp_path / "none") == []


def test_what_does_not_fit_leaves_the_old_file_and_names_it(tmp_path):
    path = tmp_path / "file"
    write_text(path, "old")
    with (
        largest_file(100),
        pytest.raises(OSError, match=rf"^{path}: expected room for 101 bytes, got 'File too large'") as error,
    ):
        write_bytes(path, bytes(101))
    assert error.value.errno is None  # for the command line: a whole sentence
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    with largest_file(100), pytest.raises(OSError, match=rf"^{path}: expected room"):
        append_json_line(path, {"a": "b" * 200})


def test_a_full_disk_is_told_with_the_missing_bytes(small_disk):
    write_bytes(small_disk / "most", bytes(900_000))
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    with pytest.raises(OSError, match=rf"more: expected room for 300000 bytes, .*, {300_000 - free} bytes are missing"):
        write_bytes(small_disk / "more", bytes(300_000))
    assert [p.name for p in small_disk.iterdir()] == ["most"]
    with pytest.raises(OSError, match=rf"{small_disk}: expected room for 300000 bytes"):
        expect_room(small_disk, 300_000)
    expect_room(small_disk, free // 2)
    assert [p.name for p in small_disk.iterdir()] == ["most"]


def test_the_allowed_size_of_a_file_counts_as_room(tmp_path):
    with largest_file(1000), pytest.raises(OSError, match="expected room for 1001 bytes, got 'File too large'"):
        expect_room(tmp_path, 1001)
    assert list(tmp_path.iterdir()) == []


def test_other_errors_name_the_file_too(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError) as error:
        write_bytes(tmp_path / "file" / "below", b"")
    assert error.value.filename is not None


def content_of(value: Any) -> str:
    """As `json.dumps`, of what a record holds."""
    return json.dumps({k: v for k, v in value.items() if k != "unknown"})


def test_a_record_is_read_as_it_was_written(tmp_path):
    write_text(tmp_path / "record.json", content_of(GOOD))
    assert read_json(tmp_path / "record.json", Outer, "") == {k: v for k, v in GOOD.items() if k != "unknown"}
