"""The replay buffer on disk: no acknowledged transition is lost, however the process ends."""

import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jacrec.online import replay_buffer
from jacrec.online.config import ReplayConfig
from jacrec.online.records import HEADER, record_dtype
from jacrec.online.replay_buffer import FILE, OnlineReplay, ReplayReader
from tests.conftest import property_cases

D, M = 5, 2
SIZE = record_dtype(D, M).itemsize


def transition(i, d=D, m=M):
    """Transition number i of a deterministic sequence with episodes of 20 steps."""
    rng = np.random.default_rng(i)
    state, action, next_state = (rng.standard_normal(n).astype(np.float32) for n in (d, m, d))
    return state, action, np.float32(rng.standard_normal()), next_state, i % 20 == 19 and i % 40 == 19, i // 20, i % 20 == 19


def append(replay, i):
    replay.append(*transition(i))


def assert_sequence(data, numbers):
    """Assert that the transitions are bit-identical to those of `numbers`."""
    assert len(data) == len(numbers)
    for row, i in enumerate(numbers):
        state, action, reward, next_state, terminal, episode, _ = transition(i)
        assert np.array_equal(data.state[row], state)
        assert np.array_equal(data.action[row], action)
        assert np.array_equal(data.next_state[row], next_state)
        assert data.reward[row] == reward
        assert data.terminal[row] == terminal
        assert data.episode[row] == episode


WRITER = f"""
import sys
from jacrec.online.config import ReplayConfig
from jacrec.online.replay_buffer import OnlineReplay
from tests.online.test_replay_buffer import append
replay = OnlineReplay(sys.argv[1], {D}, {M}, ReplayConfig(flush_every=int(sys.argv[2]), sync_seconds=0.01))
i = len(replay)
print("open", i, flush=True)
while True:
    append(replay, i)
    i += 1
    sys.stdout.write(f"{{i}} {{i - replay.waiting}}\\n")
    sys.stdout.flush()
"""

WAITS = f"""
import sys, time
from jacrec.online.config import ReplayConfig
from jacrec.online.replay_buffer import OnlineReplay
from tests.online.test_replay_buffer import append
replay = OnlineReplay(sys.argv[1], {D}, {M}, ReplayConfig(flush_every=50, sync_seconds=3600))
for i in range(int(sys.argv[2])):
    append(replay, i)
while replay.waiting >= 50:
    time.sleep(0.001)
print("idle", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("count", [49, 377])
def test_an_idle_buffered_writer_loses_less_than_one_batch(tmp_path, count):
    with subprocess.Popen(
        [sys.executable, "-c", WAITS, str(tmp_path), str(count)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    assert line == "idle\n"
    data = ReplayReader(tmp_path).transitions()
    assert count - 50 < len(data) <= count
    assert_sequence(data, range(len(data)))


@pytest.mark.parametrize("flush_every", [1, 50])
def test_a_killed_process_loses_no_acknowledged_transition(tmp_path, flush_every):
    moments = random.Random(0)
    have = 0
    for _ in range(5):
        command = [sys.executable, "-c", WRITER, str(tmp_path), str(flush_every)]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline().split() == ["open", str(have)]
            time.sleep(moments.uniform(0.0, 0.15))
            process.send_signal(signal.SIGKILL)
            lines = process.stdout.read().split("\n")
        # the last line may be truncated
        acknowledged, written = map(int, lines[-2].split()) if len(lines) > 1 else (have, have)
        with OnlineReplay(tmp_path, D, M) as replay:
            data, found = replay.transitions(), replay.found
        have = len(data)
        # a buffered writer may only lose waiting transitions
        assert have >= written
        assert written == acknowledged or flush_every > 1
        assert have <= acknowledged + 1
        assert found.damaged == 0
        assert_sequence(data, range(have))
    assert have > 0


@property_cases(1 / 60, at_least=20)
@given(
    whole=st.integers(0, 6),
    cut=st.integers(0, SIZE - 1),
    tail=st.sampled_from(["cut", "zeros", "noise"]),
    more=st.integers(0, 3),
    d=st.integers(1, 6),
    m=st.integers(1, 3),
)
def test_an_incomplete_record_is_removed_before_appending(tmp_path_factory, whole, cut, tail, more, d, m):
    folder = tmp_path_factory.mktemp("replay")
    size = record_dtype(d, m).itemsize
    with OnlineReplay(folder, d, m) as replay:
        for i in range(whole + 1):
            replay.append(*transition(i, d, m))
    path = folder / FILE
    raw = path.read_bytes()
    last = len(raw) - size
    torn = {"cut": raw[last : last + cut % size], "zeros": bytes(size + cut), "noise": bytes([cut % 251 + 1]) * (size + cut)}[
        tail
    ]
    path.write_bytes(raw[:last] + torn)
    with OnlineReplay(folder, d, m) as replay:
        assert replay.found.transitions == len(replay) == whole
        assert replay.found.torn_bytes == len(torn)
        assert (f"{len(torn)} bytes" in str(replay.found)) == bool(torn)
        for i in range(whole, whole + more):
            replay.append(*transition(i, d, m))
        data = replay.transitions()
    assert len(data) == whole + more
    for row in range(whole + more):
        assert np.array_equal(data.state[row], transition(row, d, m)[0])
    assert path.stat().st_size == HEADER + (whole + more) * size


def test_a_damaged_record_is_skipped_and_reported(tmp_path):
    with OnlineReplay(tmp_path, D, M) as replay:
        for i in range(30):
            append(replay, i)
    with (tmp_path / FILE).open("r+b") as file:
        file.seek(HEADER + 7 * SIZE + 30)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    with OnlineReplay(tmp_path, D, M) as replay:
        assert (replay.found.transitions, replay.found.damaged, len(replay)) == (29, 1, 30)
        assert "1 damaged" in str(replay.found)
        append(replay, 30)
        data = replay.transitions()
        assert_sequence(data, [i for i in range(31) if i != 7])
        assert_sequence(replay.transitions(5, 9), [5, 6, 8])
        assert not data.has_next_action[6]


def test_a_reader_follows_a_growing_file_and_ignores_partial_records(tmp_path):
    with OnlineReplay(tmp_path, D, M) as replay:
        reader = ReplayReader(tmp_path)
        assert reader.look() == 0
        for i in range(25):
            append(replay, i)
        assert reader.look() == 25
        with (tmp_path / FILE).open("ab") as file:
            file.write(b"half")
        assert reader.look() == 25
        append(replay, 25)
        assert reader.look() == 26
        assert_sequence(reader.transitions(), range(26))
        assert_sequence(reader.transitions(-4), range(22, 26))


def test_interleaved_episodes(tmp_path):
    with OnlineReplay(tmp_path, D, M) as replay:
        both = [transition(i) for i in (0, 40)]
        for step in range(3):
            state = np.stack([s + step for s, *_ in both])
            action = np.stack([a + step for _, a, *_ in both])
            replay.append(state, action, np.array([0.0, step]), state + 1, np.array([False, step == 2]), np.array([3, 4]))
        data = replay.transitions()
        assert replay.next_episode == 0  # as of opening
    assert data.episode.tolist() == [3, 4, 3, 4, 3, 4]
    assert data.has_next_action.tolist() == [True, True, True, True, False, False]
    assert np.array_equal(data.next_action[:4], data.action[2:])
    assert data.terminal.tolist() == [False] * 5 + [True]
    with OnlineReplay(tmp_path, D, M) as replay:
        assert replay.next_episode == 5


def test_buffered_transitions_are_written_in_the_background(tmp_path):
    with OnlineReplay(tmp_path, D, M, ReplayConfig(flush_every=1000, sync_seconds=0.02)) as replay:
        for i in range(10):
            append(replay, i)
        reader, patience = ReplayReader(tmp_path), time.monotonic() + 10
        while reader.look() < 10 and time.monotonic() < patience:
            time.sleep(0.01)
        assert_sequence(reader.transitions(), range(10))


def test_a_full_disk_does_not_block_and_loses_nothing_silently(tmp_path, monkeypatch):
    config = ReplayConfig(flush_every=4, sync_seconds=0.01, buffer=16)
    replay = OnlineReplay(tmp_path, D, M, config)
    write = os.pwrite

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    began = time.perf_counter()
    for i in range(16):
        append(replay, i)
    with pytest.raises(OSError, match="got 16 transitions waiting"):
        append(replay, 16)
    assert time.perf_counter() - began < 1.0
    with pytest.raises(OSError, match="No space"):
        replay.flush()
    monkeypatch.setattr(os, "pwrite", write)
    replay.flush()
    append(replay, 16)
    replay.close()
    assert_sequence(ReplayReader(tmp_path).transitions(), range(17))


def test_a_partial_write_is_overwritten(tmp_path, monkeypatch):
    replay = OnlineReplay(tmp_path, D, M)
    append(replay, 0)
    write = os.pwrite

    def short(file, data, place):
        if len(data) > 10:
            return write(file, data[:10], place)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", lambda f, data, place: short(f, data if len(data) == SIZE else data[:1], place))
    with pytest.raises(OSError, match="No space"):
        append(replay, 1)
    monkeypatch.setattr(os, "pwrite", write)
    assert len(replay) == 1
    append(replay, 1)
    replay.close()
    with OnlineReplay(tmp_path, D, M) as again:
        assert again.found.torn_bytes == 0
        assert_sequence(again.transitions(), range(2))


def test_a_failed_sync_is_repeated(tmp_path, monkeypatch):
    replay, real, calls = OnlineReplay(tmp_path, D, M, ReplayConfig(sync_seconds=0.01)), os.fsync, []

    def sync(file):
        calls.append(file)
        if len(calls) == 1:
            raise OSError("no answer")
        real(file)

    monkeypatch.setattr(os, "fsync", sync)
    append(replay, 0)
    until = time.monotonic() + 30
    while not calls and time.monotonic() < until:
        time.sleep(0.01)
    replay.close()
    assert len(calls) == 2


def test_concurrent_creation_yields_one_file(tmp_path, monkeypatch):
    make, second = replay_buffer._create, []

    def slow(path, start):
        with pytest.raises(ValueError, match="without a writer, got one in use") as error:
            OnlineReplay(tmp_path, D, M)
        second.append(error)
        make(path, start)

    monkeypatch.setattr(replay_buffer, "_create", slow)
    with OnlineReplay(tmp_path, D, M) as replay:
        append(replay, 0)
        assert_sequence(ReplayReader(tmp_path).transitions(), range(1))
    assert len(second) == 1
    OnlineReplay(tmp_path, D, M).close()


def test_an_early_wake_up_does_not_delay_the_sync(tmp_path, monkeypatch):
    timeouts = []

    class Watched(threading.Event):
        def wait(self, timeout=None):
            if timeout is not None:
                timeouts.append(timeout)
            return super().wait(timeout)

    with monkeypatch.context() as patch:
        patch.setattr(threading, "Event", Watched)
        replay = OnlineReplay(tmp_path, D, M, ReplayConfig(flush_every=2, sync_seconds=1000.0))
    for i in range(0, 6, 2):
        append(replay, i)
        append(replay, i + 1)
        patience = time.monotonic() + 30
        while len(timeouts) < 2 + i // 2 and time.monotonic() < patience:
            time.sleep(0.001)
    replay.close()
    assert len(timeouts) >= 4
    assert timeouts[0] <= 1000.0
    assert all(later < earlier for earlier, later in itertools.pairwise(timeouts))


def test_single_writer_and_error_messages(tmp_path):
    with OnlineReplay(tmp_path, D, M) as replay:
        with pytest.raises(ValueError, match="without a writer, got one in use"):
            OnlineReplay(tmp_path, D, M)
        with pytest.raises(ValueError, match=rf"actions \(1, {M}\)"):
            replay.append(np.zeros(D), np.zeros(M + 1), 0.0, np.zeros(D), False, 0)
        assert len(replay) == 0
    replay.close()
    with pytest.raises(ValueError, match="closed"):
        append(replay, 0)
    with pytest.raises(ValueError, match=f"d = {D + 1}"):
        OnlineReplay(tmp_path, D + 1, M)
    with pytest.raises(FileNotFoundError, match="jacrec deploy"):
        ReplayReader(tmp_path / "elsewhere")
    (tmp_path / FILE).write_bytes(b"something else" * 20)
    with pytest.raises(ValueError, match="damaged header"):
        OnlineReplay(tmp_path, D, M)
