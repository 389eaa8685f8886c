"""Fetching from a server on this machine: whole, resumed, cut, changed, refused, absent."""

import fcntl
import hashlib
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import h5py
import numpy as np
import pytest

from jacrec import cli
from jacrec.data import download, load
from jacrec.data.collect import Episode
from jacrec.data.d4rl_files import D4RL_FILES, D4RLFile, d4rl_file, datasets_root, find_d4rl
from jacrec.data.download import DownloadError, check_sum, fetch, get
from jacrec.data.minari import write_minari
from jacrec.envs.physics import make_env
from jacrec.training.config import published_name

CONTENT = np.random.default_rng(0).bytes(300_000)


@dataclass
class Server:
    """What the server answers, and what it was asked."""

    url: str = ""
    content: bytes = CONTENT
    version: str | None = '"one"'
    ranges: bool = True
    cut: list[int] = field(default_factory=list)
    """bytes of the body after which the next answers break off"""
    status: int | None = None
    asked: list[str | None] = field(default_factory=list)
    """the Range of each request"""


@pytest.fixture
def server(monkeypatch):
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_GET(self):
            span = self.headers.get("Range")
            state.asked.append(span)
            if state.status is not None:
                self.send_error(state.status)
                return
            start, total = 0, len(state.content)
            if span and state.ranges and self.headers.get("If-Range") == state.version:
                start = int(span.removeprefix("bytes=").rstrip("-"))
            if start >= total:
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
            self.send_header("Content-Length", str(total - start))
            if state.version:
                self.send_header("ETag", state.version)
            self.end_headers()
            body = state.content[start:]
            self.wfile.write(body[: state.cut.pop(0)] if state.cut else body)

    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    state.url = f"http://127.0.0.1:{web.server_port}/set.hdf5"
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "WAIT", 0.0)
    yield state
    web.shutdown()
    web.server_close()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_whole_file_is_in_place_with_its_sum(server, tmp_path):
    seen = []
    digest = fetch(server.url, tmp_path / "new" / "set.hdf5", progress=lambda have, total: seen.append((have, total)))
    assert digest == hashlib.sha256(CONTENT).hexdigest()
    assert (tmp_path / "new" / "set.hdf5").read_bytes() == CONTENT
    assert names(tmp_path / "new") == ["set.hdf5", "set.hdf5.sha256"]
    assert (tmp_path / "new" / "set.hdf5.sha256").read_text() == f"{digest}  set.hdf5\n"
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert check_sum(tmp_path / "new" / "set.hdf5") == digest


def test_a_broken_transfer_goes_on_where_it_stopped(server, tmp_path):
    server.cut = [100_000, 50_000]
    fetch(server.url, tmp_path / "set.hdf5")
    assert (tmp_path / "set.hdf5").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=100000-", "bytes=150000-"]


def test_an_interrupted_call_leaves_a_part_and_the_next_one_goes_on(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "BLOCK", 70_000)

    def interrupt(have, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(server.url, tmp_path / "set.hdf5", progress=interrupt)
    assert names(tmp_path) == ["set.hdf5.part", "set.hdf5.part.json"]
    fetch(server.url, tmp_path / "set.hdf5")
    assert server.asked == [None, "bytes=70000-"]
    assert (tmp_path / "set.hdf5").read_bytes() == CONTENT
    assert names(tmp_path) == ["set.hdf5", "set.hdf5.sha256"]


def test_another_version_on_the_server_is_not_appended_to_the_old_one(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "ATTEMPTS", 0)
    server.cut = [100_000]
    with pytest.raises(DownloadError, match="100000 bytes are kept, the same call goes on"):
        fetch(server.url, tmp_path / "set.hdf5")
    server.content, server.version = CONTENT[::-1], '"two"'
    fetch(server.url, tmp_path / "set.hdf5")
    assert (tmp_path / "set.hdf5").read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("change", [{"ranges": False}, {"version": None}, {"version": 'W/"weak"'}])
def test_a_server_that_cannot_resume_is_asked_for_all(server, tmp_path, change):
    for name, value in change.items():
        setattr(server, name, value)
    server.cut = [100_000]
    fetch(server.url, tmp_path / "set.hdf5")
    assert (tmp_path / "set.hdf5").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=100000-" if "ranges" in change else None]


def test_a_part_that_is_all_there_is_finished(server, tmp_path, monkeypatch):
    """Killed between the last byte and the renaming."""
    monkeypatch.setattr(download, "_digest", lambda path: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fetch(server.url, tmp_path / "set.hdf5")
    monkeypatch.undo()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    fetch(server.url, tmp_path / "set.hdf5")
    assert (tmp_path / "set.hdf5").read_bytes() == CONTENT
    assert server.asked == [None, f"bytes={len(CONTENT)}-"]


def test_a_file_that_always_ends_early_is_not_put_in_place(server, tmp_path):
    server.cut = [0] * 20
    with pytest.raises(DownloadError, match=r"cannot be fetched \(it ended after 0 of 300000 bytes\)"):
        fetch(server.url, tmp_path / "set.hdf5")
    assert names(tmp_path) == []
    assert len(server.asked) == download.ATTEMPTS


def test_a_wrong_sum_or_another_kind_of_file_is_removed_and_told(server, tmp_path):
    (tmp_path / "set.hdf5").write_text("the old one")
    with pytest.raises(DownloadError, match=r"expected a file of SHA-256 0000, got 300000 bytes of SHA-256 .* now removed"):
        fetch(server.url, tmp_path / "set.hdf5", sha256="0000")
    server.content = b"<html>please log in</html>"
    with pytest.raises(DownloadError, match=r"expected a file beginning with b'HDF', got 26 bytes"):
        fetch(server.url, tmp_path / "set.hdf5", magic=b"HDF")
    assert names(tmp_path) == ["set.hdf5"]
    assert (tmp_path / "set.hdf5").read_text() == "the old one"


def test_a_refusal_is_not_repeated_and_leaves_nothing(server, tmp_path):
    server.status = 404
    with pytest.raises(DownloadError, match=r"cannot be fetched \(Not Found\)"):
        fetch(server.url, tmp_path / "set.hdf5")
    assert len(server.asked) == 1
    assert names(tmp_path) == []


def test_two_at_once_do_not_write_the_same_part(server, tmp_path):
    with (tmp_path / "set.hdf5.part").open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(DownloadError, match="another process is fetching this file"):
            fetch(server.url, tmp_path / "set.hdf5")
    fetch(server.url, tmp_path / "set.hdf5")
    assert (tmp_path / "set.hdf5").read_bytes() == CONTENT


def test_a_changed_file_is_noticed(tmp_path):
    path = tmp_path / "set.hdf5"
    path.write_bytes(b"one")
    assert check_sum(path) == hashlib.sha256(b"one").hexdigest()
    path.write_bytes(b"two")
    with pytest.raises(DownloadError, match=r"expected SHA-256 7692.* as recorded in set\.hdf5\.sha256, got 3fc4.*--overwrite"):
        check_sum(path)


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.setenv("JACREC_DATA", str(tmp_path / "ours"))
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path / "theirs"))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path


def hdf5_bytes(path) -> bytes:
    """A small file in the layout of D4RL's Hopper sets."""
    rng, n = np.random.default_rng(1), 40
    states = rng.standard_normal((n + 1, 11)).astype(np.float32)
    with h5py.File(path, "w") as file:
        file["observations"], file["next_observations"] = states[:-1], states[1:]
        file["actions"], file["rewards"] = rng.uniform(-1, 1, (n, 3)).astype(np.float32), np.ones(n, np.float32)
        file["terminals"], file["timeouts"] = np.zeros(n, bool), np.arange(n) % 20 == 19
    return path.read_bytes()


def serve(server, monkeypatch, name: str, sha256: str | None = None) -> None:
    """Let the server stand in for D4RL's host for one of the 24."""
    entry = D4RL_FILES[name]
    own = D4RLFile(name, server.url.replace("set.hdf5", entry.file), entry.env_id, sha256)
    monkeypatch.setitem(D4RL_FILES, name, own)


def test_get_then_load_and_train_find_it_by_name(server, folders, monkeypatch, capsys):
    name = "hopper-medium-replay-v2"
    server.content = hdf5_bytes(folders / "made.hdf5")
    serve(server, monkeypatch, name)
    with pytest.raises(
        FileNotFoundError, match=r"no file hopper_medium_replay-v2\.hdf5 in .*ours; fetch it with `jacrec data get"
    ):
        load(name)
    assert cli.main(["data", "get", name]) == 0
    path = folders / "ours" / "hopper_medium_replay-v2.hdf5"
    assert f"fetched, {path.stat().st_size / 1e6:.1f} MB, SHA-256 {check_sum(path)}, at {path}" in capsys.readouterr().out
    data = load(name)
    assert (data.info.name, data.info.env_id, len(data)) == (name, "Hopper-v4", 40)
    assert cli.main(["data", "get", name]) == 0
    assert "was here and is unchanged" in capsys.readouterr().out
    assert len(server.asked) == 1
    assert cli.main(["data", "list"]) == 0
    assert name in capsys.readouterr().out
    assert cli.main(["data", "show", name]) == 0
    monkeypatch.chdir(folders)
    tiny = ["--stages", "reward", "--reward.hidden", "8", "--reward.updates", "2", "--reward.eval-transitions", "5"]
    assert cli.main(["train", name, *tiny]) == 0
    assert (folders / "runs" / "hopper-medium-replay-v2-s0" / "reward.safetensors").is_file()


def test_get_fetches_again_only_when_told(server, folders, monkeypatch):
    name = "hopper-medium-v2"
    server.content = hdf5_bytes(folders / "made.hdf5")
    serve(server, monkeypatch, name)
    got = get(name)
    assert got.fetched
    got.path.write_bytes(server.content + b"a bit more")
    with pytest.raises(DownloadError, match="the file has changed since"):
        get(name)
    assert get(name, overwrite=True).fetched
    assert got.path.read_bytes() == server.content
    assert not get("hopper_medium-v2.hdf5").fetched


def test_get_refuses_what_is_not_the_reported_file(server, folders, monkeypatch):
    name = "antmaze-umaze-v2"
    server.content = hdf5_bytes(folders / "made.hdf5")
    serve(server, monkeypatch, name, sha256="12ab")
    with pytest.raises(DownloadError, match=r"expected a file of SHA-256 12ab(.|\n)*without a network: copy Ant_maze_u-maze"):
        get(name)
    by_hand = datasets_root() / f"{name}.hdf5"
    by_hand.parent.mkdir(exist_ok=True)
    by_hand.write_bytes(server.content)
    with pytest.raises(DownloadError, match="expected SHA-256 12ab, which users report of antmaze-umaze-v2"):
        get(name)


def test_without_a_network_the_alternatives_are_named(folders, monkeypatch, capsys):
    monkeypatch.setattr(download, "WAIT", 0.0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    nowhere = Server(url="http://127.0.0.1:9/set.hdf5")  # nobody listens to the discard port
    for name in ("hopper-medium-v2", "antmaze-umaze-v2", "walker2d-medium-v2"):
        serve(nowhere, monkeypatch, name)
    assert cli.main(["data", "get", "hopper-medium-v2", "antmaze-umaze-v2", "walker2d-medium-v2"]) == 2
    error = capsys.readouterr().err
    assert "cannot be fetched ([Errno 111] Connection refused)" in error
    assert f"copy hopper_medium-v2.hdf5 from a machine that has it to {folders / 'ours'}" in error
    assert "`jacrec data make hopper medium`" in error
    assert "`jacrec data make antmaze umaze`" in error
    assert "3 of 3 not fetched" in error
    assert not list((folders / "ours").iterdir())


def test_unknown_names_list_the_known_ones(capsys):
    assert cli.main(["data", "get", "hopper-mediun-v2"]) == 2
    assert "expected one of hopper-random-v2, " in capsys.readouterr().err
    assert cli.main(["data", "get"]) == 2
    assert "e.g. `jacrec data get hopper-medium-replay-v2`" in capsys.readouterr().err


def test_minari_sets_are_fetched_by_minari_and_checked(folders, monkeypatch):
    """Minari's client is replaced: it has no server here."""
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
    with pytest.raises(DownloadError, match=r"got others: data/main_data\.hdf5; fetch it again with --overwrite"):
        get(name)
    assert get(name, overwrite=True).fetched
    assert asked[1:] == [(name, True)]

    def unreachable(dataset_id, force_download=False):
        raise ConnectionError("no route")

    monkeypatch.setattr("minari.download_dataset", unreachable)
    with pytest.raises(
        DownloadError, match=r"Minari cannot fetch it \(ConnectionError: no route\)\nwithout a network: copy the folder"
    ):
        get("D4RL/antmaze/umaze-v1")


def test_the_24_files():
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


def test_files_are_found_in_both_folders_by_both_names(folders):
    name = "antmaze-large-play-v2"
    assert find_d4rl(name) is None
    assert find_d4rl("mine-v2") is None
    for folder, file in (("theirs", D4RL_FILES[name].file), ("ours", f"{name}.hdf5"), ("ours", D4RL_FILES[name].file)):
        (folders / folder).mkdir(exist_ok=True)
        (folders / folder / file).write_text("")
        assert find_d4rl(name) == folders / folder / file
