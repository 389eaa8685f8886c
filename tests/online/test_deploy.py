"""Deployments: equal to plain MPC without refreshing, and resumed after any interruption."""

import json
import signal
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jacrec import cli
from jacrec.commands.deploy import refreshes_table
from jacrec.control.controller import MPC, MPCConfig
from jacrec.evaluation.contestant import digests, open_env
from jacrec.evaluation.episodes import play
from jacrec.online.config import DeployConfig, RefreshConfig, ReplayConfig
from jacrec.online.deploy import FILE, deploy
from jacrec.online.published import latest_version, read_refreshes
from jacrec.online.replay_buffer import ReplayReader
from jacrec.training.run import load_run
from tests.online.test_refresh import SOON, until

CONTROLLER = MPCConfig(horizon=1, particles=2, lr=1e-3)
OFF = DeployConfig(episodes=3, mpc=CONTROLLER, online=RefreshConfig(enabled=False))


def plainly_played(trained, config):
    """Returns, observations and actions of MPC in sequential episodes."""
    run, seen = load_run(trained), []
    mpc = MPC(run.policy, run.world, config.mpc, batch=1)
    returns = []
    with closing(open_env(run, config.play)) as env:
        for seed in config.play.seeds:
            log = play(env, mpc, [seed], watch=lambda s, a, *_: seen.append((s[0], a[0])))
            returns += log.returns
    return returns, np.array([s for s, _ in seen]), np.array([a for _, a in seen])


def test_without_refreshing_it_is_bit_identical_to_mpc_and_records_every_transition(tmp_path, trained):
    record = deploy(trained, OFF, out=tmp_path)
    returns, states, actions = plainly_played(trained, OFF)
    assert [e["return"] for e in record["episodes"]] == returns
    data = ReplayReader(tmp_path).transitions()
    assert record["transitions"] == len(data) == sum(e["length"] for e in record["episodes"]) == len(states)
    assert np.array_equal(data.action, actions.astype(np.float32))
    assert np.array_equal(data.state, states.astype(np.float32))
    inside = data.episode[1:] == data.episode[:-1]
    assert np.array_equal(data.next_state[:-1][inside], data.state[1:][inside])
    assert [int(x) for x in np.unique(data.episode)] == [0, 1, 2]
    assert data.terminal.sum() == sum(e["terminated"] for e in record["episodes"])
    assert record["refreshes"] == []
    assert not (tmp_path / "models").exists()
    assert not (tmp_path / "refresher.log").exists()


def test_episodes_can_be_added_but_settings_not_changed(tmp_path, trained):
    whole = deploy(trained, replace(OFF, episodes=4), out=tmp_path / "whole")
    deploy(trained, replace(OFF, episodes=1), out=tmp_path / "parts")
    said = []
    record = deploy(trained, replace(OFF, episodes=4), out=tmp_path / "parts", say=said.append)
    assert [e["return"] for e in record["episodes"]] == [e["return"] for e in whole["episodes"]]
    assert said == [f"the replay buffer holds {whole['episodes'][0]['length']} transitions"]
    with pytest.raises(ValueError, match=r"settings\.seed: 42 there, 43 here"):
        deploy(trained, replace(OFF, seed=43), out=tmp_path / "parts")


def test_models_that_cannot_be_refreshed_are_rejected_before_anything_is_written(tmp_path, trained):
    run = load_run(trained)
    multistep = replace(run, config=replace(run.config, dynamics=replace(run.config.dynamics, kind="multistep")))
    with pytest.raises(ValueError, match=r"online\.parts: .*got dynamics, reward"):
        deploy(multistep, replace(OFF, online=RefreshConfig()), out=tmp_path)
    assert list(tmp_path.iterdir()) == []
    record = deploy(multistep, replace(OFF, episodes=1, online=RefreshConfig(parts=("reward",))), out=tmp_path)
    assert len(record["episodes"]) == 1


def test_settings_rejected_by_the_controller_are_not_recorded(tmp_path, trained, monkeypatch):
    def reject(*args, **kwargs):
        raise ValueError("rejected")

    with monkeypatch.context() as patch:
        patch.setattr("jacrec.online.deploy.MPC", reject)
        with pytest.raises(ValueError, match="rejected"):
            deploy(trained, OFF, out=tmp_path)
    assert not (tmp_path / FILE).exists()
    deploy(trained, replace(OFF, episodes=1, seed=7), out=tmp_path)


def test_table_marks_missing_offline_data(trained):
    verdict = {
        "part": "dynamics",
        "judged_by": "energy_score",
        "before": 2.0,
        "after": 1.5,
        "accepted": True,
        "rmse": (0.3, 0.4),
        "offline": None,
    }
    line = {"transitions": 80, "offline": False, "verdicts": [verdict], "version": 1}
    for share, cell in ((0.5, "missing"), (1.0, "")):
        table = refreshes_table({"settings": {"online": {"share": share}}, "refreshes": [line]})
        assert [next(iter(c.cells)) for c in table.columns] == [
            "80",
            "dynamics",
            "energy score",
            "2.0000 → 1.5000",
            "accepted",
            "0.3000 → 0.4000",
            cell,
            "1",
        ]


def test_rows_in_lock_step_are_separate_episodes(tmp_path, trained):
    record = deploy(trained, replace(OFF, episodes=4, rows=2), out=tmp_path)
    data = ReplayReader(tmp_path).transitions()
    lengths = [e["length"] for e in record["episodes"]]
    assert np.bincount(data.episode).tolist() == lengths
    assert (~data.has_next_action).sum() == 4
    with pytest.raises(ValueError, match=r"episodes: .*rows = 2, got 3"):
        replace(OFF, episodes=3, rows=2)


@pytest.mark.slow
def test_models_are_refreshed_and_the_run_is_unchanged(tmp_path, trained):
    run = load_run(trained)
    before, files = digests(run), {p: p.read_bytes() for p in trained.rglob("*") if p.is_file()}
    # in real time, long enough for a busy machine to start the process of lowest priority
    for episodes in (12, 60, 300):
        config = replace(OFF, episodes=episodes, step_seconds=0.01, online=SOON)
        record = deploy(run, config, out=tmp_path)
        used = {version for e in record["episodes"] for _, version in e["picked_up"]}
        if used:
            break
    assert record["refreshes"], (tmp_path / "refresher.log").read_text()
    taken = [v for line in record["refreshes"] for v in line["verdicts"] if v["accepted"]]
    assert all(v["after"] < v["before"] for v in taken)
    assert taken
    assert used
    assert max(used) <= latest_version(tmp_path)
    assert digests(run) == before
    assert {p: p.read_bytes() for p in trained.rglob("*") if p.is_file()} == files
    for out in (trained, trained / "within"):
        with pytest.raises(ValueError, match=rf"{out.name}: .*got a run's"):
            deploy(run, config, out=out)


def command(trained, out, *more):
    options = ["--episodes", "8", "--mpc.horizon", "1", "--mpc.particles", "2", "--mpc.lr", "1e-3", "--step-seconds", "0.004"]
    return [sys.executable, "-m", "jacrec", "deploy", str(trained), "--out", str(out), *options, *more]


def alive(pid):
    """Whether a process with this id is running."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_a_deployment_killed_twice_gives_the_same_episodes(tmp_path, trained):
    whole = deploy(trained, replace(OFF, episodes=8, step_seconds=0.004), out=tmp_path / "whole")
    out = tmp_path / "killed"
    held = 0
    for enough in (30, 90):
        with subprocess.Popen(command(trained, out, "--online.no-enabled"), stdout=subprocess.DEVNULL) as process:

            def far_enough(enough=enough):
                return (out / "replay.bin").is_file() and ReplayReader(out).look() >= enough

            assert until(far_enough)
            process.send_signal(signal.SIGKILL)
        now = len(ReplayReader(out).transitions())
        assert now >= max(held, enough)
        held = now
    assert cli.main(command(trained, out, "--online.no-enabled")[3:]) == 0
    record = json.loads((out / FILE).read_text())
    assert [e["return"] for e in record["episodes"]] == [e["return"] for e in whole["episodes"]]
    # the replay buffer also contains the interrupted episodes
    assert record["transitions"] >= whole["transitions"]
    assert len(ReplayReader(out).transitions()) == record["transitions"]


@pytest.mark.slow
def test_killing_a_deployment_ends_its_process_and_its_models_are_reused(tmp_path, trained):
    settings = (
        "--online.start-after",
        "60",
        "--online.every",
        "60",
        "--online.updates",
        "20",
        "--online.batch-size",
        "32",
        "--online.lr",
        "1e-2",
        "--online.poll-seconds",
        "0.02",
        "--online.held-out",
        "0.3",
    )
    arguments = command(trained, tmp_path, *settings, "--step-seconds", "0.01")
    with subprocess.Popen([*arguments, "--episodes", "1000"], stdout=subprocess.DEVNULL) as process:
        assert until(lambda: latest_version(tmp_path) >= 1)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.send_signal(signal.SIGKILL)
    assert len(children) == 1
    assert until(lambda: not alive(children[0]), 30)
    version, held, done = latest_version(tmp_path), len(ReplayReader(tmp_path).transitions()), len(read_refreshes(tmp_path))
    assert version >= 1
    finished = len(json.loads((tmp_path / FILE).read_text())["episodes"])
    assert cli.main([*arguments[3:], "--episodes", str(finished + 4)]) == 0
    record = json.loads((tmp_path / FILE).read_text())
    assert len(record["episodes"]) == finished + 4
    assert record["episodes"][finished]["version"] >= version
    assert record["transitions"] > held
    log = read_refreshes(tmp_path)
    assert [line["number"] for line in log] == list(range(1, len(log) + 1))
    assert len(log) >= done


def test_minimum_duration_of_steps(tmp_path, trained):
    began = time.perf_counter()
    record = deploy(trained, replace(OFF, episodes=1, step_seconds=0.01), out=tmp_path)
    assert time.perf_counter() - began >= 0.01 * (record["transitions"] - 1)
    assert 0 <= record["late_steps"] <= record["transitions"]


def test_deploy_command(tmp_path, trained, capsys):
    code = cli.main(
        [
            "deploy",
            str(trained),
            "--out",
            str(tmp_path),
            "--episodes",
            "1",
            "--mpc.horizon",
            "0",
            "--online.no-enabled",
            "--replay.flush-every",
            "4",
            "--log",
            "csv",
        ]
    )
    out = capsys.readouterr().out
    assert code == 0
    assert "decision" in out
    assert "no refresh took place" in out
    assert str(tmp_path / FILE) in out
    record = json.loads((tmp_path / FILE).read_text())
    settings = record["settings"]
    assert settings["replay"]["flush_every"] == 4
    head, line = (tmp_path / "tracking/deploy/csv/episodes.csv").read_text().splitlines()
    assert float(line.split(",")[head.split(",").index("return")]) == record["episodes"][0]["return"]
    assert len(ReplayReader(tmp_path).transitions()) == json.loads((tmp_path / FILE).read_text())["transitions"]


@pytest.mark.parametrize(("name", "value"), [("flush_every", 0), ("buffer", 0), ("sync_seconds", -1.0)])
def test_invalid_replay_settings_are_rejected(name, value):
    with pytest.raises(ValueError, match=rf"^{name}: "):
        ReplayConfig(**{name: value})


def test_synchronous_sync_requires_synchronous_writes():
    with pytest.raises(ValueError, match=r"sync_seconds: .*flush_every = 4.*got 0"):
        ReplayConfig(flush_every=4, sync_seconds=0)
