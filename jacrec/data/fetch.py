"""One file from the network: resumed where it was interrupted, checked, and in place only when it is whole.

    fetch(url, path, *, sha256=None, magic=b"", progress=None, timeout=30.0) -> str     its SHA-256
    check_sum(path) -> str                                                             against what was recorded

A file is written to NAME.part and renamed when it is complete; NAME.part.json remembers which file of the server the part
belongs to. Its SHA-256 is recorded in NAME.sha256 in the form that `sha256sum -c` reads, and later calls hold the file
against it.
"""

import errno
import hashlib
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any

from jacrec.util import locks

BLOCK = 1 << 20
ATTEMPTS = 3
"""how often in a row a transfer may end without a new byte before it is given up"""
WAIT = 1.0
"""seconds before it is taken up again, times the attempts without a new byte"""
READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
Progress = Callable[[int, int | None], None]
"""called with the bytes that are here and those that the whole has, None where the server does not say"""


class DownloadError(OSError):
    """A file could not be had, or is not the expected one; the message says what to do."""


def fetch(
    url: str,
    path: Path,
    *,
    sha256: str | None = None,
    magic: bytes = b"",
    progress: Progress | None = None,
    timeout: float = 30.0,
) -> str:
    """Fetch `url` to `path`, going on with what an interrupted call left; the file's SHA-256.

    `magic` is what the file must begin with: some networks answer everything with a page of their own. Whatever happens,
    `path` is either the whole file or untouched. A broken transfer is taken up again as long as it makes headway.

    Raises:
        DownloadError: no connection, an answer other than the file or without an end that could be told, an early end,
            another sum than `sha256` or opening than `magic`, or another process is fetching it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    with _alone(part):
        _transfer_all(url, part, progress, timeout)
        digest = digest_of(part)
        with part.open("rb") as file:
            opening = file.read(len(magic))
        if opening != magic or (sha256 is not None and digest != sha256):
            expected = f"of SHA-256 {sha256}" if sha256 and opening == magic else f"beginning with {magic!r}"
            got = f"{part.stat().st_size} bytes of SHA-256 {digest} beginning with {opening!r}"
            _note(part).unlink(missing_ok=True)
            part.unlink()
            raise DownloadError(f"{url}: expected a file {expected}, got {got}, now removed; fetch it again, or from elsewhere")
        _sum_file(path).unlink(missing_ok=True)
        os.replace(part, path)
        _record(path, digest)
        _note(part).unlink(missing_ok=True)
    return digest


def check_sum(path: Path) -> str:
    """The SHA-256 of a file, held against the one recorded beside it.

    Where none was recorded it is now, unless the folder may not be written: then there is nothing to hold it against.

    Raises:
        DownloadError: they differ.
    """
    digest, record = digest_of(path), _sum_file(path)
    recorded = record.read_text(encoding="utf-8").split() if record.is_file() else []
    if not recorded:
        with unless_read_only():
            _record(path, digest)
        return digest
    if digest != recorded[0]:
        raise DownloadError(
            f"{path}: expected SHA-256 {recorded[0]} as recorded in {record.name}, got {digest}; the file has changed since: "
            f"fetch it again with --overwrite, or delete {record} if you changed it yourself"
        )
    return digest


@contextmanager
def unless_read_only() -> Iterator[None]:
    """Do without what is written inside where the folder may not be written, as data that many users share."""
    try:
        yield
    except OSError as error:
        if error.errno not in READ_ONLY:
            raise


def digest_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _transfer_all(url: str, part: Path, progress: Progress | None, timeout: float) -> None:
    """Transfer until the part is whole; a break is no end as long as the part grows beyond what it ever was."""
    stalled, most = 0, part.stat().st_size
    while True:
        try:
            _transfer(url, part, progress, timeout)
            return
        except DownloadError:
            raise
        except (urllib.error.URLError, HTTPException, OSError) as error:
            size = part.stat().st_size
            refused = isinstance(error, urllib.error.HTTPError) and error.code < 500
            # a server without ranges begins anew each time: only a longer part than any before is headway
            stalled = 0 if size > most else stalled + 1
            most = max(most, size)
            if refused or stalled >= ATTEMPTS:
                reason = getattr(error, "reason", None) or error or type(error).__name__
                here = f"; {size} bytes are kept, the same call goes on" if size else ""
                raise DownloadError(f"{url}: cannot be fetched ({reason}){here}") from error
            time.sleep(WAIT * stalled)


def _transfer(url: str, part: Path, progress: Progress | None, timeout: float) -> None:
    """Append to `part` what is missing of the file at `url`."""
    have = part.stat().st_size
    known = _read_note(part) if have else {}
    answer = None
    if have and known.get("url") == url and known.get("version"):
        try:
            answer = _ask(url, timeout, {"Range": f"bytes={have}-", "If-Range": known["version"]})
        except urllib.error.HTTPError as error:
            if error.code != 416:  # there are no bytes from there on
                raise
            if known.get("total") == have:
                return  # all of it was here already
    if answer is not None and answer.status == 206 and not _continues(answer, have, known["version"]):
        answer.close()
        answer = None
    answer = answer or _ask(url, timeout, {})
    with answer:
        have, total = _position(answer, have)
        if total is None and not answer.chunked:
            raise DownloadError(
                f"{url}: expected an answer that says how long the file is (Content-Length), got one that does not: whether it "
                "is whole could not be told; fetch the file by other means and put it in its place"
            )
        with part.open("r+b") as file:
            # before the note: a part must never hold bytes of another version than its note says
            file.truncate(have)
            _note(part).write_text(json.dumps({"url": url, "version": _version(answer), "total": total}), encoding="utf-8")
            file.seek(have)
            while block := answer.read(BLOCK):
                file.write(block)
                have += len(block)
                if progress is not None:
                    progress(have, total)
    if total is not None and have != total:
        raise ConnectionError(f"it ended after {have} of {total} bytes")


def _ask(url: str, timeout: float, headers: dict[str, str]) -> HTTPResponse:
    return urllib.request.urlopen(urllib.request.Request(url, headers={"User-Agent": "jacrec", **headers}), timeout=timeout)


def _continues(answer: HTTPResponse, have: int, version: str) -> bool:
    """Whether a partial answer begins at byte `have`, and of the same version: some servers do not heed If-Range."""
    start = answer.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    return start == str(have) and _version(answer) in (None, version)


def _position(answer: HTTPResponse, asked: int) -> tuple[int, int | None]:
    """(first byte that the answer holds, size of the whole file); a server that knows no ranges begins anew."""
    if answer.status != 206:
        length = answer.headers.get("Content-Length")
        return 0, int(length) if length else None
    total = answer.headers.get("Content-Range", "").rpartition("/")[2]
    length = answer.headers.get("Content-Length")
    return asked, int(total) if total.isdigit() else asked + int(length) if length else None


def _version(answer: HTTPResponse) -> str | None:
    """What tells this file of the server from a later one of the same name."""
    etag = answer.headers.get("ETag")
    return etag if etag and not etag.startswith("W/") else answer.headers.get("Last-Modified")


@contextmanager
def _alone(part: Path) -> Iterator[None]:
    """The part exists and no other process writes to it."""
    part.touch()
    before, lock = part.stat(), _lock(part)
    with locks.locked(lock, DownloadError(f"{part}: another process is fetching this file; wait for it"), required=True):
        try:
            # the process that held the lock until now may have moved the part into place
            if not part.exists() or not os.path.samestat(before, part.stat()):
                raise DownloadError(f"{part}: another process has just finished fetching this file; try again")
            yield
        finally:
            if part.exists() and part.stat().st_size == 0:
                part.unlink()
                _note(part).unlink(missing_ok=True)
            with suppress(OSError):  # an open file cannot be removed on Windows, where the lock's release does it
                lock.unlink()


def _sum_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _record(path: Path, digest: str) -> None:
    _sum_file(path).write_text(f"{digest}  {path.name}\n", encoding="utf-8")


def _lock(part: Path) -> Path:
    return part.with_name(f"{part.name}.lock")


def _note(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _read_note(part: Path) -> dict[str, Any]:
    try:
        return json.loads(_note(part).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
