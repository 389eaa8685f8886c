"""Mutations of data sets on disk: bytes, keys of HDF5 files and of archives, metadata; and what may come of them."""

import io
import json
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

from jacrec.data import load
from jacrec.data.transitions import Transitions
from tests.data.readers.sources import Case, assert_reads_as, plain_rows

ELSEWHERE = "/etc/hostname"
Mutation = Callable[[Case, np.random.Generator], str | None]
"""changes the files; returns the key that cannot be read any more, if there is one"""


def flip(case: Case, rng: np.random.Generator) -> None:
    """Change some bytes of the file, or of a Minari set's metadata."""
    path = case.metadata if case.metadata is not None and rng.random() < 0.3 else case.path
    content = bytearray(path.read_bytes())
    # headers of HDF5 and of archives are dense at the ends
    reach = len(content) if rng.random() < 0.5 else min(2048, len(content))
    for _ in range(int(rng.integers(1, 6))):
        at = int(rng.integers(reach))
        content[at if rng.random() < 0.7 else len(content) - 1 - at] ^= int(rng.integers(1, 256))
    path.write_bytes(content)


def overwrite(case: Case, rng: np.random.Generator) -> None:
    """Overwrite a stretch of the file with zeros, ones or a copy of another stretch."""
    content = bytearray(case.path.read_bytes())
    size = min(int(2 ** rng.uniform(0, 11)), len(content))
    at, other = (int(rng.integers(len(content) - size + 1)) for _ in range(2))
    content[at : at + size] = (bytes(size), b"\xff" * size, content[other : other + size])[int(rng.integers(3))]
    case.path.write_bytes(content)


def truncate(case: Case, rng: np.random.Generator) -> None:
    """Cut the file, or a Minari set's metadata."""
    path = case.metadata if case.metadata is not None and rng.random() < 0.2 else case.path
    content = path.read_bytes()
    path.write_bytes(content[: int(rng.integers(len(content)))])


def lengthen(case: Case, rng: np.random.Generator) -> None:
    """Insert bytes somewhere."""
    content = case.path.read_bytes()
    at = int(rng.integers(len(content) + 1))
    case.path.write_bytes(content[:at] + rng.bytes(int(rng.integers(1, 300))) + content[at:])


def change_values(value: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another type, shape or content for an array: valid, or an error."""
    choice = int(rng.integers(16))
    if choice < 6:
        return value.astype(("<f8", ">f4", "<f2", "<i4", "?", "<u2")[choice])
    row = int(rng.integers(max(1, len(value))))
    if choice < 10 and value.size:
        changed = value.astype(np.float64)
        changed[row] = (np.nan, np.inf, 1.5, -1.0)[choice - 6]
        return changed
    changes = (
        lambda: value[:row],
        lambda: np.concatenate((value, value[:1])),
        lambda: value.T,
        lambda: value.reshape(*value.shape, 1),
        lambda: value.ravel(),
        lambda: value[:, :0] if value.ndim == 2 else value[:0],
    )
    return changes[choice % 6]()


def strange(value: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An array that does not consist of real numbers."""
    n = len(value)
    compound = np.zeros(n, [("a", "f4"), ("b", "i4")])
    return (compound, np.full(n, b"text"), value.astype(complex), np.zeros(n, "V3"))[int(rng.integers(4))]


def keys_of(group: h5py.Group) -> list[str]:
    """Names of all arrays in an HDF5 file, in order."""
    names: list[str] = []
    group.visititems(lambda name, found: names.append(name) if isinstance(found, h5py.Dataset) else None)
    return sorted(name for name in names if "truncations" not in name and "achieved_goal" not in name)


def replace_key(case: Case, rng: np.random.Generator) -> str | None:
    """Replace an array of an HDF5 file by something else under the same name."""
    with h5py.File(case.path, "r+") as file:
        names = keys_of(file)
        key, other = (names[int(k)] for k in rng.integers(len(names), size=2))
        value = file[key][()]
        del file[key]
        choice = int(rng.integers(14))
        if choice < 4:
            file[key] = change_values(value, rng)
            return None
        if choice == 4:
            file[key] = strange(value, rng)
        elif choice == 5:
            file.create_group(key)
        elif choice == 6:
            file.create_dataset(key, data=h5py.Empty("f4"))
        elif choice == 7:
            file[key] = h5py.SoftLink("/" + (key if rng.random() < 0.5 else "nowhere"))
        elif choice == 8:
            file[key] = h5py.SoftLink("/" + other)
            return key if key == other else None
        elif choice == 9:
            file[key] = h5py.ExternalLink(ELSEWHERE, "/" + key)
        elif choice == 10:
            file.create_dataset(key, value.shape, value.dtype, external=[(ELSEWHERE, 0, h5py.h5f.UNLIMITED)])
        elif choice == 11:
            layout = h5py.VirtualLayout(value.shape, value.dtype)
            layout[:] = h5py.VirtualSource(ELSEWHERE, key, value.shape)
            file.create_virtual_dataset(key, layout)
        elif choice == 12:
            file[key] = np.dtype("f4")
        else:
            options = {"chunks": True, "compression": "gzip", "shuffle": True, "fletcher32": True}
            file.create_dataset(key, data=value, **options)
            return None
    return key


def remove_key(case: Case, rng: np.random.Generator) -> None:
    """Remove an array, or the environment that holds it."""
    with h5py.File(case.path, "r+") as file:
        names = keys_of(file)
        name = names[int(rng.integers(len(names)))]
        del file[name if rng.random() < 0.7 else name.split("/")[0]]


def replace_member(case: Case, rng: np.random.Generator) -> str | None:
    """Replace an array of an archive by another one, by an object, or by bytes that are no array."""
    with np.load(case.path) as file:
        content = {key: file[key] for key in file.files}
    key = list(content)[int(rng.integers(len(content)))]
    choice, bad = int(rng.integers(4)), True
    if choice == 0:
        content[key], bad = change_values(content[key], rng), False
    elif choice == 1:
        content[key] = strange(content[key], rng)
    elif choice == 2:
        content[key] = np.array([{"a": 1}] * len(content[key]), object)
    np.savez(case.path, **content)
    if choice == 3:
        buffer = io.BytesIO(case.path.read_bytes())
        with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(case.path, "w") as new:
            for name in old.namelist():
                new.writestr(name, rng.bytes(200) if name == f"{key}.npy" else old.read(name))
    return key if bad else None


JUNK = (
    None,
    5,
    -1,
    10**13,
    1.5,
    float("nan"),
    "",
    "text",
    [],
    {},
    {"type": "Box"},
    "{}",
    '{"id": 5}',
    '{"id": "os:A-v0"}',
    True,
)


def change_metadata(case: Case, rng: np.random.Generator) -> None:
    """Replace an entry of a Minari set's metadata, remove it, or replace the whole."""
    content = json.loads(case.metadata.read_text())
    key = sorted({*content, "env_spec", "ref_min_score", "jacrec", "description"})[int(rng.integers(len(content) + 4)) - 4]
    junk = JUNK[int(rng.integers(len(JUNK)))]
    if rng.random() < 0.1:
        content = junk
    elif rng.random() < 0.2:
        content.pop(key, None)
    else:
        content[key] = junk
    case.metadata.write_text(json.dumps(content))


def mutations_for(kind: str) -> list[Mutation]:
    """The mutations that apply to a kind of data set."""
    bytes_ = [flip, flip, overwrite, truncate, lengthen]
    if kind in ("npz", "ogbench"):
        return [*bytes_, replace_member, replace_member]
    structure = [replace_key, replace_key, replace_key, remove_key]
    return [*bytes_, *structure, *([change_metadata] if kind in ("minari", "goals") else [])]


def outcome(case: Case, unreadable: str | None, repair: bool) -> str:
    """Load a mutated data set: "read" if the result is what a plain loop reads, "refused" with a proper error.

    Raises:
        AssertionError: a wrong result, or an error that does not name what is wrong.
        Exception: whatever else the readers raise.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            read = load(case.source, download=False, repair=repair)
        except (ValueError, OSError) as error:
            _expect_named(error, case, unreadable)
            return "refused"
    assert unreadable is None or unreadable == "infos/goal", f"{unreadable} was read"
    odd = [w for w in caught if not issubclass(w.category, UserWarning)]
    assert not odd, odd[0].message
    _expect_numbers(read)
    if not any("repaired" in str(w.message) for w in caught):
        assert_reads_as(read, plain_rows(case))
    return "read"


def _expect_named(error: Exception, case: Case, unreadable: str | None) -> None:
    text = "\n".join([str(error), *getattr(error, "__notes__", ())])
    folder: Path = case.path.parent.parent if case.metadata is not None else case.path
    assert str(folder) in text, f"the error does not name {folder}: {text}"
    assert unreadable is None or unreadable in text, f"the error does not name {unreadable}: {text}"
    assert "expected" in text or isinstance(error, FileNotFoundError), text


def _expect_numbers(read: Transitions) -> None:
    for part in (read, *([] if read.blind_ends is None else [read.blind_ends])):
        for name, value in vars(part).items():
            if isinstance(value, np.ndarray):
                assert len(value) == len(part), name
                assert np.isfinite(value).all(), name
        assert np.abs(part.action).max(initial=0.0) <= 1.0
