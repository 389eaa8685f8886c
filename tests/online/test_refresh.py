"""The refreshing process next to a controller: it improves the models, and its failures never block control."""

import os
import signal
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from jacrec.control.controller import MPC, MPCConfig
from jacrec.models.io import load_module, save_module
from jacrec.models.world import World
from jacrec.online import hot_swap
from jacrec.online.config import RefreshConfig
from jacrec.online.hot_swap import HotSwap
from jacrec.online.process import ParentGone, exclusive, offline_data
from jacrec.online.published import (
    FOLDER,
    latest_version,
    log_refresh,
    publish,
    read_refreshes,
    version_folder,
    write_notice,
)
from jacrec.online.refresh import LOG, Refresher
from jacrec.online.replay_buffer import OnlineReplay
from jacrec.training.run import load_run

SLEEPS = (sys.executable, "-c", "import time; time.sleep(600)")
DIES = (sys.executable, "-c", "raise SystemExit(3)")
SOON = RefreshConfig(start_after=60, every=60, updates=20, batch_size=32, lr=1e-2, held_out=0.3, poll_seconds=0.02, restarts=1)


@pytest.fixture
def run(trained):
    return load_run(trained)


def fill(replay, run, count, seed=0):
    """Append transitions of a system unknown to the run's models."""
    rng = np.random.default_rng(seed)
    d, m = run.policy.state_dim, run.policy.action_dim
    state, action = rng.standard_normal((count, d)), rng.uniform(-1, 1, (count, m))
    replay.append(
        state, action, 1 + action.sum(1), 0.9 * state + 0.1, np.zeros(count, bool), np.full(count, replay.next_episode)
    )


def until(condition, seconds=60.0):
    """Wait until the condition is true; whether it became true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return condition()


def other_parts(run, scale=1.01):
    """Modified copies of the run's models."""
    parts = {name: load_module(run.path / f"{name}.safetensors") for name in ("dynamics", "reward")}
    with torch.no_grad():
        for module in parts.values():
            for parameter in module.parameters():
                parameter.mul_(scale)
    return parts


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_the_process_publishes_better_models_that_are_installed_in_place(tmp_path, trained, run, share, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(trained.parent / "data"))
    addresses = [p.data_ptr() for p in run.world.dynamics.parameters()]
    config = RefreshConfig(**{**vars(SOON), "share": share})
    said = []
    with OnlineReplay(tmp_path, run.policy.state_dim, run.policy.action_dim) as replay:
        fill(replay, run, 80)
        with Refresher(run, tmp_path, config, say=said.append) as refresher:
            assert refresher.process is not None
            assert until(refresher.pick_up), (tmp_path / LOG).read_text()
            assert refresher.version == 1
            assert os.getpriority(os.PRIO_PROCESS, refresher.process.pid) == 19
            fill(replay, run, 80, seed=1)
            assert until(lambda: len(read_refreshes(tmp_path)) == 2)
            version = read_refreshes(tmp_path)[1]["version"]  # that of the first refresh if the second is rejected
            assert until(lambda: refresher.pick_up() or refresher.version == version)
            assert refresher.version == version
    assert said == []
    assert [p.data_ptr() for p in run.world.dynamics.parameters()] == addresses
    log = read_refreshes(tmp_path)
    assert [line["transitions"] for line in log[:2]] == [80, 160]
    assert all(v["after"] < v["before"] for line in log[:2] for v in line["verdicts"] if v["accepted"])
    assert (log[0]["verdicts"][0]["offline"] is None) == (share == 1.0)
    assert log[0]["offline"] == (share < 1.0)
    for part in ("dynamics", "reward"):
        stored = load_module(version_folder(tmp_path, version) / f"{part}.safetensors")
        here = getattr(run.world, part)
        assert all(torch.equal(v, here.state_dict()[k]) for k, v in stored.state_dict().items())
        assert any(
            not torch.equal(v, stored.state_dict()[k]) for k, v in load_run(trained).world.__dict__[part].state_dict().items()
        )


def test_missing_offline_data_are_reported_and_only_the_replay_buffer_is_used(tmp_path, run, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "nothing"))
    with OnlineReplay(tmp_path, run.policy.state_dim, run.policy.action_dim) as replay:
        fill(replay, run, 80)
        said = []
        with Refresher(run, tmp_path, SOON, say=said.append) as refresher:
            assert until(refresher.pick_up)
            assert until(lambda: said)
            assert refresher.take_notices() == said
    assert len(said) == 1
    assert "no offline data, so share = 0.5 is ignored" in said[0]
    assert "--online.share 1" in said[0]
    assert said[0].removeprefix("refreshing: ") in (tmp_path / LOG).read_text()
    line = read_refreshes(tmp_path)[0]
    assert line["offline"] is False
    assert line["verdicts"][0]["offline"] is None


@pytest.mark.parametrize("named", ["", "hopper-medium-v2"])
def test_arrays_are_not_looked_for_by_a_name(run, named):
    said, info = [], replace(run.info, source="arrays")
    assert offline_data(replace(run.config, data=named), RefreshConfig(share=0.5), said.append, info) is None
    assert len(said) == 1
    assert "given to train(..., data=...)" in said[0]


def test_notices_of_an_earlier_process_are_not_reported(tmp_path, run):
    write_notice(tmp_path, "old")
    said = []
    with Refresher(run, tmp_path, RefreshConfig(poll_seconds=0.01), say=said.append, command=SLEEPS):
        write_notice(tmp_path, "new")
        assert until(lambda: said)
        time.sleep(0.1)
    assert said == ["refreshing: new"]


def test_waiting_for_another_process_ends_with_the_parent(tmp_path):
    parent = os.getppid()
    with exclusive(tmp_path, parent):
        with pytest.raises(ParentGone), exclusive(tmp_path, -1):
            pass
        waits = threading.Thread(target=lambda: exclusive(tmp_path, parent).__enter__())
        waits.start()
        waits.join(0.3)
        assert waits.is_alive()
    waits.join(30)
    assert not waits.is_alive()


@pytest.mark.parametrize("batch", [None, 2])
def test_decisions_after_a_swap_equal_those_of_a_world_with_the_new_weights(tmp_path, run, batch):
    config = MPCConfig(horizon=2, particles=3, lr=1e-2)
    observation = np.random.default_rng(0).standard_normal(
        (run.policy.state_dim,) if batch is None else (batch, run.policy.state_dim)
    )
    mpc = MPC(run.policy, run.world, config, batch=batch)
    before = mpc.act(observation)
    parts = other_parts(run, scale=1.5)
    publish(tmp_path, 1, parts, keep=3)
    incoming = HotSwap(tmp_path, run.world, print)
    incoming.poll()
    assert incoming.swap()
    assert not incoming.swap()
    mpc.reset()
    mpc.generator.manual_seed(0)
    made = MPC(run.policy, World(parts["dynamics"], parts["reward"], run.world.critic, run.world.discount), config, batch=batch)
    after = mpc.act(observation)
    assert np.array_equal(after, made.act(observation))
    assert not np.array_equal(after, before)


def test_control_does_not_wait_for_a_stalled_process(tmp_path, run):
    said = []
    config = RefreshConfig(stalled_seconds=0.1, poll_seconds=0.02)
    mpc = MPC(run.policy, run.world, MPCConfig(horizon=2, particles=2))
    observation = np.zeros(run.policy.state_dim)
    mpc.warm_up()
    with Refresher(run, tmp_path, config, say=said.append, command=SLEEPS) as refresher:
        assert refresher.process is not None
        process = refresher.process
        process.send_signal(signal.SIGSTOP)
        assert until(lambda: said)
        slowest = 0.0
        for _ in range(200):
            began = time.perf_counter()
            assert not refresher.pick_up()
            slowest = max(slowest, time.perf_counter() - began)
            mpc.act(observation)
        time.sleep(0.2)
        assert process.poll() is None
    # the process stays stopped, so waiting for it would never end; a busy machine delays by less
    assert slowest < 1.0
    assert len(said) == 1
    assert f"pid {process.pid}" in said[0]
    assert "version 0" in said[0]
    assert process.poll() is not None


def test_control_does_not_wait_for_a_hanging_disk(tmp_path, run, monkeypatch):
    stuck, free = threading.Event(), threading.Event()

    def hangs(folder):
        stuck.set()
        free.wait(30)
        return 0

    with Refresher(run, tmp_path, RefreshConfig(poll_seconds=0.01), command=SLEEPS) as refresher:
        monkeypatch.setattr(hot_swap, "latest_version", hangs)
        assert stuck.wait(30)
        began = time.perf_counter()
        for _ in range(1000):
            assert not refresher.pick_up()
        assert time.perf_counter() - began < 1.0
        free.set()


def test_a_dying_process_is_reported_and_restarted_once(tmp_path, run):
    said = []
    config = RefreshConfig(poll_seconds=0.02, restarts=1)
    with Refresher(run, tmp_path, config, say=said.append, command=DIES) as refresher:
        assert until(lambda: len(said) == 2)
        time.sleep(0.2)
        assert not refresher.pick_up()
    assert len(said) == 2
    assert all("exit code 3" in sentence and "version 0" in sentence for sentence in said)
    assert "restarted" in said[0]
    assert "restarted" not in said[1]
    assert refresher.take_notices() == said
    assert refresher.take_notices() == []


def test_disabled_refresher_has_no_process_thread_or_file(tmp_path, run):
    publish(tmp_path, 1, other_parts(run), keep=3)
    files, threads = sorted(tmp_path.rglob("*")), threading.active_count()
    before = {k: v.clone() for k, v in run.world.dynamics.state_dict().items()}
    with Refresher(run, tmp_path, RefreshConfig(enabled=False), command=DIES) as refresher:
        assert refresher.process is None
        assert not refresher.pick_up()
        assert refresher.version == 0
        assert threading.active_count() == threads
    assert sorted(tmp_path.rglob("*")) == files
    assert all(torch.equal(v, before[k]) for k, v in run.world.dynamics.state_dict().items())


def test_existing_versions_are_installed_immediately(tmp_path, run):
    parts = other_parts(run)
    publish(tmp_path, 4, parts, keep=3)
    with Refresher(run, tmp_path, command=SLEEPS) as refresher:
        assert refresher.version == 4
    assert all(torch.equal(v, parts["reward"].state_dict()[k]) for k, v in run.world.reward.state_dict().items())


@pytest.mark.parametrize("change", ["scales", "shapes"])
def test_versions_of_other_models_are_ignored_and_reported_once(tmp_path, run, change):
    parts = other_parts(run)
    if change == "scales":
        parts["dynamics"].get_buffer("out_std").mul_(2)
    else:
        parts["reward"] = parts["dynamics"]
    said = []
    before = {k: v.clone() for k, v in run.world.dynamics.state_dict().items()}
    with Refresher(run, tmp_path, RefreshConfig(poll_seconds=0.01), say=said.append, command=SLEEPS) as refresher:
        publish(tmp_path, 1, parts, keep=3)
        assert until(lambda: said)
        time.sleep(0.1)
        assert not refresher.pick_up()
    assert len(said) == 1
    assert change in said[0]
    assert "ignored" in said[0]
    assert all(torch.equal(v, before[k]) for k, v in run.world.dynamics.state_dict().items())


def test_multi_step_world_models_are_rejected(tmp_path, run):
    multistep = replace(run, config=replace(run.config, dynamics=replace(run.config.dynamics, kind="multistep")))
    with pytest.raises(ValueError, match=r"online\.parts: .*got dynamics, reward"):
        Refresher(multistep, tmp_path, command=SLEEPS)


def test_plain_functions_cannot_be_refreshed(tmp_path, run):
    world = World(run.world.dynamics, lambda s, a: s.sum(-1), run.world.critic, 0.99)
    with pytest.raises(ValueError, match=r"World\.reward: .*got function"):
        HotSwap(tmp_path, world, print)


def test_old_and_incomplete_versions(tmp_path, run):
    parts = other_parts(run)
    assert latest_version(tmp_path) == 0
    for version in range(1, 6):
        publish(tmp_path, version, parts, keep=2)
    assert sorted(p.name for p in (tmp_path / FOLDER).iterdir() if p.is_dir()) == ["000004", "000005"]
    save_module(parts["dynamics"], version_folder(tmp_path, 6) / "dynamics.safetensors")
    assert latest_version(tmp_path) == 5
    first, second = ({"number": i, "transitions": 10, "offline": False, "verdicts": [], "version": i} for i in (1, 2))
    log_refresh(tmp_path, first)
    with (tmp_path / FOLDER / "refreshes.jsonl").open("a") as file:
        file.write('{"number": 2, "transi')
    assert read_refreshes(tmp_path) == [first]
    log_refresh(tmp_path, second)
    assert read_refreshes(tmp_path) == [first, second]
