"""Data sets from the network, by name.

    get(name, *, progress=None, overwrite=False) -> Got(path, size, sha256, fetched)      one of D4RL's 24, or a Minari id
    fetch_minari(dataset_id, *, overwrite=False)                                         through Minari's own client
    alternatives(name) -> str                                                            without a network

D4RL's files come by `jacrec.data.fetch`. Minari's client fetches Minari's sets and resumes them; their files' sums are
recorded in the set's folder.
"""

from dataclasses import dataclass
from pathlib import Path

from jacrec.data.d4rl_files import D4RL_FILES, D4RLFile, d4rl_file, datasets_root, find_d4rl
from jacrec.data.fetch import DownloadError, Progress, check_sum, digest_of, fetch, unless_read_only
from jacrec.data.readers.minari import dataset_path, is_complete

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
SUMS = "jacrec.sha256"
"""file of recorded sums in the folder of a Minari set"""


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


def fetch_minari(dataset_id: str, *, overwrite: bool = False) -> None:
    """Let Minari's client fetch a set; what an interrupted call left of it is not taken for the whole.

    Raises:
        DownloadError: no network, no such set, a missing extra, or a set that is not complete afterwards.
    """
    import minari

    path = dataset_path(dataset_id)
    try:
        # unless forced, the client is content with a folder of that name, whatever is in it
        minari.download_dataset(dataset_id, force_download=overwrite or path.exists())
    # every transport has errors of its own: missing extra, no network, no such set
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise DownloadError(f"{dataset_id}: Minari cannot fetch it ({reason})") from error
    if not is_complete(path):
        raise DownloadError(f"{dataset_id}: expected a complete set at {path} after fetching it, got a part; fetch it again")
    (path / SUMS).unlink(missing_ok=True)


def _get_minari(dataset_id: str, overwrite: bool) -> Got:
    path = dataset_path(dataset_id)
    fetched = overwrite or not is_complete(path)
    if fetched:
        try:
            fetch_minari(dataset_id, overwrite=overwrite)
        except DownloadError as error:
            raise DownloadError(f"{error}\n{alternatives(dataset_id)}") from error
    _check_folder(dataset_id, path)
    size = sum(file.stat().st_size for file in (path / "data").rglob("*") if file.is_file())
    return Got(path, size, None, fetched)


def _check_folder(dataset_id: str, path: Path) -> None:
    """Hold the files of a Minari set against their recorded sums; record them where none are."""
    files = sorted(file for file in (path / "data").rglob("*") if file.is_file())
    sums = {file.relative_to(path).as_posix(): digest_of(file) for file in files}
    record = path / SUMS
    if not record.is_file():
        with unless_read_only():
            record.write_text("".join(f"{digest}  {name}\n" for name, digest in sums.items()), encoding="utf-8")
        return
    recorded = {name: digest for digest, name in (line.split("  ", 1) for line in record.read_text("utf-8").splitlines())}
    changed = sorted(name for name in recorded.keys() | sums if recorded.get(name) != sums.get(name))
    if changed:
        raise DownloadError(
            f"{dataset_id}: expected the files of {record}, got others: {', '.join(changed)}; fetch it again with --overwrite, "
            f"or delete {record} if you changed them yourself"
        )
