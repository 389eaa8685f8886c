"""Tensors on disk: whole, or one sentence that names the file."""

import random

import pytest
import torch
from safetensors.torch import save_file

from jacrec.util.tensors import read_tensors, usable_device, with_checksum, without_checksum, write_tensors

TENSORS = {
    "weight": torch.arange(12.0).reshape(3, 4),
    "empty": torch.zeros(0, 2),
    "scalar": torch.tensor(2.5, dtype=torch.float64),
    "flags": torch.tensor([True, False]),
    "half": torch.ones(3, dtype=torch.bfloat16),
}


def read(path):
    tensors, metadata = read_tensors(path, "copy it again")
    return tensors, without_checksum(tensors, metadata, path, "copy it again")


def write(path):
    write_tensors(path, TENSORS, with_checksum(TENSORS, {"update": "15"}))
    return path


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("gpu", "device: expected a device of torch such as cpu, cuda or cuda:0, got 'gpu'"),
        ("auto", "got 'auto'"),
        (None, "got None"),
        ("meta", "device: expected one that torch can use here, got 'meta'"),
        ("cuda:99", "device: expected one that torch can use here, got 'cuda:99'; `jacrec doctor`"),
    ],
)
def test_devices_that_do_not_serve(device, message):
    assert usable_device("device", "cpu") == usable_device("device", torch.device("cpu"))
    with pytest.raises(ValueError, match=message):
        usable_device("device", device)


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(IsADirectoryError, match="expected the name of a file, got a folder"):
        write(tmp_path)
    assert not list(tmp_path.parent.glob("*.part"))


def test_tensors_and_metadata_are_read_as_written(tmp_path):
    tensors, metadata = read(write(tmp_path / "file"))
    assert metadata == {"update": "15"}
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[k], v) and tensors[k].dtype == v.dtype for k, v in TENSORS.items())


def test_a_flipped_bit_is_found_wherever_it_is(tmp_path):
    raw = write(tmp_path / "file").read_bytes()
    rng, changed = random.Random(0), tmp_path / "changed"
    for place in range(len(raw)):
        flipped = bytearray(raw)
        flipped[place] ^= 1 << rng.randrange(8)
        changed.write_bytes(flipped)
        told, tensors, metadata = "", {}, {}
        try:
            tensors, metadata = read(changed)
        except ValueError as error:
            told = str(error)
        # or it is white space between header and data, or the name of the entry with the checksum, which its reader checks
        harmless = metadata.keys() != {"update"} or all(torch.equal(tensors[k], v) for k, v in TENSORS.items())
        assert (told.startswith(f"{changed}: ") and told.endswith("copy it again")) if told else harmless


@pytest.mark.parametrize("share", [0.0, 0.1, 0.9, 0.999])
def test_a_truncated_file_is_told(tmp_path, share):
    raw = write(tmp_path / "file").read_bytes()
    (tmp_path / "cut").write_bytes(raw[: int(share * len(raw))])
    with pytest.raises(ValueError, match=r"cut: expected a whole safetensors file, got a damaged one .*; copy it again"):
        read(tmp_path / "cut")


def test_files_of_earlier_versions_have_no_checksum(tmp_path):
    save_file(TENSORS, tmp_path / "old", metadata={"update": "15"})
    assert read(tmp_path / "old")[1] == {"update": "15"}
    save_file(TENSORS, tmp_path / "older")
    assert read(tmp_path / "older")[1] == {}
