"""Planners as contestants in evaluations, on the command line, in specs and in sweeps."""

import importlib
import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
import yaml

from jacrec import cli
from jacrec.control.controller import MPCConfig
from jacrec.envs.batch import BatchedEnv
from jacrec.evaluation import video
from jacrec.evaluation.config import EvalConfig, PlayConfig
from jacrec.evaluation.contestant import make_controller, open_env, play_contestant
from jacrec.evaluation.episodes import play
from jacrec.evaluation.evaluate import evaluate
from jacrec.evaluation.rendering import Rendering
from jacrec.evaluation.results import compare, table
from jacrec.evaluation.run_report import write_run_report
from jacrec.evaluation.video import Video
from jacrec.planners import PLANNERS, Planner, PlannerConfig, model_calls
from jacrec.planners.imagine import imagine
from jacrec.studies.analysis.read import read_study
from jacrec.studies.analysis.settings import describe, settings_of, uses_world_model
from jacrec.studies.analysis.videos import record_study_videos
from jacrec.studies.job_graph import study_jobs
from jacrec.studies.spec import parse_study, read_spec, to_yaml
from jacrec.training.run import load_run
from tests import ROOT
from tests.study_folder import fill, write_study

STUDY = ROOT / "paper_checks" / "studies" / "planners.yaml"
CONFIG = EvalConfig(
    episodes=2,
    probe_every=4,
    probe_particles=3,
    growth_horizon=2,
    mpc=MPCConfig(horizon=2, particles=2),
    contestants=("base", *PLANNERS),
    planner=PlannerConfig(horizon=2, particles=2),
    planner_budget=24,
)


@pytest.fixture(scope="module")
def record(trained):
    return evaluate(trained, CONFIG, quiet=True)


def test_planners_share_seeds_and_budget(record):
    assert list(record["contestants"]) == ["base", *PLANNERS]
    for name in PLANNERS:
        entry = record["contestants"][name]
        assert entry["seeds"] == record["contestants"]["base"]["seeds"]
        assert entry["controller"]["planner"] == name
        assert entry["model_calls"] == {"best-of-q": 0, "action-gradient": 24}.get(name, 24)
        assert entry["seconds"] > 0
        assert entry["decisions"] == sum(entry["lengths"])
        assert 0 < entry["thinking"]["mean_action_change"] < 1


def test_recorded_returns_are_those_of_the_planner(trained, record):
    run = load_run(trained)
    player = make_controller(run, CONFIG.controller("cem"), 2)
    assert isinstance(player, Planner)
    assert play(BatchedEnv("Hopper-v4", 2), player, CONFIG.seeds).returns == record["contestants"]["cem"]["returns"]


def test_planner_probe_uses_independent_noise(trained):
    run, general = load_run(trained), PlayConfig(episodes=2, probe_every=3, probe_particles=4)
    controller = PlannerConfig(planner="action-gradient", horizon=2, particles=3, iterations=1, lr=1e-3)
    entry = play_contestant(run, controller, general, open_env(run, general, threads=1))
    thinking = entry["thinking"]
    first = {name: rows[0] for name, rows in thinking["objective"].items()}
    assert first["before"] == first["pretrained"]
    state = BatchedEnv("Hopper-v4", 2).reset(general.seeds)
    player = make_controller(run, controller, 2)
    assert isinstance(player, Planner)
    player.act(state)
    s = torch.as_tensor(state, dtype=torch.float32)
    noise = torch.randn(2, 4, 2, *run.world.dynamics.noise_shape, generator=torch.Generator().manual_seed(1))
    assert player.planned is not None
    for name, plan in (("after", player.planned.actions[:, None, :2]), ("pretrained", torch.zeros(2, 1, 0, 3))):
        expected = imagine(run.policy, run.world, s, plan, noise).returns[:, 0]
        assert first[name] == pytest.approx(expected.tolist(), rel=1e-5)
    # a small ascent step increases the return on independent noise, too
    assert np.all(np.array(first["after"]) > np.array(first["pretrained"]))
    assert thinking["updates"] == entry["decisions"]
    assert thinking["rejected"] == 0
    assert (len(thinking["probe_steps"]), thinking["probe_steps"][1]) == (-(-max(entry["lengths"]) // 3), [3, 3])


def test_planners_appear_in_tables_and_reports(trained, record):
    names = [r.name for r in compare(record)]
    assert names == ["base", *PLANNERS]
    assert table(record).row_count == len(names)
    text = write_run_report(trained).read_text()
    assert all(f"| {name} |" in text for name in PLANNERS)


def test_planners_on_the_command_line(trained, capsys, tmp_path):
    args = [
        "eval",
        str(trained),
        "--out",
        str(tmp_path),
        "--episodes",
        "1",
        "--no-video",
        "--contestants",
        "base",
        "mppi",
        "best-of-q",
        "--planner.horizon",
        "1",
        "--planner.noise-std",
        "0.1",
        "--planner-budget",
        "32",
    ]
    assert cli.main(args) == 0
    assert "mppi" in capsys.readouterr().out
    found = json.loads((tmp_path / "evaluation.json").read_text())["contestants"]
    assert list(found) == ["base", "mppi", "best-of-q"]
    mppi, best = (found[name]["controller"] for name in ("mppi", "best-of-q"))
    assert (mppi["horizon"], mppi["noise_std"], mppi["samples"]) == (1, 0.1, 8)
    assert (best["horizon"], best["noise_std"], best["samples"]) == (0, 0.1, 32)
    assert cli.main([*args[:-1], "1"]) == 2
    assert "budget: expected enough calls for 2 samples of mppi" in capsys.readouterr().err
    assert cli.main(["eval", str(trained), "--contestants", "mpi"]) == 2
    assert "'mppi'" in capsys.readouterr().err


def spec(**contestants):
    return {
        "name": "s",
        "tasks": {"hopper-random": {"data": "x.hdf5"}},
        "seeds": [0],
        "evaluation": {"episodes": 2},
        "contestants": contestants,
    }


def test_planners_in_a_spec():
    study = parse_study(
        spec(plan={"planner": "cem", "horizon": 2, "particles": 1, "budget": 20, "noise_std": "1e-1"}, mpc={"horizon": 2})
    )
    cem = PlannerConfig(planner="cem", horizon=2, particles=1, samples=10, noise_std=0.1)
    assert study.controller("hopper-random", "plan") == cem
    assert parse_study(to_yaml(study)) == study
    assert "temperature" not in to_yaml(study)["contestants"]["plan"]
    tuned = spec(plan={"planner": "cem"})
    tuned["tasks"]["hopper-random"]["contestants"] = {"plan": {"noise_std": 0.2}}
    assert parse_study(tuned).controller("hopper-random", "plan") == PlannerConfig(planner="cem", noise_std=0.2)
    tuned["tasks"]["hopper-random"]["contestants"] = {"plan": {"budget": 100}}
    assert parse_study(tuned).controller("hopper-random", "plan") == PlannerConfig(planner="cem", samples=5)


@pytest.mark.parametrize(
    ("contestants", "message"),
    [
        ({"p": {"planner": "mpi"}}, r"contestants\.p: planner: expected one of 'mppi'"),
        ({"p": {"planner": "cem", "nois_std": 1}}, "unknown setting 'nois_std'; did you mean 'noise_std'"),
        ({"p": {"planner": "mppi", "updates": 3}}, "unknown setting 'updates'"),
        ({"p": {"planner": "cem", "temperature": 1}}, r"p\.temperature: expected none with planner 'cem'.*a setting of mppi"),
        ({"p": {"planner": "action-gradient", "samples": 3}}, "a setting of mppi, cem, best-of-return, best-of-q"),
        ({"p": {"horizon": 3, "samples": 3}}, "unknown setting 'samples'"),
        ({"p": {"planner": "cem", "budget": 5}}, r"contestants\.p: budget: expected enough calls for 4 samples of cem"),
        ({"p": {"planner": "cem", "budget": "5"}}, r"contestants\.p: budget: expected an integer"),
        ({"p": {"planner": "cem", "budget": 99, "samples": 9}}, r"contestants\.p: .*budget or samples.*got both"),
        (
            {"p": {"planner": "action-gradient", "budget": 99, "iterations": 9}},
            r"contestants\.p: .*budget or iterations.*got both",
        ),
        ({"p": {"planner": "cem"}, "best": {"rehearse": ["p"]}}, r"best: .*'rehearse': \['p'\]"),
    ],
)
def test_invalid_planners_in_a_spec(contestants, message):
    with pytest.raises(ValueError, match=message):
        parse_study(spec(**contestants))


def test_sweep_job_with_a_planner(trained, record, tmp_path):
    own = {"planner": "mppi", "horizon": 2, "particles": 2, "budget": 24}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(spec(plan=own)))
    jobs = {job.id: job for job in study_jobs(read_spec(tmp_path / "study.yaml"), tmp_path)}
    cell = tmp_path / "cells" / "hopper-random" / "seed-0"
    cell.mkdir(parents=True)
    (cell / "run").symlink_to(trained)
    jobs["hopper-random/seed-0/plays/plan"].perform(lambda share: None)
    found = json.loads((cell / "plays" / "plan.json").read_text())
    assert found["returns"] == record["contestants"]["mppi"]["returns"]
    assert found["controller"] == record["contestants"]["mppi"]["controller"]


def test_descriptions_contain_the_settings_a_planner_uses(tmp_path):
    players = {"h0": {"horizon": 0}, "plan": {"planner": "mppi", "horizon": 3}, "q": {"planner": "best-of-q"}}
    study = read_study(write_study(tmp_path / "s", contestants=players))
    assert [uses_world_model(study, name) for name in players] == [False, True, False]
    assert "lr" not in settings_of(study, "plan")
    text = describe(study, "plan")
    assert text.startswith("planner mppi, H 3, M 4")
    assert "temperature 0.3" in text
    assert "noise std 0.3" in describe(study, "q")


def test_video_of_a_planner(trained, tmp_path, monkeypatch):
    players = {"h0": {"horizon": 0}, "plan": {"planner": "mppi", "horizon": 1, "samples": 2}}
    path = fill(write_study(tmp_path / "s", contestants=players), lambda task, seed, name: 9.0 * (name == "plan"))
    calls = []

    def record(run, config, folder, **options):
        calls.append((config, options))
        return Video(folder / "x.gif", "")

    monkeypatch.setattr("jacrec.studies.analysis.videos.probe", lambda: Rendering(True, "egl", ""))
    monkeypatch.setattr("jacrec.studies.analysis.videos.load_run", lambda run: run)
    monkeypatch.setattr("jacrec.studies.analysis.videos.record_video", record)
    record_study_videos(read_study(path), tmp_path)
    config, options = calls[0]
    assert (options["who"], options["label"]) == ("mppi", "plan")
    assert config.controller("mppi") == PlannerConfig(planner="mppi", horizon=1, samples=2)
    played = []
    monkeypatch.setattr(
        "jacrec.evaluation.video._play", lambda name, player, *_: played.append((name, player)) or [np.zeros((2, 2, 3))]
    )
    monkeypatch.setattr("imageio.v3.imwrite", lambda path, *_, **__: path.touch())
    request = {
        "run": str(trained),
        "dynamics": None,
        "config": asdict(config),
        "path": str(tmp_path / "x.gif"),
        "label": "plan",
        "who": "mppi",
        "seconds": 0.1,
    }
    video.main(json.dumps(request))
    assert [name for name, _ in played] == ["base", "plan"]
    assert isinstance(played[1][1], Planner)
    assert played[1][1].config == config.planner
    assert (tmp_path / "x.gif").is_file()


def test_planner_speed_benchmark(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(STUDY.parent.parent.parent / "benchmarks"))
    speed, path = importlib.import_module("planner_speed"), tmp_path / "speed.json"
    small = ["--width", "16", "--steps", "2", "--calls", "48", "--horizon", "2", "--batch", "1", "2", "--repetitions", "10"]
    speed.main([*small, "--json", str(path)])
    result = json.loads(path.read_text())
    assert result["error"] <= 1e-10
    assert [(r["contestant"], r["N"]) for r in result["rows"]] == [(c, n) for n in (1, 2) for c in ("psi-gradient", *PLANNERS)]
    for row in result["rows"]:
        assert row["calls"] == (0 if row["contestant"] == "best-of-q" else 48)
        assert 0 < row["ms"]["p20"] <= row["ms"]["median"] <= row["ms"]["p80"]
    real = speed.action_gradient
    monkeypatch.setattr(speed, "action_gradient", lambda *args: tuple(x * 1.001 for x in real(*args)))
    with pytest.raises(AssertionError, match=r"at most 1e-10 to autograd, got 0\.001"):
        speed.main(small)


def test_planners_study_gives_equal_budgets():
    study = read_spec(STUDY)
    gains = read_spec(STUDY.with_name("gains.yaml"))
    calls = {name: model_calls(study.contestants[name].controller) for name in study.players[1:]}
    free = {"h0", "best-of-q"}
    assert {name for name, n in calls.items() if n == 0} == free
    most = max(calls.values())
    assert all(0.85 * most <= n for name, n in calls.items() if name not in free)
    kinds = [own.controller.planner for own in study.contestants.values() if isinstance(own.controller, PlannerConfig)]
    assert set(kinds) == set(PLANNERS)
    assert kinds.count("action-gradient") == 2
    # same runs as the study of gains
    for task in study.tasks:
        assert study.train_config(task, 10) == gains.train_config(task, 10)
    assert replace(study.evaluation, episodes=10) == gains.evaluation
