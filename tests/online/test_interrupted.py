"""Interrupted deployments: what was not finished is dropped and played again, and damaged files are told."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from jacrec.online import deploy as deployment
from jacrec.online.config import ReplayConfig
from jacrec.online.deploy import FILE, deploy
from jacrec.online.records import HEADER
from jacrec.online.replay_buffer import OnlineReplay, ReplayReader
from jacrec.online.wrappers import RecordingEnv
from tests.online.test_deploy import OFF, command, until
from tests.training.test_run import restore_sigint


def append_some(replay, count):
    """Append transitions that mean nothing."""
    for _ in range(count):
        replay.append([0.0] * 11, [0.0] * 3, 1.0, [0.0] * 11, False, replay.next_episode, True)


def interrupt_at(monkeypatch, step):
    """Raise KeyboardInterrupt at a step of the deployment."""
    real, steps = RecordingEnv.step, iter(range(10**6))

    def interrupted(self, actions):
        if next(steps) == step:
            raise KeyboardInterrupt
        return real(self, actions)

    monkeypatch.setattr(RecordingEnv, "step", interrupted)


@pytest.mark.parametrize("episode", [0, 1, 2])
@pytest.mark.parametrize("replay", [ReplayConfig(), ReplayConfig(flush_every=8)])
def test_the_transitions_of_an_interrupted_episode_are_dropped(tmp_path, trained, monkeypatch, episode, replay):
    config = replace(OFF, replay=replay)
    whole = deploy(trained, config, out=tmp_path / "whole")
    before = sum(e["length"] for e in whole["episodes"][:episode])
    out = tmp_path / "cut"
    with monkeypatch.context() as patch:
        interrupt_at(patch, before + 5)
        with pytest.raises(KeyboardInterrupt):
            deploy(trained, config, out=out)
    assert len(ReplayReader(out).transitions()) == before + 5
    said = []
    record = deploy(trained, config, out=out, say=said.append)
    assert said == [
        f"the replay buffer holds {before} transitions; 5 of an interrupted episode were dropped, since it is played again"
    ]
    assert (out / "replay.bin").read_bytes() == (tmp_path / "whole" / "replay.bin").read_bytes()
    assert record["transitions"] == whole["transitions"]
    assert [e["return"] for e in record["episodes"]] == [e["return"] for e in whole["episodes"]]


def test_a_replay_buffer_without_a_deployment_is_kept(tmp_path, trained):
    with OnlineReplay(tmp_path, 11, 3) as replay:
        append_some(replay, 7)
    record = deploy(trained, replace(OFF, episodes=1), out=tmp_path)
    assert record["transitions"] == 7 + record["episodes"][0]["length"]


def test_transitions_beyond_a_number_are_dropped(tmp_path):
    with OnlineReplay(tmp_path, 11, 3) as replay:
        append_some(replay, 7)
        replay.keep(9)
        assert (len(replay), replay.found.dropped) == (7, 0)
        replay.keep(4)
        assert (len(replay), replay.found.dropped, len(replay.transitions())) == (4, 3, 4)
        append_some(replay, 2)
        assert len(replay.transitions()) == 6
    size = ReplayReader(tmp_path).records.dtype.itemsize
    assert (tmp_path / "replay.bin").stat().st_size == HEADER + 6 * size


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"settings": 3}'])
def test_a_damaged_record_is_told(tmp_path, trained, content):
    deploy(trained, replace(OFF, episodes=1), out=tmp_path)
    (tmp_path / FILE).write_text(content)
    with pytest.raises(ValueError, match=r"deploy\.json: expected .*; copy the file again, or choose another folder"):
        deploy(trained, replace(OFF, episodes=2), out=tmp_path)


@pytest.mark.parametrize("damage", ["missing", "cut", "changed", "network"])
def test_a_damaged_controller_is_told(tmp_path, trained, damage):
    deploy(trained, replace(OFF, episodes=1), out=tmp_path)
    (path,) = tmp_path.glob("controller-*.safetensors")
    raw = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(raw[:-8])
    elif damage == "changed":
        path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    else:
        save_file(load_file(path), path, metadata={"jacrec": "{}"})
    with pytest.raises((ValueError, FileNotFoundError), match=rf"{path.name}: expected .*another deployment \(--out\)"):
        deploy(trained, replace(OFF, episodes=2), out=tmp_path)


def test_controllers_of_earlier_versions_load(tmp_path, trained):
    whole = deploy(trained, replace(OFF, episodes=2), out=tmp_path / "whole")
    deploy(trained, replace(OFF, episodes=1), out=tmp_path / "old")
    (path,) = (tmp_path / "old").glob("controller-*.safetensors")
    save_file(load_file(path), path)
    record = deploy(trained, replace(OFF, episodes=2), out=tmp_path / "old")
    assert [e["return"] for e in record["episodes"]] == [e["return"] for e in whole["episodes"]]


def test_a_full_disk_names_the_file(tmp_path, trained, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("jacrec.online.append_writer.os.pwrite", full)
    with pytest.raises(OSError, match=r"replay\.bin: expected room for \d+ bytes, got 'No space left on device'"):
        deploy(trained, replace(OFF, episodes=1), out=tmp_path)


def test_without_locks_a_deployment_warns_and_goes_on(tmp_path, trained, monkeypatch):
    def refuse(*args):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.warns(RuntimeWarning, match="expected a file system with locks"):
        assert deploy(trained, replace(OFF, episodes=1), out=tmp_path)["episodes"]


def test_of_two_deployments_the_second_sees_what_the_first_recorded(tmp_path, trained, monkeypatch):
    """Its record is read again once the lock is held, since another process may have gone on until then."""
    real, calls = deployment._previous, []

    def previous(path: Path, fresh):
        calls.append(path)
        if len(calls) == 1 and threading.current_thread() is threading.main_thread():
            found = real(path, fresh)
            monkeypatch.setattr(deployment, "_previous", real)
            deploy(trained, replace(OFF, episodes=2), out=tmp_path)  # another process, in between
            return found
        return real(path, fresh)

    monkeypatch.setattr(deployment, "_previous", previous)
    record = deploy(trained, replace(OFF, episodes=3), out=tmp_path)
    assert record["transitions"] == len(ReplayReader(tmp_path).transitions()) == sum(e["length"] for e in record["episodes"])


@pytest.mark.slow
def test_a_second_interrupt_while_closing_is_no_traceback(tmp_path, trained):
    arguments = command(trained, tmp_path, "--online.no-enabled", "--episodes", "1000")
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with subprocess.Popen(arguments, text=True, preexec_fn=restore_sigint, **pipes) as process:
        assert until(lambda: (tmp_path / "replay.bin").is_file() and ReplayReader(tmp_path).look() >= 10)
        for _ in range(5):
            process.send_signal(signal.SIGINT)
            threading.Event().wait(0.005)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert errors.startswith("\ninterrupted; to resume: jacrec deploy")
    assert "Traceback" not in errors
    record = json.loads((tmp_path / FILE).read_text())
    assert len(ReplayReader(tmp_path).transitions()) >= record["transitions"]
    assert sys.executable in arguments
