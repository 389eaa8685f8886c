"""A deployment: plain MPC where refreshing is off, and gone on with after any end."""

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
from jacrec.online.published import latest_version, refreshes
from jacrec.online.replay import ReplayReader
from jacrec.training.run import load_run
from tests.online.test_refresh import SOON, until
from tests.small_run import hardly_trained

THINKING = MPCConfig(horizon=1, particles=2, lr=1e-3)
OFF = DeployConfig(episodes=3, mpc=THINKING, online=RefreshConfig(enabled=False))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a hardly trained run."""
    return hardly_trained(tmp_path_factory.mktemp("deploy"))


def plainly_played(trained, config):
    """Returns, and all observations and actions, of MPC in plain episodes, one after the other."""
    run, seen = load_run(trained), []
    mpc = MPC(run.policy, run.world, config.mpc, batch=1)
    returns = []
    with closing(open_env(run, config.play)) as env:
        for seed in config.play.seeds:
            log = play(env, mpc, [seed], watch=lambda s, a, *_: seen.append((s[0], a[0])))
            returns += log.returns
    return returns, np.array([s for s, _ in seen]), np.array([a for _, a in seen])


def test_switched_off_it_is_plain_mpc_to_the_bit_and_keeps_every_transition(tmp_path, trained):
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


def test_more_episodes_may_be_asked_for_and_other_settings_may_not(tmp_path, trained):
    whole = deploy(trained, replace(OFF, episodes=4), out=tmp_path / "whole")
    deploy(trained, replace(OFF, episodes=1), out=tmp_path / "parts")
    said = []
    record = deploy(trained, replace(OFF, episodes=4), out=tmp_path / "parts", say=said.append)
    assert [e["return"] for e in record["episodes"]] == [e["return"] for e in whole["episodes"]]
    assert said == [f"the replay holds {whole['episodes'][0]['length']} transitions"]
    with pytest.raises(ValueError, match=r"settings\.seed: 42 there, 43 here"):
        deploy(trained, replace(OFF, seed=43), out=tmp_path / "parts")


def test_a_model_that_cannot_be_refreshed_is_refused_before_anything_is_recorded(tmp_path, trained):
    run = load_run(trained)
    several = replace(run, config=replace(run.config, dynamics=replace(run.config.dynamics, kind="multistep")))
    with pytest.raises(ValueError, match=r"online\.parts: expected reward alone"):
        deploy(several, replace(OFF, online=RefreshConfig()), out=tmp_path)
    assert list(tmp_path.iterdir()) == []
    record = deploy(several, replace(OFF, episodes=1, online=RefreshConfig(parts=("reward",))), out=tmp_path)
    assert len(record["episodes"]) == 1, "as the error said"


def test_settings_that_the_controller_refuses_are_not_recorded(tmp_path, trained, monkeypatch):
    def refuses(*args, **kwargs):
        raise ValueError("not so")

    with monkeypatch.context() as patch:
        patch.setattr("jacrec.online.deploy.MPC", refuses)
        with pytest.raises(ValueError, match="not so"):
            deploy(trained, OFF, out=tmp_path)
    assert not (tmp_path / FILE).exists()
    deploy(trained, replace(OFF, episodes=1, seed=7), out=tmp_path)


def test_the_table_says_where_offline_data_were_missing(trained):
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


def test_rows_in_lock_step_are_episodes_of_their_own(tmp_path, trained):
    record = deploy(trained, replace(OFF, episodes=4, rows=2), out=tmp_path)
    data = ReplayReader(tmp_path).transitions()
    lengths = [e["length"] for e in record["episodes"]]
    assert np.bincount(data.episode).tolist() == lengths
    assert (~data.has_next_action).sum() == 4
    with pytest.raises(ValueError, match="multiple of rows = 2, got 3"):
        replace(OFF, episodes=3, rows=2)


@pytest.mark.slow
def test_it_refreshes_while_it_plays_and_leaves_the_run_alone(tmp_path, trained):
    run = load_run(trained)
    before, files = digests(run), {p: p.read_bytes() for p in trained.rglob("*") if p.is_file()}
    # in real time, and for as long as a busy machine needs to begin a process that stands furthest back
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
        with pytest.raises(ValueError, match="got a run's"):
            deploy(run, config, out=out)


def command(trained, out, *more):
    options = ["--episodes", "8", "--mpc.horizon", "1", "--mpc.particles", "2", "--mpc.lr", "1e-3", "--step-seconds", "0.004"]
    return [sys.executable, "-m", "jacrec", "deploy", str(trained), "--out", str(out), *options, *more]


def alive(pid):
    """Whether a process of this number does anything."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_a_deployment_killed_twice_ends_as_if_it_had_not_been(tmp_path, trained):
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
    # episodes that were cut off are in the replay beside those that took their place
    assert record["transitions"] >= whole["transitions"]
    assert len(ReplayReader(out).transitions()) == record["transitions"]


@pytest.mark.slow
def test_a_killed_deployment_takes_its_refreshing_process_along_and_goes_on_with_its_models(tmp_path, trained):
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
    version, held, done = latest_version(tmp_path), len(ReplayReader(tmp_path).transitions()), len(refreshes(tmp_path))
    assert version >= 1
    finished = len(json.loads((tmp_path / FILE).read_text())["episodes"])
    assert cli.main([*arguments[3:], "--episodes", str(finished + 4)]) == 0
    record = json.loads((tmp_path / FILE).read_text())
    assert len(record["episodes"]) == finished + 4
    assert record["episodes"][finished]["version"] >= version
    assert record["transitions"] > held
    log = refreshes(tmp_path)
    assert [line["number"] for line in log] == list(range(1, len(log) + 1))
    assert len(log) >= done


def test_in_real_time_a_step_takes_its_time(tmp_path, trained):
    began = time.perf_counter()
    record = deploy(trained, replace(OFF, episodes=1, step_seconds=0.01), out=tmp_path)
    assert time.perf_counter() - began >= 0.01 * (record["transitions"] - 1)
    assert 0 <= record["late_steps"] <= record["transitions"]


def test_the_command_prints_scores_and_says_where(tmp_path, trained, capsys):
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
        ]
    )
    told = capsys.readouterr().out
    assert code == 0
    assert "decision" in told
    assert "no refresh took place" in told
    assert str(tmp_path / FILE) in told
    settings = json.loads((tmp_path / FILE).read_text())["settings"]
    assert settings["replay"]["flush_every"] == 4
    assert len(ReplayReader(tmp_path).transitions()) == json.loads((tmp_path / FILE).read_text())["transitions"]


@pytest.mark.parametrize(("name", "value"), [("flush_every", 0), ("buffer", 0), ("sync_seconds", -1.0)])
def test_replay_settings_that_make_no_sense(name, value):
    with pytest.raises(ValueError, match=name):
        ReplayConfig(**{name: value})


def test_append_cannot_sync_what_it_does_not_write():
    with pytest.raises(ValueError, match=r"sync_seconds: expected more than 0 with flush_every = 4"):
        ReplayConfig(flush_every=4, sync_seconds=0)
