"""Data sets from the network: resumed where they were interrupted, checked, and in place only when they are whole.

    get(name, *, progress=None, overwrite=False) -> Got(path, bytes, sha256, fetched)      one of D4RL's 24, or a Minari id
    fetch(url, path, *, sha256=None, magic=b"", progress=None, timeout=30.0) -> str      any file
    check_sum(path) -> str                                                              against what was recorded

A file is written to NAME.part and renamed when it is complete; NAME.part.json remembers which file of the server the part
belongs to. Its SHA-256 is recorded in NAME.sha256 in the form that `sha256sum -c` reads, and later calls hold the file
against it. Minari's own client fetches Minari's sets and resumes them; their files' sums are recorded in the set's folder.
"""

import fcntl
import hashlib
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any

from jacrec.data.d4rl_files import D4RL_FILES, D4RLFile, d4rl_file, datasets_root, find_d4rl
from jacrec.data.minari import dataset_path, is_complete

BLOCK = 1 << 20
HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
ATTEMPTS = 3
"""how often in a row a transfer may end without a new byte before it is given up"""
WAIT = 1.0
"""seconds before it is taken up again, times the attempts without a new byte"""
SUMS = "jacrec.sha256"
"""file of recorded sums in the folder of a Minari set"""
Progress = Callable[[int, int | None], None]
"""called with the bytes that are here and those that the whole has, None where the server does not say"""


class DownloadError(OSError):
    """A file could not be had, or is not the expected one; the message says what to do."""


@dataclass(frozen=True)
class Got:
    """What `get` found or fetched."""

    path: Path
    size: int
    """bytes"""
    sha256: str | None
    """of the file; None for Minari sets, which have several"""
    fetched: bool
    """False: it was here and agrees with its recorded sum"""


def get(name: str, *, progress: Progress | None = None, overwrite: bool = False) -> Got:
    """A data set from the network, unless it is here.

    Raises:
        ValueError: neither one of D4RL's 24 (``hopper-medium-replay-v2``) nor a Minari id with namespace.
        DownloadError: no network, no such set, another sum than recorded, or a file that ends early.
    """
    entry = D4RL_FILES.get(name) or (None if "/" in name else d4rl_file(name))
    if entry is not None:
        return _get_d4rl(entry, progress, overwrite)
    if "/" not in name:
        raise ValueError(
            f"data set: expected one of {', '.join(D4RL_FILES)}, or a Minari id such as 'mujoco/hopper/medium-v0' or "
            f"'D4RL/antmaze/umaze-v1', got {name!r}"
        )
    return _get_minari(name, overwrite)


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
        DownloadError: no connection, an answer other than the file, an early end, another sum than `sha256` or opening than
            `magic`, or another process is fetching it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    with _alone(part):
        stalled = 0
        while True:
            before = part.stat().st_size
            try:
                _transfer(url, part, progress, timeout)
                break
            except (urllib.error.URLError, HTTPException, OSError) as error:
                refused = isinstance(error, urllib.error.HTTPError) and error.code < 500
                stalled = 0 if part.stat().st_size > before else stalled + 1
                if refused or stalled >= ATTEMPTS:
                    reason = getattr(error, "reason", None) or error or type(error).__name__
                    here = f"; {part.stat().st_size} bytes are kept, the same call goes on" if part.stat().st_size else ""
                    raise DownloadError(f"{url}: cannot be fetched ({reason}){here}") from error
                time.sleep(WAIT * stalled)
        digest = _digest(part)
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
    """The SHA-256 of a file, held against the one recorded beside it; recorded now where none was.

    Raises:
        DownloadError: they differ.
    """
    digest, record = _digest(path), _sum_file(path)
    if not record.is_file():
        _record(path, digest)
        return digest
    expected = record.read_text(encoding="utf-8").split()[0]
    if digest != expected:
        raise DownloadError(
            f"{path}: expected SHA-256 {expected} as recorded in {record.name}, got {digest}; the file has changed since: "
            f"fetch it again with --overwrite, or delete {record} if you changed it yourself"
        )
    return digest


def _get_d4rl(entry: D4RLFile, progress: Progress | None, overwrite: bool) -> Got:
    path = find_d4rl(entry.name)
    if path is not None and not overwrite:
        digest = check_sum(path)
        if entry.sha256 is not None and digest != entry.sha256:
            raise DownloadError(
                f"{path}: expected SHA-256 {entry.sha256}, which users report of {entry.name}, got {digest}; fetch it again "
                "with --overwrite, or use it as it is by its path"
            )
        return Got(path, path.stat().st_size, digest, False)
    path = datasets_root() / entry.file
    try:
        digest = fetch(entry.url, path, sha256=entry.sha256, magic=HDF5_MAGIC, progress=progress)
    except DownloadError as error:
        raise DownloadError(f"{entry.name}: {error}\n{alternatives(entry.name)}") from error
    return Got(path, path.stat().st_size, digest, True)


def alternatives(name: str) -> str:
    """How to come by a data set without a network, or by another in its place."""
    entry = D4RL_FILES.get(name)
    if entry is None:
        copy = f"copy the folder of {name} from a machine that has it to {dataset_path(name)}"
        return f"without a network: {copy}; or make one here: `jacrec data make --help`"
    copy = f"copy {entry.file} from a machine that has it to {datasets_root()}, or name the file's path"
    robot, _, kind = name.removesuffix("-v2").partition("-")
    if robot == "walker2d":  # no embedded behaviour walks it
        robot, kind = ("Walker2d-v4", kind) if kind == "random" else ("hopper", kind)
    return f"without a network: {copy}; or make a set of its kind here: `jacrec data make {robot} {kind}`"


def _get_minari(dataset_id: str, overwrite: bool) -> Got:
    path = dataset_path(dataset_id)
    fetched = overwrite or not is_complete(path)
    if fetched:
        import minari

        try:
            minari.download_dataset(dataset_id, force_download=overwrite)
        # every transport has errors of its own: missing extra, no network, no such set
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise DownloadError(f"{dataset_id}: Minari cannot fetch it ({reason})\n{alternatives(dataset_id)}") from error
        (path / SUMS).unlink(missing_ok=True)
    _check_folder(dataset_id, path)
    size = sum(file.stat().st_size for file in (path / "data").rglob("*") if file.is_file())
    return Got(path, size, None, fetched)


def _check_folder(dataset_id: str, path: Path) -> None:
    """Hold the files of a Minari set against their recorded sums; record them where none are."""
    files = sorted(file for file in (path / "data").rglob("*") if file.is_file())
    sums = {file.relative_to(path).as_posix(): _digest(file) for file in files}
    record = path / SUMS
    if not record.is_file():
        record.write_text("".join(f"{digest}  {name}\n" for name, digest in sums.items()), encoding="utf-8")
        return
    recorded = {name: digest for digest, name in (line.split("  ", 1) for line in record.read_text("utf-8").splitlines())}
    changed = sorted(name for name in recorded.keys() | sums if recorded.get(name) != sums.get(name))
    if changed:
        raise DownloadError(
            f"{dataset_id}: expected the files of {record}, got others: {', '.join(changed)}; fetch it again with --overwrite, "
            f"or delete {record} if you changed them yourself"
        )


def _transfer(url: str, part: Path, progress: Progress | None, timeout: float) -> None:
    """Append to `part` what is missing of the file at `url`."""
    have = part.stat().st_size
    known = _read_note(part) if have else {}
    request = urllib.request.Request(url, headers={"User-Agent": "jacrec"})
    if have and known.get("url") == url and known.get("version"):
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", known["version"])
    else:
        have = 0
    try:
        answer = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code != 416 or known.get("total") not in (None, have):
            raise
        if known.get("total") == have:
            return  # all of it was here already
        answer = urllib.request.urlopen(urllib.request.Request(url), timeout=timeout)
    with answer:
        have, total = _position(answer, have)
        _note(part).write_text(json.dumps({"url": url, "version": _version(answer), "total": total}), encoding="utf-8")
        with part.open("r+b") as file:
            file.truncate(have)
            file.seek(have)
            while block := answer.read(BLOCK):
                file.write(block)
                have += len(block)
                if progress is not None:
                    progress(have, total)
    if total is not None and have != total:
        raise ConnectionError(f"it ended after {have} of {total} bytes")


def _position(answer: HTTPResponse, asked: int) -> tuple[int, int | None]:
    """(first byte that the answer holds, size of the whole file); a server that knows no ranges begins anew."""
    length = answer.headers.get("Content-Length")
    if answer.status != 206:
        return 0, int(length) if length else None
    span, _, total = answer.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
    if span.partition("-")[0] != str(asked):
        raise ConnectionError(f"asked for the bytes from {asked} on, got {span or 'unnamed ones'}")
    return asked, int(total) if total.isdigit() else None


def _version(answer: HTTPResponse) -> str | None:
    """What tells this file of the server from a later one of the same name."""
    etag = answer.headers.get("ETag")
    return etag if etag and not etag.startswith("W/") else answer.headers.get("Last-Modified")


@contextmanager
def _alone(part: Path) -> Iterator[None]:
    """The part exists and no other process writes it."""
    with part.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DownloadError(f"{part}: another process is fetching this file; wait for it") from error
        try:
            yield
        finally:
            if part.exists() and part.stat().st_size == 0:
                part.unlink()
                _note(part).unlink(missing_ok=True)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sum_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _record(path: Path, digest: str) -> None:
    _sum_file(path).write_text(f"{digest}  {path.name}\n", encoding="utf-8")


def _note(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _read_note(part: Path) -> dict[str, Any]:
    try:
        return json.loads(_note(part).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
