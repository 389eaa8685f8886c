"""The refreshing process beside a controller: it helps where it lives, and nobody waits for it where it does not."""

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
from jacrec.online import pickup
from jacrec.online.config import RefreshConfig
from jacrec.online.hot_swap import Pickup
from jacrec.online.process import ParentGone, alone
from jacrec.online.published import (
    FOLDER,
    latest_version,
    leave_notice,
    log_refresh,
    publish,
    refreshes,
    version_folder,
)
from jacrec.online.refresh import LOG, Refresher
from jacrec.online.replay import OnlineReplay
from jacrec.training.run import load_run
from tests.small_run import hardly_trained

SLEEPS = (sys.executable, "-c", "import time; time.sleep(600)")
DIES = (sys.executable, "-c", "raise SystemExit(3)")
SOON = RefreshConfig(start_after=60, every=60, updates=20, batch_size=32, lr=1e-2, held_out=0.3, poll_seconds=0.02, restarts=1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a hardly trained run."""
    return hardly_trained(tmp_path_factory.mktemp("online"))


@pytest.fixture
def run(trained):
    return load_run(trained)


def fill(replay, run, count, seed=0):
    """Transitions of a system that the run's models do not know."""
    rng = np.random.default_rng(seed)
    d, m = run.policy.state_dim, run.policy.action_dim
    state, action = rng.standard_normal((count, d)), rng.uniform(-1, 1, (count, m))
    replay.append(
        state, action, 1 + action.sum(1), 0.9 * state + 0.1, np.zeros(count, bool), np.full(count, replay.next_episode)
    )


def until(condition, seconds=60.0):
    """Whether it comes true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return condition()


def other_parts(run, scale=1.01):
    """Another version of the run's models."""
    parts = {name: load_module(run.path / f"{name}.safetensors") for name in ("dynamics", "reward")}
    with torch.no_grad():
        for module in parts.values():
            for parameter in module.parameters():
                parameter.mul_(scale)
    return parts


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_the_process_publishes_better_models_and_the_world_gets_them_in_place(tmp_path, trained, run, share, monkeypatch):
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
            assert until(lambda: len(refreshes(tmp_path)) == 2)
            version = refreshes(tmp_path)[1]["version"]  # the first one's, if this one is refused
            assert until(lambda: refresher.pick_up() or refresher.version == version)
            assert refresher.version == version
    assert said == []
    assert [p.data_ptr() for p in run.world.dynamics.parameters()] == addresses
    log = refreshes(tmp_path)
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


def test_without_its_offline_data_it_says_so_and_refreshes_on_the_replay_alone(tmp_path, run, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "nothing"))
    with OnlineReplay(tmp_path, run.policy.state_dim, run.policy.action_dim) as replay:
        fill(replay, run, 80)
        said = []
        with Refresher(run, tmp_path, SOON, say=said.append) as refresher:
            assert until(refresher.pick_up)
            assert until(lambda: said)
            assert refresher.take_notices() == said
    assert len(said) == 1
    assert "no offline data, so share = 0.5 does not hold: the replay alone" in said[0]
    assert said[0].removeprefix("refreshing: ") in (tmp_path / LOG).read_text()
    line = refreshes(tmp_path)[0]
    assert line["offline"] is False
    assert line["verdicts"][0]["offline"] is None


def test_what_an_earlier_process_left_to_say_is_not_said_again(tmp_path, run):
    leave_notice(tmp_path, "of yesterday")
    said = []
    with Refresher(run, tmp_path, RefreshConfig(poll_seconds=0.01), say=said.append, command=SLEEPS):
        leave_notice(tmp_path, "of today")
        assert until(lambda: said)
        time.sleep(0.1)
    assert said == ["refreshing: of today"]


def test_waiting_for_another_refreshing_process_ends_with_the_parent(tmp_path):
    parent = os.getppid()
    with alone(tmp_path, parent):
        with pytest.raises(ParentGone), alone(tmp_path, -1):
            pass
        waits = threading.Thread(target=lambda: alone(tmp_path, parent).__enter__())
        waits.start()
        waits.join(0.3)
        assert waits.is_alive()
    waits.join(30)
    assert not waits.is_alive()


@pytest.mark.parametrize("batch", [None, 2])
def test_a_controller_decides_with_the_swapped_weights_as_with_a_world_made_of_them(tmp_path, run, batch):
    config = MPCConfig(horizon=2, particles=3, lr=1e-2)
    observation = np.random.default_rng(0).standard_normal(
        (run.policy.state_dim,) if batch is None else (batch, run.policy.state_dim)
    )
    mpc = MPC(run.policy, run.world, config, batch=batch)
    before = mpc.act(observation)
    parts = other_parts(run, scale=1.5)
    publish(tmp_path, 1, parts, keep=3)
    incoming = Pickup(tmp_path, run.world, print)
    incoming.look()
    assert incoming.swap()
    assert not incoming.swap()
    mpc.reset()
    mpc.generator.manual_seed(0)
    made = MPC(run.policy, World(parts["dynamics"], parts["reward"], run.world.critic, run.world.discount), config, batch=batch)
    after = mpc.act(observation)
    assert np.array_equal(after, made.act(observation))
    assert not np.array_equal(after, before)


def test_nothing_waits_for_a_process_that_hangs(tmp_path, run):
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
    # the process is stopped for good: who waited for it would wait for ever, and a machine under load delays by less
    assert slowest < 1.0
    assert len(said) == 1
    assert "silent" in said[0]
    assert "version 0" in said[0]
    assert process.poll() is not None


def test_nothing_waits_for_a_disk_that_hangs(tmp_path, run, monkeypatch):
    stuck, free = threading.Event(), threading.Event()

    def hangs(folder):
        stuck.set()
        free.wait(30)
        return 0

    with Refresher(run, tmp_path, RefreshConfig(poll_seconds=0.01), command=SLEEPS) as refresher:
        monkeypatch.setattr(pickup, "latest_version", hangs)
        assert stuck.wait(30)
        began = time.perf_counter()
        for _ in range(1000):
            assert not refresher.pick_up()
        assert time.perf_counter() - began < 1.0
        free.set()


def test_a_process_that_dies_is_noticed_started_again_and_then_done_without(tmp_path, run):
    said = []
    config = RefreshConfig(poll_seconds=0.02, restarts=1)
    with Refresher(run, tmp_path, config, say=said.append, command=DIES) as refresher:
        assert until(lambda: len(said) == 2)
        time.sleep(0.2)
        assert not refresher.pick_up()
    assert len(said) == 2
    assert all("exit code 3" in sentence and "version 0" in sentence for sentence in said)
    assert "started again" in said[0]
    assert "started again" not in said[1]
    assert refresher.take_notices() == said
    assert refresher.take_notices() == []


def test_switched_off_there_is_no_process_no_thread_and_no_file(tmp_path, run):
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


def test_versions_on_disk_are_put_in_place_at_once(tmp_path, run):
    parts = other_parts(run)
    publish(tmp_path, 4, parts, keep=3)
    with Refresher(run, tmp_path, command=SLEEPS) as refresher:
        assert refresher.version == 4
    assert all(torch.equal(v, parts["reward"].state_dict()[k]) for k, v in run.world.reward.state_dict().items())


@pytest.mark.parametrize("change", ["scales", "shapes"])
def test_a_version_of_another_model_is_not_used_and_said_once(tmp_path, run, change):
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
    assert "not used" in said[0]
    assert all(torch.equal(v, before[k]) for k, v in run.world.dynamics.state_dict().items())


def test_a_multi_step_world_model_is_not_refreshed(tmp_path, run):
    several = replace(run, config=replace(run.config, dynamics=replace(run.config.dynamics, kind="multistep")))
    with pytest.raises(ValueError, match="expected reward alone"):
        Refresher(several, tmp_path, command=SLEEPS)


def test_a_world_of_plain_functions_cannot_be_refreshed(tmp_path, run):
    world = World(run.world.dynamics, lambda s, a: s.sum(-1), run.world.critic, 0.99)
    with pytest.raises(ValueError, match=r"World\.reward: expected a torch\.nn\.Module"):
        Pickup(tmp_path, world, print)


def test_only_the_newest_versions_are_kept_and_half_a_version_is_none(tmp_path, run):
    parts = other_parts(run)
    assert latest_version(tmp_path) == 0
    for version in range(1, 6):
        publish(tmp_path, version, parts, keep=2)
    assert sorted(p.name for p in (tmp_path / FOLDER).iterdir() if p.is_dir()) == ["000004", "000005"]
    save_module(parts["dynamics"], version_folder(tmp_path, 6) / "dynamics.safetensors")
    assert latest_version(tmp_path) == 5
    log_refresh(tmp_path, {"number": 1})
    with (tmp_path / FOLDER / "refreshes.jsonl").open("a") as file:
        file.write('{"number": 2, "transi')
    assert refreshes(tmp_path) == [{"number": 1}]
    log_refresh(tmp_path, {"number": 2})
    assert refreshes(tmp_path) == [{"number": 1}, {"number": 2}], "the line that was cut short takes no other along"
