"""HDF5 files that are damaged, in use, or refer to something outside them."""

import subprocess
import sys

import h5py
import numpy as np
import pytest

from jacrec import cli
from jacrec.data import describe, load
from tests.data.readers.sources import ANTMAZE, make

VALUES = {"observations": (24, 3), "rewards": (24,), "timeouts": (24,), "next_observations": (24, 3)}


@pytest.fixture
def case(tmp_path):
    return make("successors", tmp_path, tmp_path)


def external_storage(file, key, other):
    file.create_dataset(key, VALUES[key], "u1", external=[(str(other), 0, h5py.h5f.UNLIMITED)])


def virtual(file, key, other):
    layout = h5py.VirtualLayout(VALUES[key], "f4")
    layout[:] = h5py.VirtualSource(str(other), key, VALUES[key])
    file.create_virtual_dataset(key, layout)


def group_through_a_link(file, key, other):
    """Only the group above the array is a link out of the file."""
    file["away"] = h5py.ExternalLink(str(other), "/")
    file[key] = h5py.SoftLink(f"/away/{key}")


OUTSIDE = {
    "link": lambda file, key, other: file.__setitem__(key, h5py.ExternalLink(str(other), key)),
    "storage": external_storage,
    "virtual": virtual,
    "group": group_through_a_link,
}
DAMAGED = {
    "group": lambda file, key: file.create_group(key),
    "null": lambda file, key: file.create_dataset(key, data=h5py.Empty("f4")),
    "compound": lambda file, key: file.create_dataset(key, (24,), [("a", "f4")]),
    "text": lambda file, key: file.create_dataset(key, data=[b"x"] * 24),
    "complex": lambda file, key: file.create_dataset(key, VALUES[key], complex),
    "references": lambda file, key: file.create_dataset(key, (24,), h5py.ref_dtype),
    "type": lambda file, key: file.__setitem__(key, np.dtype("f4")),
    "dangling": lambda file, key: file.__setitem__(key, h5py.SoftLink("/nowhere")),
    "looping": lambda file, key: file.__setitem__(key, h5py.SoftLink(f"/{key}")),
    "through an array": lambda file, key: file.__setitem__(key, h5py.SoftLink("/actions/deeper")),
    "scalar": lambda file, key: file.create_dataset(key, data=1.0),
    "deep": lambda file, key: file.create_dataset(key, (24, 3, 2), "f4"),
    "wide": lambda file, key: file.create_dataset(key, (12, 2), "f4"),
}


@pytest.mark.parametrize("key", VALUES)
@pytest.mark.parametrize("how", OUTSIDE)
def test_nothing_outside_the_file_is_read(case, tmp_path, how, key):
    """Not even if what is there would fit."""
    other = tmp_path / "other.h5"
    other.write_bytes(case.path.read_bytes())
    with h5py.File(case.path, "r+") as file:
        del file[key]
        OUTSIDE[how](file, key, other)
    with pytest.raises(ValueError, match=rf"mine\.h5: {key}: expected .*in the file itself, got a .*another file"):
        load(case.path)


@pytest.mark.parametrize("key", VALUES)
@pytest.mark.parametrize("how", DAMAGED)
def test_what_is_not_an_array_of_numbers_is_named(case, how, key):
    with h5py.File(case.path, "r+") as file:
        del file[key]
        DAMAGED[how](file, key)
    with pytest.raises(ValueError, match=rf"{key}: expected .*, got ") as caught:
        load(case.path)
    assert "mine.h5" in "\n".join([str(caught.value), *getattr(caught.value, "__notes__", ())])


def test_soft_links_within_the_file_are_followed(case):
    expected = load(case.path)
    with h5py.File(case.path, "r+") as file:
        file["kept/states"], file["kept/alias"] = file["observations"], h5py.SoftLink("states")
        del file["observations"]
        file["observations"] = h5py.SoftLink("/kept/alias")
    read = load(case.path)
    for name, value in vars(expected).items():
        if isinstance(value, np.ndarray):
            assert np.array_equal(getattr(read, name), value), name


@pytest.mark.parametrize("goal", [np.zeros(24), np.full(24, b"text"), np.zeros((23, 2)), np.full((24, 2), np.nan)])
def test_the_goals_of_antmaze_have_to_fit(tmp_path, goal):
    case = make("antmaze", tmp_path, tmp_path)
    with h5py.File(case.path, "r+") as file:
        del file["infos/goal"]
        file["infos/goal"] = goal
    with pytest.raises(ValueError, match=r"infos/goal: expected .*, got "):
        load(tmp_path / ANTMAZE)


def test_memory_is_not_read_in_place_of_missing_bytes(case):
    """HDF5 does not notice that a chunk is shorter than it should be."""
    with h5py.File(case.path) as file:
        chunk = file["rewards"].id.get_chunk_info(0)
    content, size = case.path.read_bytes(), chunk.size.to_bytes(4, "little")
    # the size stands before the chunk's address, with its filters and its offsets between them
    address = content.index(chunk.byte_offset.to_bytes(8, "little"), content.index(b"TREE"))
    at = next(k for k in range(address, 0, -1) if content[k : k + 4] == size)
    case.path.write_bytes(content[:at] + (8).to_bytes(4, "little") + content[at + 4 :])
    with h5py.File(case.path) as file:
        assert file["rewards"].id.get_storage_size() == 8
    with pytest.raises(
        ValueError, match=r"mine\.h5: rewards: expected an array of shape \(24,\), got one without 88 of its bytes"
    ):
        load(case.path)


def test_what_was_never_written_holds_the_fill_value(tmp_path):
    case = make("hdf5", tmp_path, tmp_path)
    for chunks in (None, (5,)):
        with h5py.File(case.path, "r+") as file:
            del file["timeouts"]
            file.create_dataset("timeouts", (24,), bool, chunks=chunks)
        assert load(case.path).episode.tolist() == [0] * 5 + [1] * 17


@pytest.mark.parametrize("options", [{"compression": "gzip"}, {"compression": "lzf"}, {"shuffle": True}, {"fletcher32": True}])
def test_filtered_arrays_are_read(case, options):
    expected = load(case.path)
    with h5py.File(case.path, "r+") as file:
        for key in list(file):
            value = file[key][()]
            del file[key]
            file.create_dataset(key, data=value, chunks=(5, *value.shape[1:]), **options)
    assert np.array_equal(load(case.path).next_state, expected.next_state)


def test_an_error_of_the_command_line_names_the_file(case, capsys):
    with h5py.File(case.path, "r+") as file:
        file["actions"][3, 1] = 7.0
    assert cli.main(["data", "show", str(case.path)]) == 2
    error = capsys.readouterr().err
    assert "in row 3" in error
    assert f"in the file {case.path}" in error


def in_another_process(path, then: str) -> subprocess.Popen:
    """Open the file for writing in a process of its own, and wait until it is open."""
    script = f"import h5py, os, sys; f = h5py.File({str(path)!r}, 'r+', libver='latest'); print('open', flush=True); {then}"
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"open\n"
    return process


def test_a_file_in_use_is_said_to_be_in_use(case):
    with in_another_process(case.path, "sys.stdin.read()") as process:
        try:
            with pytest.raises(ValueError, match=r"mine\.h5: expected a file that is not in use, got a locked one: .*wait"):
                load(case.path)
        finally:
            process.stdin.close()
    assert len(load(case.path)) == 24


def test_a_file_that_a_killed_program_left_open_is_said_to_be_open(case):
    with h5py.File(case.path) as old, h5py.File(case.path.with_suffix(".new"), "w", libver="latest") as new:
        for key in old:
            new[key] = old[key][()]
    case.path.with_suffix(".new").rename(case.path)
    with in_another_process(case.path, "os._exit(1)"):
        pass
    with pytest.raises(ValueError, match=r"mine\.h5: expected a closed file, got an open one: .*`h5clear -s`"):
        load(case.path)


@pytest.mark.parametrize("suffix", [".h5", ".npz"])
def test_an_environment_named_by_a_file_imports_nothing(case, tmp_path, monkeypatch, suffix):
    """gymnasium imports the module of an id module:Env-v0."""
    (tmp_path / "stranger.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    path = case.path
    if suffix == ".npz":
        path = make("npz", tmp_path, tmp_path).path
        with np.load(path) as file:
            np.savez(path, **file, env_id="stranger:Env-v0")
    else:
        with h5py.File(path, "r+") as file:
            file.attrs["env_id"] = "stranger:Env-v0"
    with pytest.raises(ValueError, match=r"attribute env_id: expected .*registered .*got 'stranger:Env-v0'.*--env-id"):
        load(path)
    with pytest.raises(ValueError, match="'stranger:Env-v0'"):
        describe(path)
    assert load(path, env_id="stranger:Env-v0").info.env_id == "stranger:Env-v0"
    assert "stranger" not in sys.modules


def test_a_damaged_attribute_is_named(case):
    with h5py.File(case.path, "r+") as file:
        file.attrs.create("env_id", b"\xff\xfe", dtype=h5py.string_dtype())
    with pytest.raises(ValueError, match=r"mine\.h5: attribute env_id: expected readable contents") as caught:
        load(case.path)
    assert isinstance(caught.value, ValueError)
