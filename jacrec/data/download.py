"""Download data sets by name: D4RL's files (`jacrec.data.fetch`) and Minari data sets (through Minari's client).

The checksums of a Minari data set's files are recorded in its folder.
"""

from dataclasses import dataclass
from pathlib import Path

from jacrec.data.d4rl_files import D4RL_FILES, D4RLFile, d4rl_file, datasets_root, find_d4rl
from jacrec.data.fetch import DownloadError, Progress, check_sum, digest_of, fetch, ignore_read_only, recorded_sum, sum_file
from jacrec.data.readers.minari import dataset_path
from jacrec.data.readers.minari_files import is_complete
from jacrec.data.readers.ogbench import MAGIC, URL, ogbench_file, validation_file
from jacrec.envs.ogbench import is_single_task

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
SUMS = "jacrec.sha256"
"""file of recorded checksums in the folder of a Minari data set"""


@dataclass(frozen=True)
class DownloadResult:
    """Where `get` found or stored a data set."""

    path: Path
    size: int
    """bytes"""
    sha256: str | None
    """of the file; None for Minari data sets, which consist of several files"""
    fetched: bool
    """False if a local copy was found and matches its recorded checksum"""
    authenticated: bool = True
    """False if nothing vouches for the file: it came by plain http, and only the checksum of the first download is known"""


def get(name: str, *, progress: Progress | None = None, overwrite: bool = False) -> DownloadResult:
    """Download a data set unless a local copy exists.

    D4RL's files come by plain http, without published checksums. The SHA-256 of the first download is recorded beside the file;
    later downloads of the same name have to match it, even if the file itself was deleted or is to be overwritten.

    Raises:
        ValueError: neither one of D4RL's 24 data sets (``hopper-medium-replay-v2``), nor a Minari id with a namespace, nor a
            single task of OGBench (``cube-single-play-singletask-v0``).
        DownloadError: no network, no such data set, a checksum mismatch, or a truncated file.
    """
    if is_single_task(name):
        return _get_ogbench(name, progress, overwrite)
    entry = D4RL_FILES.get(name) or (None if "/" in name else d4rl_file(name))
    if entry is not None:
        return _get_d4rl(entry, progress, overwrite)
    if "/" not in name:
        raise ValueError(
            f"name: expected one of {', '.join(D4RL_FILES)}, a Minari id such as 'mujoco/hopper/medium-v0' or "
            f"'D4RL/antmaze/umaze-v1', or a single task of OGBench such as 'cube-single-play-singletask-v0', got {name!r}"
        )
    return _get_minari(name, overwrite)


def _get_d4rl(entry: D4RLFile, progress: Progress | None, overwrite: bool) -> DownloadResult:
    path = find_d4rl(entry.name)
    if path is not None and not overwrite:
        digest = check_sum(path)
        if entry.sha256 is not None and digest != entry.sha256:
            raise DownloadError(
                f"{path}: expected SHA-256 {entry.sha256}, as reported for {entry.name}, got {digest}; download it again "
                "with --overwrite, or pass the file's path to use it as it is"
            )
        return DownloadResult(path, path.stat().st_size, digest, False, entry.sha256 is not None)
    path = datasets_root() / entry.file
    first = recorded_sum(path)
    try:
        digest = fetch(entry.url, path, sha256=entry.sha256 or first, magic=HDF5_MAGIC, progress=progress)
    except DownloadError as error:
        known = ""
        if first is not None and first in str(error):
            known = f"\n{first} was recorded for the first copy; to accept another file, delete {sum_file(path)}"
        raise DownloadError(f"{entry.name}: {error}{known}\n{offline_instructions(entry.name)}") from error
    return DownloadResult(path, path.stat().st_size, digest, True, entry.sha256 is not None or entry.url.startswith("https:"))


def _get_ogbench(name: str, progress: Progress | None, overwrite: bool) -> DownloadResult:
    """The file of the data and that for validation; the result is the former's."""
    path = ogbench_file(name)
    digests, fetched = [], False
    for file in (path, validation_file(path)):
        if file.is_file() and not overwrite:
            digests.append(check_sum(file))
            continue
        try:
            digests.append(fetch(f"{URL}/{file.name}", file, sha256=recorded_sum(file), magic=MAGIC, progress=progress))
        except DownloadError as error:
            raise DownloadError(
                f"{name}: {error}\nwithout a network: copy {file.name} from a machine that has it to {file}"
            ) from error
        fetched = True
    return DownloadResult(path, path.stat().st_size, digests[0], fetched)


def offline_instructions(name: str) -> str:
    """How to obtain a data set, or a substitute, without a network."""
    entry = D4RL_FILES.get(name)
    if entry is None:
        copy = f"copy the folder of {name} from a machine that has it to {dataset_path(name)}"
        return f"without a network: {copy}; or generate one: `jacrec data make --help`"
    copy = f"copy {entry.file} from a machine that has it to {datasets_root()}, or pass the file's path"
    robot, _, kind = name.removesuffix("-v2").partition("-")
    if robot == "walker2d":  # there is no embedded policy for Walker2d
        robot, kind = ("Walker2d-v4", kind) if kind == "random" else ("hopper", kind)
    return f"without a network: {copy}; or generate a similar data set: `jacrec data make {robot} {kind}`"


def fetch_minari(dataset_id: str, *, overwrite: bool = False) -> None:
    """Download a data set through Minari's client. A partial download from an interrupted call is replaced.

    Raises:
        DownloadError: no network, no such data set, a missing extra, or a data set that is still incomplete afterwards.
    """
    import minari

    path = dataset_path(dataset_id)
    try:
        # without force_download, the client accepts any existing folder of that name, complete or not
        minari.download_dataset(dataset_id, force_download=overwrite or path.exists())
    # each transport raises its own exceptions: missing extra, no network, no such data set
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise DownloadError(f"{dataset_id}: Minari's client failed ({reason})") from error
    if not is_complete(path):
        raise DownloadError(
            f"{dataset_id}: expected a complete data set at {path} after the download, got a partial one; download it again"
        )
    (path / SUMS).unlink(missing_ok=True)


def _get_minari(dataset_id: str, overwrite: bool) -> DownloadResult:
    path = dataset_path(dataset_id)
    fetched = overwrite or not is_complete(path)
    if fetched:
        try:
            fetch_minari(dataset_id, overwrite=overwrite)
        except DownloadError as error:
            raise DownloadError(f"{error}\n{offline_instructions(dataset_id)}") from error
    _check_folder(dataset_id, path)
    size = sum(file.stat().st_size for file in (path / "data").rglob("*") if file.is_file())
    return DownloadResult(path, size, None, fetched)


def _check_folder(dataset_id: str, path: Path) -> None:
    """Compare the files of a Minari data set with their recorded checksums; record them if there are none yet."""
    files = sorted(file for file in (path / "data").rglob("*") if file.is_file())
    sums = {file.relative_to(path).as_posix(): digest_of(file) for file in files}
    record = path / SUMS
    if not record.is_file():
        with ignore_read_only():
            record.write_text("".join(f"{digest}  {name}\n" for name, digest in sums.items()), encoding="utf-8")
        return
    recorded = {name: digest for digest, name in (line.split("  ", 1) for line in record.read_text("utf-8").splitlines())}
    changed = sorted(name for name in recorded.keys() | sums if recorded.get(name) != sums.get(name))
    if changed:
        raise DownloadError(
            f"{dataset_id}: expected the checksums in {record}, got different files: {', '.join(changed)}; download it again "
            f"with --overwrite, or delete {record} if you changed the files yourself"
        )
