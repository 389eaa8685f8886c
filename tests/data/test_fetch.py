"""Downloads from a local server: complete, resumed, truncated, changed, rejected."""

import errno
import hashlib
import json
import os

import pytest

from jacrec.data import fetch as fetching
from jacrec.data.fetch import DownloadError, check_sum, fetch
from jacrec.util import locks
from tests.file_server import CONTENT


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_complete_file_is_stored_with_its_checksum(server, tmp_path):
    seen = []
    digest = fetch(server.url, tmp_path / "new" / "set.hdf5", progress=lambda have, total: seen.append((have, total)))
    assert digest == hashlib.sha256(CONTENT).hexdigest()
    assert (tmp_path / "new" / "set.hdf5").read_bytes() == CONTENT
    assert names(tmp_path / "new") == ["set.hdf5", "set.hdf5.sha256"]
    assert (tmp_path / "new" / "set.hdf5.sha256").read_text() == f"{digest}  set.hdf5\n"
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert check_sum(tmp_path / "new" / "set.hdf5") == digest


def test_a_broken_transfer_is_resumed(server, tmp_path):
    server.cut = [100_000, 50_000]
    fetch(server.url, tmp_path / "set.hdf5")
    assert (tmp_path / "set.hdf5").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=100000-", "bytes=150000-"]


def test_the_next_call_resumes_an_interrupted_one(server, tmp_path, monkeypatch):
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


@pytest.mark.parametrize("honours_if_range", [True, False])
def test_a_new_version_on_the_server_restarts_the_download(server, tmp_path, monkeypatch, honours_if_range):
    """Some servers ignore If-Range and answer with a range of the new version."""
    server.honours_if_range = honours_if_range
    monkeypatch.setattr(fetching, "ATTEMPTS", 0)
    server.cut = [100_000]
    with pytest.raises(DownloadError, match="100000 bytes are kept"):
        fetch(server.url, tmp_path / "set.hdf5")
    server.content, server.version = CONTENT[::-1], '"two"'
    fetch(server.url, tmp_path / "set.hdf5")
    assert (tmp_path / "set.hdf5").read_bytes() == CONTENT[::-1]
    assert server.asked == [None, "bytes=100000-", *([] if honours_if_range else [None])]


@pytest.mark.parametrize("change", [{"ranges": False}, {"version": None}, {"version": 'W/"weak"'}])
def test_a_server_without_resume_support_is_asked_for_the_whole_file(server, tmp_path, change):
    for name, value in change.items():
        setattr(server, name, value)
    server.cut = [100_000]
    fetch(server.url, tmp_path / "set.hdf5")
    assert (tmp_path / "set.hdf5").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=100000-" if "ranges" in change else None]


def test_a_complete_part_is_moved_into_place(server, tmp_path, monkeypatch):
    """After a kill between the last byte and the rename."""
    monkeypatch.setattr(fetching, "digest_of", lambda path: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fetch(server.url, tmp_path / "set.hdf5")
    monkeypatch.undo()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    fetch(server.url, tmp_path / "set.hdf5")
    assert (tmp_path / "set.hdf5").read_bytes() == CONTENT
    assert server.asked == [None, f"bytes={len(CONTENT)}-"]


def test_a_truncated_file_is_not_moved_into_place(server, tmp_path):
    server.cut = [0] * 20
    with pytest.raises(DownloadError, match=r"set\.hdf5: .*0 of 300000 bytes"):
        fetch(server.url, tmp_path / "set.hdf5")
    assert names(tmp_path) == []
    assert len(server.asked) == fetching.ATTEMPTS


def test_a_file_with_a_wrong_checksum_or_magic_is_removed(server, tmp_path):
    (tmp_path / "set.hdf5").write_text("the old one")
    with pytest.raises(DownloadError, match=r"expected a file of SHA-256 0000, got 300000 bytes of SHA-256 .*removed"):
        fetch(server.url, tmp_path / "set.hdf5", sha256="0000")
    server.content = b"<html>please log in</html>"
    with pytest.raises(DownloadError, match=r"expected a file beginning with b'HDF', got 26 bytes"):
        fetch(server.url, tmp_path / "set.hdf5", magic=b"HDF")
    assert names(tmp_path) == ["set.hdf5"]
    assert (tmp_path / "set.hdf5").read_text() == "the old one"


def test_a_client_error_is_not_retried(server, tmp_path):
    server.status = 404
    with pytest.raises(DownloadError, match=r"set\.hdf5: .*\(Not Found\)"):
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


def test_a_changed_file_is_detected(tmp_path):
    path = tmp_path / "set.hdf5"
    path.write_bytes(b"one")
    assert check_sum(path) == hashlib.sha256(b"one").hexdigest()
    path.write_bytes(b"two")
    with pytest.raises(DownloadError, match=r"expected SHA-256 7692.* set\.hdf5\.sha256, got 3fc4.*--overwrite"):
        check_sum(path)


def test_a_server_that_starts_over_each_time_is_given_up(server, tmp_path):
    """Varying lengths are not progress."""
    server.ranges = False
    server.cut = [10_000, 5_000] * 20
    with pytest.raises(DownloadError, match=r"set\.hdf5: .*\d+ of 300000 bytes"):
        fetch(server.url, tmp_path / "set.hdf5")
    assert len(server.asked) == 1 + fetching.ATTEMPTS


def test_a_part_longer_than_the_file_is_downloaded_again(server, tmp_path):
    (tmp_path / "set.hdf5.part").write_bytes(bytes(400_000))
    note = {"url": server.url, "version": server.version, "total": len(CONTENT)}
    (tmp_path / "set.hdf5.part.json").write_text(json.dumps(note))
    fetch(server.url, tmp_path / "set.hdf5")
    assert (tmp_path / "set.hdf5").read_bytes() == CONTENT
    assert server.asked == ["bytes=400000-", None]


def test_a_kill_between_two_versions_never_mixes_them(server, tmp_path, monkeypatch):
    """The part is truncated before the note names the new version."""
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


def test_an_answer_of_unknown_length_is_rejected(server, tmp_path):
    server.says_length = False
    with pytest.raises(DownloadError, match=r"set\.hdf5: .*Content-Length"):
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


def test_checksums_are_not_recorded_in_read_only_folders(tmp_path, monkeypatch):
    path = tmp_path / "set.hdf5"
    path.write_bytes(b"one")

    def fail(code):
        def record(path, digest):
            raise OSError(code, os.strerror(code), str(path))

        monkeypatch.setattr(fetching, "_record", record)

    fail(errno.EROFS)  # a shared, read-only folder
    assert check_sum(path) == hashlib.sha256(b"one").hexdigest()
    fail(errno.ENOSPC)
    with pytest.raises(OSError, match="No space left"):
        check_sum(path)
    monkeypatch.undo()
    (tmp_path / "set.hdf5.sha256").write_text("")  # after a kill while it was written
    assert check_sum(path) == hashlib.sha256(b"one").hexdigest()
    assert (tmp_path / "set.hdf5.sha256").read_text() == f"{check_sum(path)}  set.hdf5\n"
