"""Download one file: resumable, checksummed, and moved into place only when complete.

The file is written to NAME.part and renamed when complete. NAME.part.json identifies the server's version of the file
that the partial download belongs to. The SHA-256 is recorded in NAME.sha256, in the format of `sha256sum -c`, and
checked by later calls.
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
"""consecutive attempts without progress after which a download is given up"""
WAIT = 1.0
"""seconds to wait before a retry, times the number of attempts without progress"""
READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
Progress = Callable[[int, int | None], None]
"""called with the bytes received and the total size, None if the server does not state it"""


class DownloadError(OSError):
    """A download failed, or the file is not the expected one. The message says what to do."""


def fetch(
    url: str,
    path: Path,
    *,
    sha256: str | None = None,
    magic: bytes = b"",
    progress: Progress | None = None,
    timeout: float = 30.0,
) -> str:
    """Download `url` to `path`, resuming an interrupted download; return the file's SHA-256.

    `path` is replaced only by a complete, verified file. Broken transfers are retried as long as they make progress.

    Args:
        sha256: expected checksum.
        magic: expected first bytes; some networks answer every request with a page of their own.
        progress: see `Progress`.
        timeout: of a connection, in seconds.

    Raises:
        DownloadError: no connection, an answer other than the file, an answer of unknown length, a truncated file, a
            mismatch with `sha256` or `magic`, or another process is downloading the file.
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
            raise DownloadError(
                f"{url}: expected a file {expected}, got {got} (removed); download it again, or from another source"
            )
        sum_file(path).unlink(missing_ok=True)
        os.replace(part, path)
        _record(path, digest)
        _note(part).unlink(missing_ok=True)
    return digest


def check_sum(path: Path) -> str:
    """The SHA-256 of a file, verified against the checksum recorded beside it.

    If none is recorded, it is recorded now, unless the folder is read-only.

    Raises:
        DownloadError: the checksums differ.
    """
    digest, record, recorded = digest_of(path), sum_file(path), recorded_sum(path)
    if recorded is None:
        with ignore_read_only():
            _record(path, digest)
        return digest
    if digest != recorded:
        raise DownloadError(
            f"{path}: expected SHA-256 {recorded} as recorded in {record.name}, got {digest}; the file was changed: "
            f"download it again with --overwrite, or delete {record} if you changed it yourself"
        )
    return digest


def recorded_sum(path: Path) -> str | None:
    """The SHA-256 recorded for a file, which need not exist any more; None if there is none."""
    record = sum_file(path)
    content = record.read_text(encoding="utf-8", errors="replace").split() if record.is_file() else []
    return content[0] if content else None


@contextmanager
def ignore_read_only() -> Iterator[None]:
    """Ignore write errors inside the block if the location is read-only, as for data shared by several users."""
    try:
        yield
    except OSError as error:
        if error.errno not in READ_ONLY:
            raise


def digest_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _transfer_all(url: str, part: Path, progress: Progress | None, timeout: float) -> None:
    """Transfer until the partial file is complete; retry as long as it grows beyond its largest size so far."""
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
            # a server without range support starts over each time: only a new largest size counts as progress
            stalled = 0 if size > most else stalled + 1
            most = max(most, size)
            if refused or stalled >= ATTEMPTS:
                reason = getattr(error, "reason", None) or error or type(error).__name__
                resume = f"; {size} bytes are kept, repeat the call to resume" if size else ""
                raise DownloadError(f"{url}: download failed ({reason}){resume}") from error
            time.sleep(WAIT * stalled)


def _transfer(url: str, part: Path, progress: Progress | None, timeout: float) -> None:
    """Append the missing bytes of the file at `url` to `part`."""
    have = part.stat().st_size
    known = _read_note(part) if have else {}
    answer = None
    if have and known.get("url") == url and known.get("version"):
        try:
            answer = _request(url, timeout, {"Range": f"bytes={have}-", "If-Range": known["version"]})
        except urllib.error.HTTPError as error:
            if error.code != 416:  # range not satisfiable: no bytes beyond those we have
                raise
            if known.get("total") == have:
                return  # already complete
    if answer is not None and answer.status == 206 and not _resumes_at(answer, have, known["version"]):
        answer.close()
        answer = None
    answer = answer or _request(url, timeout, {})
    with answer:
        have, total = _content_range(answer, have)
        if total is None and not answer.chunked:
            raise DownloadError(
                f"{url}: expected an answer with Content-Length, got one without, so a truncated file could not be detected; "
                "download the file by other means and copy it into place"
            )
        with part.open("r+b") as file:
            # before the note is written: the part must never contain bytes of a version other than the one noted
            file.truncate(have)
            _note(part).write_text(json.dumps({"url": url, "version": _version(answer), "total": total}), encoding="utf-8")
            file.seek(have)
            while block := answer.read(BLOCK):
                file.write(block)
                have += len(block)
                if progress is not None:
                    progress(have, total)
    if total is not None and have != total:
        raise ConnectionError(f"it ended after {have} of {total} bytes")  # retried by _transfer_all


def _request(url: str, timeout: float, headers: dict[str, str]) -> HTTPResponse:
    return urllib.request.urlopen(urllib.request.Request(url, headers={"User-Agent": "jacrec", **headers}), timeout=timeout)


def _resumes_at(answer: HTTPResponse, have: int, version: str) -> bool:
    """Whether a partial answer starts at byte `have` of the same version: some servers ignore If-Range."""
    start = answer.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    return start == str(have) and _version(answer) in (None, version)


def _content_range(answer: HTTPResponse, asked: int) -> tuple[int, int | None]:
    """(offset of the first byte in the answer, total size); a server without range support starts over."""
    if answer.status != 206:
        length = answer.headers.get("Content-Length")
        return 0, int(length) if length else None
    total = answer.headers.get("Content-Range", "").rpartition("/")[2]
    length = answer.headers.get("Content-Length")
    return asked, int(total) if total.isdigit() else asked + int(length) if length else None


def _version(answer: HTTPResponse) -> str | None:
    """An identifier of the server's current version of the file."""
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


def sum_file(path: Path) -> Path:
    """Where the SHA-256 of a file is recorded."""
    return path.with_name(f"{path.name}.sha256")


def _record(path: Path, digest: str) -> None:
    sum_file(path).write_text(f"{digest}  {path.name}\n", encoding="utf-8")


def _lock(part: Path) -> Path:
    return part.with_name(f"{part.name}.lock")


def _note(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _read_note(part: Path) -> dict[str, Any]:
    try:
        return json.loads(_note(part).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
