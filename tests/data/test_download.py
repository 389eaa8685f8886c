"""Data sets downloaded by name: stored, found, verified, missing."""

import hashlib

import h5py
import numpy as np
import pytest

from jacrec import cli
from jacrec.data import fetch as fetching
from jacrec.data import load
from jacrec.data.behaviour.collect import Episode
from jacrec.data.d4rl_files import D4RL_FILES, D4RLFile, d4rl_file, datasets_root, find_d4rl
from jacrec.data.download import get
from jacrec.data.fetch import DownloadError, check_sum
from jacrec.data.readers.minari import local_ids, write_minari
from jacrec.envs.physics import make_env
from jacrec.training.config import published_name
from tests.file_server import Server


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.setenv("JACREC_DATA", str(tmp_path / "ours"))
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path / "theirs"))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path


def hdf5_bytes(path) -> bytes:
    """A small file in the layout of D4RL's Hopper data sets."""
    rng, n = np.random.default_rng(1), 40
    states = rng.standard_normal((n + 1, 11)).astype(np.float32)
    with h5py.File(path, "w") as file:
        file["observations"], file["next_observations"] = states[:-1], states[1:]
        file["actions"], file["rewards"] = rng.uniform(-1, 1, (n, 3)).astype(np.float32), np.ones(n, np.float32)
        file["terminals"], file["timeouts"] = np.zeros(n, bool), np.arange(n) % 20 == 19
    return path.read_bytes()


def serve(server, monkeypatch, name: str, sha256: str | None = None) -> None:
    """Let the server replace D4RL's host for one of the 24 data sets."""
    entry = D4RL_FILES[name]
    own = D4RLFile(name, server.url.replace("set.hdf5", entry.file), entry.env_id, sha256)
    monkeypatch.setitem(D4RL_FILES, name, own)


def test_load_and_train_find_a_downloaded_data_set_by_name(server, folders, monkeypatch, capsys):
    name = "hopper-medium-replay-v2"
    server.content = hdf5_bytes(folders / "made.hdf5")
    serve(server, monkeypatch, name)
    with pytest.raises(
        FileNotFoundError,
        match=r"^hopper-medium-replay-v2: .*hopper_medium_replay-v2\.hdf5 in .*ours, got no file; .*`jacrec data get",
    ):
        load(name)
    assert cli.main(["data", "get", name]) == 0
    path = folders / "ours" / "hopper_medium_replay-v2.hdf5"
    assert f"downloaded, {path.stat().st_size / 1e6:.1f} MB, SHA-256 {check_sum(path)}, at {path}" in capsys.readouterr().out
    data = load(name)
    assert (data.info.name, data.info.env_id, len(data)) == (name, "Hopper-v4", 40)
    assert cli.main(["data", "get", name]) == 0
    assert "already here and unchanged" in capsys.readouterr().out
    assert len(server.asked) == 1
    assert cli.main(["data", "list"]) == 0
    assert name in capsys.readouterr().out
    assert cli.main(["data", "show", name]) == 0
    monkeypatch.chdir(folders)
    tiny = ["--stages", "reward", "--reward.hidden", "8", "--reward.updates", "2", "--reward.eval-transitions", "5"]
    assert cli.main(["train", name, *tiny]) == 0
    assert (folders / "runs" / "hopper-medium-replay-v2-s0" / "reward.safetensors").is_file()


def test_get_downloads_again_only_with_overwrite(server, folders, monkeypatch):
    name = "hopper-medium-v2"
    server.content = hdf5_bytes(folders / "made.hdf5")
    serve(server, monkeypatch, name)
    got = get(name)
    assert got.fetched
    got.path.write_bytes(server.content + b"a bit more")
    with pytest.raises(DownloadError, match=r"expected SHA-256 .* as recorded in hopper_medium-v2\.hdf5\.sha256"):
        get(name)
    assert get(name, overwrite=True).fetched
    assert got.path.read_bytes() == server.content
    assert not get("hopper_medium-v2.hdf5").fetched


def test_later_downloads_have_to_match_the_first(server, folders, monkeypatch, capsys):
    """The connection is not authenticated: a changed file may be anyone's."""
    name = "hopper-expert-v2"
    server.content = hdf5_bytes(folders / "made.hdf5")
    serve(server, monkeypatch, name)
    first = get(name)
    assert not first.authenticated
    assert not get(name).authenticated
    server.content, before = server.content + b"another", server.content
    for remove in (False, True):
        if remove:
            first.path.unlink()
        with pytest.raises(DownloadError, match=rf"^hopper-expert-v2: .*expected a file of SHA-256 {first.sha256}") as caught:
            get(name, overwrite=True)
        assert f"to accept another file, delete {first.path}.sha256" in str(caught.value)
        assert first.path.exists() != remove  # the old file is kept
    server.content = before
    assert get(name).sha256 == first.sha256
    server.content += b"another"
    first.path.with_name(f"{first.path.name}.sha256").unlink()
    assert get(name, overwrite=True).sha256 != first.sha256
    assert cli.main(["data", "get", name]) == 0
    assert "unauthenticated: D4RL serves this file by plain http" in capsys.readouterr().out


def test_a_reported_checksum_authenticates(server, folders, monkeypatch):
    name = "antmaze-umaze-v2"
    server.content = hdf5_bytes(folders / "made.hdf5")
    serve(server, monkeypatch, name, sha256=hashlib.sha256(server.content).hexdigest())
    assert get(name).authenticated
    assert get(name).authenticated


def test_get_rejects_a_file_with_another_checksum(server, folders, monkeypatch):
    name = "antmaze-umaze-v2"
    server.content = hdf5_bytes(folders / "made.hdf5")
    serve(server, monkeypatch, name, sha256="12ab")
    with pytest.raises(
        DownloadError,
        match=r"^antmaze-umaze-v2: .*expected a file of SHA-256 12ab(.|\n)*without a network: copy Ant_maze_u-maze",
    ):
        get(name)
    by_hand = datasets_root() / f"{name}.hdf5"
    by_hand.parent.mkdir(exist_ok=True)
    by_hand.write_bytes(server.content)
    with pytest.raises(DownloadError, match="expected SHA-256 12ab, as reported for antmaze-umaze-v2"):
        get(name)


def test_without_a_network_alternatives_are_listed(folders, monkeypatch, capsys):
    monkeypatch.setattr(fetching, "WAIT", 0.0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    nowhere = Server(url="http://127.0.0.1:9/set.hdf5")  # nothing listens on the discard port
    for name in ("hopper-medium-v2", "antmaze-umaze-v2", "walker2d-medium-v2"):
        serve(nowhere, monkeypatch, name)
    assert cli.main(["data", "get", "hopper-medium-v2", "antmaze-umaze-v2", "walker2d-medium-v2"]) == 2
    error = capsys.readouterr().err
    assert "([Errno 111] Connection refused)" in error
    assert f"copy hopper_medium-v2.hdf5 from a machine that has it to {folders / 'ours'}" in error
    assert "`jacrec data make hopper medium`" in error
    assert "`jacrec data make antmaze umaze`" in error
    assert "3 of 3 not downloaded" in error
    assert not list((folders / "ours").iterdir())


def test_unknown_names_list_the_known_ones(capsys):
    assert cli.main(["data", "get", "hopper-mediun-v2"]) == 2
    assert "expected one of hopper-random-v2, " in capsys.readouterr().err
    assert cli.main(["data", "get"]) == 2
    assert "e.g. `jacrec data get hopper-medium-replay-v2`" in capsys.readouterr().err


def test_minari_data_sets_are_downloaded_by_minari_and_verified(folders, monkeypatch):
    """Minari's client is replaced: there is no server here."""
    asked = []

    def download_dataset(dataset_id, force_download=False):
        asked.append((dataset_id, force_download))
        env = make_env("Hopper-v4")
        zeros = np.zeros((4, 11))
        episodes = [Episode(zeros, np.zeros((3, 3), np.float32), np.zeros(3), False)] * 2
        write_minari(dataset_id, episodes, env=env.unwrapped, metadata={}, overwrite=True)
        env.close()

    monkeypatch.setattr("minari.download_dataset", download_dataset)
    name = "mujoco/hopper/medium-v0"
    assert get(name).fetched
    assert not get(name).fetched
    assert asked == [(name, False)]
    file = next((folders / "minari").rglob("main_data.hdf5"))
    with file.open("r+b") as out:
        out.seek(-1, 2)
        out.write(b"?")
    with pytest.raises(
        DownloadError, match=r"^mujoco/hopper/medium-v0: .*jacrec\.sha256, got different files: data/main_data\.hdf5;"
    ):
        get(name)
    assert get(name, overwrite=True).fetched
    assert asked[1:] == [(name, True)]

    def unreachable(dataset_id, force_download=False):
        raise ConnectionError("no route")

    monkeypatch.setattr("minari.download_dataset", unreachable)
    with pytest.raises(
        DownloadError, match=r"^D4RL/antmaze/umaze-v1: .*\(ConnectionError: no route\)\nwithout a network: copy the folder"
    ):
        get("D4RL/antmaze/umaze-v1")


def test_a_partial_minari_data_set_is_replaced(folders, monkeypatch):
    """Files arrive one by one; the metadata arrive before the data."""
    name, asked, arrives = "mujoco/hopper/expert-v0", [], True

    def download_dataset(dataset_id, force_download=False):
        asked.append(force_download)
        if (folders / "minari" / dataset_id).exists() and not force_download:
            return  # as Minari's client does
        env = make_env("Hopper-v4")
        episode = Episode(np.zeros((4, 11)), np.zeros((3, 3), np.float32), np.zeros(3), False)
        path = write_minari(dataset_id, [episode], env=env.unwrapped, metadata={}, overwrite=True)
        env.close()
        if not arrives:
            (path / "data" / "main_data.hdf5").unlink()

    monkeypatch.setattr("minari.download_dataset", download_dataset)
    arrives = False
    with pytest.raises(DownloadError, match=r"^mujoco/hopper/expert-v0: .*complete .*expert-v0 .*got a partial one"):
        get(name)
    assert local_ids() == []
    with pytest.raises(FileNotFoundError, match=r"^mujoco/hopper/expert-v0: incomplete data set at"):
        load(name)
    arrives = True
    assert len(load(name)) == 3
    assert asked == [False, True, True]
    assert not get(name).fetched


def test_the_24_data_sets():
    assert len(D4RL_FILES) == 24
    assert len({entry.url for entry in D4RL_FILES.values()}) == 24
    assert len({entry.env_id for entry in D4RL_FILES.values()}) == 9
    for name, entry in D4RL_FILES.items():
        assert d4rl_file(name) is entry
        assert d4rl_file(f"some/folder/{entry.file}") is entry
        assert published_name(name) == published_name(entry.file) == name
    known = {
        "hopper-medium-replay-v2": "gym_mujoco_v2/hopper_medium_replay-v2.hdf5",
        "antmaze-umaze-v2": "ant_maze_v2/Ant_maze_u-maze_noisy_multistart_False_multigoal_False_sparse_fixed.hdf5",
        "antmaze-large-play-v2": "ant_maze_v2/Ant_maze_hardest-maze_noisy_multistart_True_multigoal_False_sparse_fixed.hdf5",
    }
    for name, path in known.items():
        assert D4RL_FILES[name].url == f"http://rail.eecs.berkeley.edu/datasets/offline_rl/{path}"
    assert d4rl_file("hopper-medium-v0") is None
    assert d4rl_file("kitchen-complete-v0") is None


def test_files_are_found_in_both_folders_under_both_names(folders):
    name = "antmaze-large-play-v2"
    assert find_d4rl(name) is None
    assert find_d4rl("mine-v2") is None
    for folder, file in (("theirs", D4RL_FILES[name].file), ("ours", f"{name}.hdf5"), ("ours", D4RL_FILES[name].file)):
        (folders / folder).mkdir(exist_ok=True)
        (folders / folder / file).write_text("")
        assert find_d4rl(name) == folders / folder / file
