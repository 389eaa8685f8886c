"""Deployments of a trained run that race: what they record, interrupted anywhere, and what they refuse."""

import json
import signal
import subprocess
import sys
from contextlib import closing
from dataclasses import asdict, replace

import pytest
import yaml

from jacrec import cli
from jacrec.control.controller import MPCConfig
from jacrec.evaluation.contestant import open_env
from jacrec.evaluation.episodes import PolicyController, play
from jacrec.evaluation.tuning import BASE
from jacrec.online import deploy as deployment
from jacrec.online.deploy import FILE, deploy
from jacrec.online.race import DeployedRace, longest
from jacrec.online.replay_buffer import ReplayReader
from jacrec.training.run import load_run
from tests.online.test_deploy import OFF, until
from tests.online.test_interrupted import interrupt_at

CANDIDATES = {
    "near": MPCConfig(horizon=1, particles=2, lr=1e-3, carry="persist"),
    "far": MPCConfig(horizon=0, particles=1, lr=1e-1, carry="persist"),
}
RACE = replace(OFF, episodes=14, mpc=MPCConfig(), race_allowance=6.0)


def essence(record):
    """What must not depend on interruptions."""
    episodes = [(e["player"], e["seed"], e["return"], e["lost"]) for e in record["episodes"]]
    return episodes, record["race"], record["transitions"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, trained):
    """A race without interruptions."""
    folder = tmp_path_factory.mktemp("whole")
    return deploy(trained, RACE, candidates=CANDIDATES, out=folder, say=lambda _: None), folder


def test_a_deployment_races_and_records_it(whole, trained):
    record, folder = whole
    episodes = record["episodes"]
    assert [e["player"] for e in episodes[:5]] == [BASE, BASE, BASE, "near", "far"]
    assert [e["seed"] for e in episodes[:5]] == [42_000, 42_001, 42_002, 42_002, 42_002]
    race = DeployedRace(list(CANDIDATES), RACE.race_allowance)
    for e in episodes:
        assert e["player"] == race.player
        race.played(e["return"])
        assert (e["lost"], e["allowance"]) == (race.lost, race.granted)
    assert record["race"] == race.record()
    run = load_run(trained)
    with closing(open_env(run, RACE.play)) as env:
        alone = [play(env, PolicyController(run.policy), [seed]).returns[0] for seed in RACE.play.seeds[:3]]
    assert [e["return"] for e in episodes[:3]] == alone
    assert json.loads((folder / FILE).read_text())["race"] == record["race"]


def test_a_race_is_resumed_after_every_episode(whole, tmp_path, trained):
    record, _ = whole
    for episodes in range(1, RACE.episodes + 1):
        part = deploy(trained, replace(RACE, episodes=episodes), candidates=CANDIDATES, out=tmp_path, say=lambda _: None)
    assert essence(part) == essence(record)


@pytest.mark.parametrize("episode", [0, 3, 4, 6, 9])
def test_a_race_is_resumed_within_an_episode(whole, tmp_path, trained, monkeypatch, episode):
    record, folder = whole
    with monkeypatch.context() as patch:
        interrupt_at(patch, sum(e["length"] for e in record["episodes"][:episode]) + 3)
        with pytest.raises(KeyboardInterrupt):
            deploy(trained, RACE, candidates=CANDIDATES, out=tmp_path, say=lambda _: None)
    again = deploy(trained, RACE, candidates=dict(reversed(CANDIDATES.items())), out=tmp_path, say=lambda _: None)
    assert essence(again) == essence(record)
    assert (tmp_path / "replay.bin").read_bytes() == (folder / "replay.bin").read_bytes()
    assert len(ReplayReader(tmp_path).transitions()) == record["transitions"]


@pytest.mark.slow
def test_a_race_killed_twice_takes_the_same_course(whole, tmp_path, trained):
    record, _ = whole
    file, out = tmp_path / "candidates.yaml", tmp_path / "killed"
    file.write_text(yaml.safe_dump({name: asdict(own) for name, own in CANDIDATES.items()}, sort_keys=False))
    command = ["deploy", str(trained), "--out", str(out), "--online.no-enabled", "--race", str(file), "--race-allowance", "6"]
    command += ["--episodes", str(RACE.episodes), "--step-seconds", "0.004"]
    length = [e["length"] for e in record["episodes"]]
    for enough in (sum(length[:3]) + 5, sum(length[:6]) + 5):
        with subprocess.Popen([sys.executable, "-m", "jacrec", *command], stdout=subprocess.DEVNULL) as process:

            def far_enough(enough=enough):
                return (out / "replay.bin").is_file() and ReplayReader(out).look() >= enough

            assert until(far_enough)
            process.send_signal(signal.SIGKILL)
    assert cli.main(command) == 0
    assert essence(json.loads((out / FILE).read_text())) == essence(record)


def test_a_record_of_another_course_is_refused(tmp_path, trained):
    config = replace(RACE, episodes=5)
    record = deploy(trained, config, candidates=CANDIDATES, out=tmp_path, say=lambda _: None)
    for i, player in ((3, "far"), (1, "near"), (4, None)):
        changed = json.loads(json.dumps(record))
        changed["episodes"][i] |= {"player": player}
        if player is None:
            del changed["episodes"][i]["player"]
        (tmp_path / FILE).write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=rf"deploy\.json: expected .* at episodes\[{i}\]\.player, .*got {player!r}; copy"):
            deploy(trained, RACE, candidates=CANDIDATES, out=tmp_path)
    changed = record | {"settings": record["settings"] | {"candidates": [1]}}
    (tmp_path / FILE).write_text(json.dumps(changed))
    with pytest.raises(ValueError, match=r"deploy\.json: expected .*; copy the file again"):
        deploy(trained, RACE, candidates=CANDIDATES, out=tmp_path)


def test_what_follows_from_the_returns_is_recorded_anew(tmp_path, trained):
    config = replace(RACE, episodes=5)
    record = deploy(trained, config, candidates=CANDIDATES, out=tmp_path, say=lambda _: None)
    changed = json.loads(json.dumps(record))
    del changed["episodes"][3]["lost"], changed["episodes"][4]["allowance"], changed["race"]
    (tmp_path / FILE).write_text(json.dumps(changed))
    assert essence(deploy(trained, config, candidates=CANDIDATES, out=tmp_path, say=lambda _: None)) == essence(record)


@pytest.mark.parametrize("name", ["", "a/b", "mpc"])
def test_a_race_is_resumed_whatever_its_candidates_are_called(name, tmp_path, trained):
    candidates = {name: CANDIDATES["near"], "far": CANDIDATES["far"]}
    for episodes in (4, 6):
        record = deploy(
            trained, replace(RACE, episodes=episodes), candidates=candidates, out=tmp_path / "parts", say=lambda _: None
        )
    whole = deploy(trained, replace(RACE, episodes=6), candidates=candidates, out=tmp_path / "whole", say=lambda _: None)
    assert essence(record) == essence(whole)


def test_a_race_is_not_continued_as_another(tmp_path, trained):
    deploy(trained, replace(RACE, episodes=2), candidates=CANDIDATES, out=tmp_path / "race", say=lambda _: None)
    other = CANDIDATES | {"far": MPCConfig(horizon=0, particles=1, lr=1e-2)}
    for config, candidates, what in (
        (RACE, other, r"settings\.candidates\.far\.lr: 0\.1 there, 0\.01 here"),
        (RACE, None, r"settings\.candidates"),
        (replace(RACE, race_allowance=5.0), CANDIDATES, r"settings\.race_allowance: 6\.0 there, 5\.0 here"),
    ):
        config = config if candidates else replace(OFF, mpc=MPCConfig())
        with pytest.raises(ValueError, match=what):
            deploy(trained, config, candidates=candidates, out=tmp_path / "race")
    deploy(trained, replace(OFF, mpc=MPCConfig(), episodes=1), out=tmp_path / "alone")
    with pytest.raises(ValueError, match=r"settings\.candidates"):
        deploy(trained, RACE, candidates=CANDIDATES, out=tmp_path / "alone")


def test_deployments_from_before_races_go_on(tmp_path, trained):
    record = deploy(trained, replace(OFF, episodes=1), out=tmp_path)
    for name in ("candidates", "race_allowance"):
        del record["settings"][name]
    (tmp_path / FILE).write_text(json.dumps(record))
    assert len(deploy(trained, replace(OFF, episodes=2), out=tmp_path)["episodes"]) == 2


@pytest.mark.parametrize(
    ("changes", "candidates", "what"),
    [
        ({"mpc": MPCConfig(lr=1e-4)}, CANDIDATES, r"^race: expected no settings of mpc"),
        ({"rows": 2}, CANDIDATES, r"^rows: expected 1 .* got 2"),
        ({}, {}, r"^candidates: expected at least one"),
        ({}, {BASE: MPCConfig()}, r"^candidates: .*got 'base'"),
        ({}, {"scaled": MPCConfig(units="value")}, r"value_scale"),
        ({}, None, r"^race_allowance: expected it with a race alone, got 6\.0"),
    ],
)
def test_settings_that_do_not_go_with_a_race_are_refused(tmp_path, trained, changes, candidates, what):
    run = load_run(trained)
    run = replace(run, world=replace(run.world, value_scale=None))
    with pytest.raises(ValueError, match=what):
        deploy(run, replace(RACE, **changes), candidates=candidates, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_models_are_shared_by_the_candidates(tmp_path, trained, monkeypatch):
    """A refreshed model is that of every candidate."""
    worlds = []

    class Seen(deployment.MPC):
        def __init__(self, policy, world, *args, **kwargs):
            worlds.append(world)
            super().__init__(policy, world, *args, **kwargs)

    monkeypatch.setattr(deployment, "MPC", Seen)
    deploy(trained, replace(RACE, episodes=1), candidates=CANDIDATES, out=tmp_path)
    assert len(worlds) == 2
    assert worlds[0].dynamics is worlds[1].dynamics
    assert worlds[0].reward is worlds[1].reward


def test_the_command_races(tmp_path, trained, capsys):
    file = tmp_path / "candidates.yaml"
    file.write_text(yaml.safe_dump({name: asdict(own) for name, own in CANDIDATES.items()}, sort_keys=False))
    command = [
        "deploy",
        str(trained),
        "--out",
        str(tmp_path / "out"),
        "--online.no-enabled",
        "--race",
        str(file),
        "--log",
        "csv",
    ]
    shown = ""
    for episodes in ("5", "6"):
        assert cli.main([*command, "--race-allowance", "6", "--episodes", episodes]) == 0
        out = capsys.readouterr().out
        assert (
            f"undecided after {episodes} episodes; the same command goes on with a larger --episodes: {longest(2)} decide it"
            in out
        )
        shown += out
    out = shown
    record = json.loads((tmp_path / "out" / FILE).read_text())
    assert [e["player"] for e in record["episodes"][:5]] == [BASE, BASE, BASE, "near", "far"]
    (own,) = record["race"]["dropped"]
    assert own["name"] in CANDIDATES
    assert own["episode"] == 5
    assert f"race: {own['name']} is dropped after episode 5: in the lower half" in out
    assert "allowance of" in out
    assert "dropped after episode 5" in out
    lines = (tmp_path / "out/tracking/deploy/csv/race-base.csv").read_text().splitlines()
    assert len(lines) == 1 + sum(e["player"] == BASE for e in record["episodes"])
    head = lines[0].split(",")
    assert float(lines[-1].split(",")[head.index("lost")]) == record["episodes"][-1]["lost"]


def test_an_error_stands_without_a_progress_bar(tmp_path, trained, capsys):
    assert cli.main(["deploy", str(trained), "--race", "--race-allowance", "0.5", "--out", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr()
    assert printed.out.strip() == ""
    assert "race_allowance: expected at least 1" in printed.err


def test_race_and_tuned_are_alternatives(trained, capsys):
    assert cli.main(["deploy", str(trained), "--tuned", "--race"]) == 2
    assert "tuned: expected no race beside it" in capsys.readouterr().err


def test_the_default_candidates_race(tmp_path, trained):
    assert cli.main(["deploy", str(trained), "--race", "--episodes", "4", "--out", str(tmp_path), "--online.no-enabled"]) == 0
    record = json.loads((tmp_path / FILE).read_text())
    assert [e["player"] for e in record["episodes"]] == [BASE, BASE, BASE, "h3"]
    assert list(record["settings"]["candidates"]) == ["h3", "h3-large", "h5"]
