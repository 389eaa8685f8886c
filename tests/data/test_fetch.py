"""Fetching one file from a server on this machine: whole, resumed, cut, changed, refused."""

import errno
import hashlib
import json
import os

import pytest

from jacrec.data import fetch as fetching
from jacrec.data.fetch import DownloadError, check_sum, fetch
from jacrec.util import locks
from tests.file_server import CONTENT, serving


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(fetching, "WAIT", 0.0)
    with serving() as state:
        yield state


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_whole_file_is_in_place_with_its_sum(server, tmp_path):
    seen = []
    digest = fetch(server.url, tmp_path / "new" / "set.hdf5", progress=lambda have, total: seen.append((have, total)))
    assert digest == hashlib.sha256(CONTENT).hexdigest()
    assert (tmp_path / "new" / "set.hdf5").read_bytes() == CONTENT
    assert names(tmp_path / "new") == ["set.hdf5", "set.hdf5.sha256"]
    assert (tmp_path / "new" / "set.hdf5.sha256").read_text() == f"{digest}  set.hdf5\n"
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert check_sum(tmp_path / "new" / "set.hdf5") == digest


def test_a_broken_transfer_goes_on_where_it_stopped(server, tmp_path):
    server.cut = [100_000, 50_000]
    fetch(server.url, tmp_path / "set.hdf5")
    assert (tmp_path / "set.hdf5").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=100000-", "bytes=150000-"]


def test_an_interrupted_call_leaves_a_part_and_the_next_one_goes_on(server, tmp_path, monkeypatch):
    monkeypatch.setattr(fetching, "BLOCK", 70_000)

    def interrupt(have, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(server.url, tmp_path / "set.hdf5", progress=interrupt)
    assert names(tmp_path) == ["set.hdf5.part", "set.hdf5.part.json"]
    fetch(server.url, tmp_path / "set.hdf5")
    assert server.asked == [None, "bytes=70000-"]
    assert (tmp_path / "set.hdf5").read_bytes() == CONTENT
    assert names(tmp_path) == ["set.hdf5", "set.hdf5.sha256"]


def test_another_version_on_the_server_is_not_appended_to_the_old_one(server, tmp_path, monkeypatch):
    monkeypatch.setattr(fetching, "ATTEMPTS", 0)
    server.cut = [100_000]
    with pytest.raises(DownloadError, match="100000 bytes are kept, the same call goes on"):
        fetch(server.url, tmp_path / "set.hdf5")
    server.content, server.version = CONTENT[::-1], '"two"'
    fetch(server.url, tmp_path / "set.hdf5")
    assert (tmp_path / "set.hdf5").read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("change", [{"ranges": False}, {"version": None}, {"version": 'W/"weak"'}])
def test_a_server_that_cannot_resume_is_asked_for_all(server, tmp_path, change):
    for name, value in change.items():
        setattr(server, name, value)
    server.cut = [100_000]
    fetch(server.url, tmp_path / "set.hdf5")
    assert (tmp_path / "set.hdf5").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=100000-" if "ranges" in change else None]


def test_a_part_that_is_all_there_is_finished(server, tmp_path, monkeypatch):
    """Killed between the last byte and the renaming."""
    monkeypatch.setattr(fetching, "digest_of", lambda path: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fetch(server.url, tmp_path / "set.hdf5")
    monkeypatch.undo()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    fetch(server.url, tmp_path / "set.hdf5")
    assert (tmp_path / "set.hdf5").read_bytes() == CONTENT
    assert server.asked == [None, f"bytes={len(CONTENT)}-"]


def test_a_file_that_always_ends_early_is_not_put_in_place(server, tmp_path):
    server.cut = [0] * 20
    with pytest.raises(DownloadError, match=r"cannot be fetched \(it ended after 0 of 300000 bytes\)"):
        fetch(server.url, tmp_path / "set.hdf5")
    assert names(tmp_path) == []
    assert len(server.asked) == fetching.ATTEMPTS


def test_a_wrong_sum_or_another_kind_of_file_is_removed_and_told(server, tmp_path):
    (tmp_path / "set.hdf5").write_text("the old one")
    with pytest.raises(DownloadError, match=r"expected a file of SHA-256 0000, got 300000 bytes of SHA-256 .* now removed"):
        fetch(server.url, tmp_path / "set.hdf5", sha256="0000")
    server.content = b"<html>please log in</html>"
    with pytest.raises(DownloadError, match=r"expected a file beginning with b'HDF', got 26 bytes"):
        fetch(server.url, tmp_path / "set.hdf5", magic=b"HDF")
    assert names(tmp_path) == ["set.hdf5"]
    assert (tmp_path / "set.hdf5").read_text() == "the old one"


def test_a_refusal_is_not_repeated_and_leaves_nothing(server, tmp_path):
    server.status = 404
    with pytest.raises(DownloadError, match=r"cannot be fetched \(Not Found\)"):
        fetch(server.url, tmp_path / "set.hdf5")
    assert len(server.asked) == 1
    assert names(tmp_path) == []


def test_two_at_once_do_not_write_the_same_part(server, tmp_path):
    with (
        locks.locked(tmp_path / "set.hdf5.part.lock", AssertionError()),
        pytest.raises(DownloadError, match="another process is fetching this file"),
    ):
        fetch(server.url, tmp_path / "set.hdf5")
    fetch(server.url, tmp_path / "set.hdf5")
    assert (tmp_path / "set.hdf5").read_bytes() == CONTENT
    assert names(tmp_path) == ["set.hdf5", "set.hdf5.sha256"]


def test_a_changed_file_is_noticed(tmp_path):
    path = tmp_path / "set.hdf5"
    path.write_bytes(b"one")
    assert check_sum(path) == hashlib.sha256(b"one").hexdigest()
    path.write_bytes(b"two")
    with pytest.raises(DownloadError, match=r"expected SHA-256 7692.* as recorded in set\.hdf5\.sha256, got 3fc4.*--overwrite"):
        check_sum(path)


def test_a_server_that_begins_anew_each_time_is_given_up(server, tmp_path):
    """Lengths that go up and down are no headway."""
    server.ranges = False
    server.cut = [10_000, 5_000] * 20
    with pytest.raises(DownloadError, match=r"cannot be fetched \(it ended after \d+ of 300000 bytes\)"):
        fetch(server.url, tmp_path / "set.hdf5")
    assert len(server.asked) == 1 + fetching.ATTEMPTS


def test_a_range_of_another_version_is_not_appended(server, tmp_path, monkeypatch):
    """Some servers answer a range whatever If-Range says."""
    server.heeds_if_range = False
    monkeypatch.setattr(fetching, "ATTEMPTS", 0)
    server.cut = [100_000]
    with pytest.raises(DownloadError, match="100000 bytes are kept"):
        fetch(server.url, tmp_path / "set.hdf5")
    server.content, server.version = CONTENT[::-1], '"two"'
    fetch(server.url, tmp_path / "set.hdf5")
    assert (tmp_path / "set.hdf5").read_bytes() == CONTENT[::-1]
    assert server.asked == [None, "bytes=100000-", None]


def test_a_part_longer_than_the_file_is_fetched_anew(server, tmp_path):
    (tmp_path / "set.hdf5.part").write_bytes(bytes(400_000))
    note = {"url": server.url, "version": server.version, "total": len(CONTENT)}
    (tmp_path / "set.hdf5.part.json").write_text(json.dumps(note))
    fetch(server.url, tmp_path / "set.hdf5")
    assert (tmp_path / "set.hdf5").read_bytes() == CONTENT
    assert server.asked == ["bytes=400000-", None]


def test_a_kill_between_two_versions_leaves_none_of_the_old_one(server, tmp_path, monkeypatch):
    """The part is emptied before the note names the new version."""
    (tmp_path / "set.hdf5.part").write_bytes(b"old" * 1000)
    (tmp_path / "set.hdf5.part.json").write_text(json.dumps({"url": server.url, "version": '"old"', "total": 9000}))
    seen = []

    def killed(*args, **kwargs):
        seen.append((tmp_path / "set.hdf5.part").stat().st_size)
        raise KeyboardInterrupt

    monkeypatch.setattr(fetching.json, "dumps", killed)
    with pytest.raises(KeyboardInterrupt):
        fetch(server.url, tmp_path / "set.hdf5")
    assert seen == [0]


def test_a_file_of_unknown_length_is_refused(server, tmp_path):
    server.says_length = False
    with pytest.raises(DownloadError, match="expected an answer that says how long the file is"):
        fetch(server.url, tmp_path / "set.hdf5")
    assert names(tmp_path) == []
    assert len(server.asked) == 1


def test_a_part_that_another_process_has_just_put_in_place_is_not_written(server, tmp_path, monkeypatch):
    part = tmp_path / "set.hdf5.part"
    part.write_bytes(b"whole")
    acquire = locks.acquire

    def late(path, **options):
        part.rename(tmp_path / "set.hdf5")
        return acquire(path, **options)

    monkeypatch.setattr(locks, "acquire", late)
    with pytest.raises(DownloadError, match="another process has just finished fetching this file"):
        fetch(server.url, tmp_path / "set.hdf5")
    assert (tmp_path / "set.hdf5").read_bytes() == b"whole"


def test_sums_that_cannot_be_recorded_are_done_without(tmp_path, monkeypatch):
    path = tmp_path / "set.hdf5"
    path.write_bytes(b"one")

    def fail(code):
        def record(path, digest):
            raise OSError(code, os.strerror(code), str(path))

        monkeypatch.setattr(fetching, "_record", record)

    fail(errno.EROFS)  # a shared folder
    assert check_sum(path) == hashlib.sha256(b"one").hexdigest()
    fail(errno.ENOSPC)
    with pytest.raises(OSError, match="No space left"):
        check_sum(path)
    monkeypatch.undo()
    (tmp_path / "set.hdf5.sha256").write_text("")  # a kill while it was written
    assert check_sum(path) == hashlib.sha256(b"one").hexdigest()
    assert (tmp_path / "set.hdf5.sha256").read_text() == f"{check_sum(path)}  set.hdf5\n"
