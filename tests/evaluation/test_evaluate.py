"""Evaluation on small networks: fairness, reproducibility, resumption, and contents of the record."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from jacrec.control.config import MPCConfig
from jacrec.envs.batch import BatchedEnv
from jacrec.envs.physics import make_env
from jacrec.evaluation import evaluate as module
from jacrec.evaluation.config import EvalConfig, PlayConfig
from jacrec.evaluation.contestant import digests, open_env, play_contestant, with_dynamics
from jacrec.evaluation.episodes import PolicyController, play
from jacrec.evaluation.evaluate import evaluate, read_evaluation
from jacrec.evaluation.results import compare
from jacrec.evaluation.run_report import write_run_report
from jacrec.experimental.config import ExperimentalConfig, experimental_of
from jacrec.models.dynamics import DeterministicDynamics
from jacrec.models.dynamics.sampler import Sampler
from jacrec.models.io import save_module
from jacrec.training.run import load_run

MPC_CONFIG = MPCConfig(horizon=2, particles=2, lr=1e-3)
CONFIG = EvalConfig(episodes=3, mpc=MPC_CONFIG, probe_every=4, probe_particles=3, growth_horizon=3)


@pytest.fixture(scope="module")
def record(trained):
    return evaluate(trained, CONFIG, quiet=True)


def test_lock_step_equals_one_episode_at_a_time(trained):
    run = load_run(trained)
    controller = PolicyController(run.policy)
    together = play(BatchedEnv("Hopper-v4", 3), controller, [1, 2, 3])
    queued = play(BatchedEnv("Hopper-v4", 1), controller, [1, 2, 3])
    assert together.returns == pytest.approx(queued.returns, rel=1e-4)
    env = make_env("Hopper-v4")
    for seed, expected, length in zip([1, 2, 3], together.returns, together.lengths, strict=True):
        observation, _ = env.reset(seed=seed)
        total, steps, over = 0.0, 0, False
        while not over:
            with torch.no_grad():
                action = run.policy(torch.as_tensor(observation[None], dtype=torch.float32))[0].numpy()
            observation, reward, terminated, truncated, _ = env.step(action)
            total, steps, over = total + float(reward), steps + 1, terminated or truncated
        assert (total, steps) == (pytest.approx(expected, rel=1e-4), length)


class Counting:
    """A controller that does nothing and counts episodes."""

    def __init__(self, n, m):
        self.action, self.started = np.zeros((n, m)), np.zeros(n, int)

    def act(self, observation):
        return self.action

    def new_episode(self, rows=None):
        self.started[slice(None) if rows is None else rows] += 1


def test_all_seeds_of_the_queue_are_played():
    controller, shares = Counting(2, 3), []
    log = play(BatchedEnv("Hopper-v4", 2), controller, range(5), progress=shares.append)
    assert log.seeds == list(range(5))
    assert controller.started.sum() == 5
    assert min(log.lengths) > 1
    assert log.decisions == sum(log.lengths)
    assert all(log.terminated)
    assert shares[-1] == pytest.approx(1.0)
    assert np.all(np.diff(shares) >= 0)


def test_base_contestant_is_the_policy(trained, record):
    log = play(BatchedEnv("Hopper-v4", 3), PolicyController(load_run(trained).policy), [42000, 42001, 42002])
    assert record["contestants"]["base"]["returns"] == log.returns
    assert record["contestants"]["base"]["scores"] == pytest.approx([100 * (r + 20.272305) / 3254.572305 for r in log.returns])


def test_play_contestant_equals_the_evaluation(trained, record):
    run, general = load_run(trained), PlayConfig(episodes=3, probe_every=4, probe_particles=3)
    env = open_env(run, general, threads=1)
    for name, controller in (("base", None), ("h0", CONFIG.controller("h0")), ("mpc", MPC_CONFIG)):
        played = play_contestant(run, controller, general, env)
        timed = {"seconds", "wall_seconds", "decisions_per_second"}
        recorded = record["contestants"][name]
        assert {k: v for k, v in played.items() if k not in timed} == {k: v for k, v in recorded.items() if k not in timed}


def test_playing_with_another_world_model(trained, record, tmp_path):
    run = load_run(trained)
    other = DeterministicDynamics(run.policy.state_dim, run.policy.action_dim, (8,))
    save_module(other, tmp_path / "dynamics.safetensors")
    changed = with_dynamics(run, tmp_path)
    assert isinstance(changed.world.dynamics, DeterministicDynamics)
    differing = {name for name, value in digests(changed).items() if value != record["networks"][name]}
    assert differing == {"dynamics"}
    general = PlayConfig(episodes=1, probe_every=4, probe_particles=3)
    played = play_contestant(changed, MPC_CONFIG, general, open_env(changed, general))
    assert played["thinking"]["updates"] == played["decisions"] > 0


def test_sampling_settings_without_retraining(trained, record, tmp_path):
    config = replace(CONFIG, dynamics=Sampler(sampler="ddim", levels=(1,)), contestants=("base", "mpc"))
    few = evaluate(trained, config, out=tmp_path, quiet=True)
    assert few["networks"] == record["networks"]
    assert few["contestants"]["base"]["returns"] == record["contestants"]["base"]["returns"]
    assert few["contestants"]["mpc"]["returns"] != record["contestants"]["mpc"]["returns"]
    with pytest.raises(ValueError, match=r"settings\.dynamics\.sampler: ddim there, None here"):
        evaluate(trained, replace(config, dynamics=Sampler()), out=tmp_path, quiet=True)


def test_contestants_differ_only_in_their_horizon(record):
    h0, mpc = (record["contestants"][name]["controller"] for name in ("h0", "mpc"))
    assert {k for k in mpc if mpc[k] != h0[k]} == {"horizon", "particles"}
    assert (h0["horizon"], mpc["horizon"]) == (0, 2)
    seeds = [entry["seeds"] for entry in record["contestants"].values()]
    assert seeds == [[42000, 42001, 42002]] * 3


def test_probes_measure_the_effect_of_updates(record):
    thinking = record["contestants"]["mpc"]["thinking"]
    first = {name: rows[0] for name, rows in thinking["objective"].items()}
    # ψ = ψ₀ before the first decision of an episode, and a small ascent step increases Ĵ
    assert first["before"] == pytest.approx(first["pretrained"], rel=1e-6)
    assert np.all(np.array(first["after"]) > np.array(first["before"]))
    assert thinking["updates"] == record["contestants"]["mpc"]["decisions"]
    assert thinking["rejected"] == 0
    assert 0 < thinking["mean_drift"] < 1
    assert 0 < thinking["mean_action_change"] < 1
    assert thinking["probe_steps"][1] == [4, 4, 4]
    assert [record["growth"][k][0] for k in ("low", "median", "high")] == pytest.approx([1, 1, 1])
    assert len(record["growth"]["median"]) == 4


def test_rejected_updates_are_counted(trained):
    run = load_run(trained)
    with torch.no_grad():
        next(run.world.reward.parameters()).fill_(float("nan"))
    got = evaluate(run, replace(CONFIG, contestants=("mpc",)), out=trained.parent / "broken", quiet=True)
    entry = got["contestants"]["mpc"]
    assert entry["thinking"]["rejected"] == entry["thinking"]["updates"] > 0
    assert entry["returns"] == pytest.approx(got["contestants"]["base"]["returns"], rel=1e-4)
    assert entry["thinking"]["mean_objective"]["after"] is None


def test_interrupted_evaluations_are_resumed_with_the_same_results(trained, record, monkeypatch):
    out = trained.parent / "interrupted"
    real = module._contestant

    def until_mpc(name, *args):
        if name == "mpc":
            raise KeyboardInterrupt
        return real(name, *args)

    monkeypatch.setattr(module, "_contestant", until_mpc)
    with pytest.raises(KeyboardInterrupt):
        evaluate(trained, CONFIG, out=out, quiet=True)
    assert list(read_evaluation(out)["contestants"]) == ["base", "h0"]
    played = []
    monkeypatch.setattr(module, "_contestant", lambda name, *args: (played.append(name), real(name, *args))[1])
    resumed = evaluate(trained, CONFIG, out=out, quiet=True)
    assert played == ["mpc"]
    assert resumed["contestants"]["mpc"]["returns"] == record["contestants"]["mpc"]["returns"]


def test_other_evaluations_are_not_overwritten(trained, record):
    other = replace(CONFIG, mpc=replace(CONFIG.mpc, lr=1e-4))
    before = read_evaluation(trained)
    with pytest.raises(ValueError, match=r"settings\.mpc.*--out.*--again"):
        evaluate(trained, other, quiet=True)
    assert read_evaluation(trained) == before
    replaced = evaluate(trained, replace(other, episodes=1), out=trained.parent / "again", quiet=True)
    again = evaluate(trained, replace(CONFIG, episodes=1), out=trained.parent / "again", again=True, quiet=True)
    assert replaced["settings"]["mpc"]["lr"] == 1e-4
    assert read_evaluation(trained.parent / "again")["settings"]["mpc"]["lr"] == again["settings"]["mpc"]["lr"] == 1e-3


def test_evaluations_of_other_networks_are_not_resumed(trained, record):
    run = load_run(trained)
    with torch.no_grad():
        next(run.policy.parameters()).add_(1e-3)
    with pytest.raises(ValueError, match=r"networks\.actor: "):
        evaluate(run, CONFIG, quiet=True)


def test_comparison_is_paired_by_seed(record):
    results = {r.name: r for r in compare(record)}
    mpc, base = (np.array(record["contestants"][n]["scores"]) for n in ("mpc", "base"))
    assert results["mpc"].gain.mean == pytest.approx((mpc - base).mean())
    assert results["base"].gain is None
    assert results["mpc"].over_h0.mean == pytest.approx(results["mpc"].gain.mean - results["h0"].gain.mean)


def test_report_contains_the_numbers_of_the_record(trained, record):
    path = write_run_report(trained, stages={"data": 12.3})
    text = path.read_text()
    gain = next(r.gain for r in compare(record) if r.name == "mpc")
    assert f"{gain.mean:+.1f} [{gain.low:+.1f}, {gain.high:+.1f}]" in text
    assert "What the world model adds" in text
    assert "| data | 12.3 |" in text
    assert "train: dynamics" in text
    for name in ("scores", "learning", "objective", "growth"):
        plot = trained / "plots" / f"{name}.png"
        assert plot.read_bytes().startswith(b"\x89PNG")
        assert f"plots/{name}.png" in text


def test_report_with_the_base_policy_only(trained, tmp_path):
    config = EvalConfig(episodes=1, contestants=())
    record = evaluate(trained, config, out=tmp_path, quiet=True)
    record["contestants"]["base"]["scores"] = None
    (tmp_path / "evaluation.json").write_text(json.dumps(record))
    text = write_run_report(trained, tmp_path).read_text()
    assert "return (mean ± std)" in text
    assert "Effect of the updates" not in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"episodes": 0}, "episodes: .*got 0"),
        ({"rows": 4}, "rows: .*1 to 3.*got 4"),
        ({"contestants": ("milp",)}, "contestants: .*'base', 'h0', 'mpc'.*'milp'"),
        ({"mpc": MPCConfig(deadline_ms=5.0)}, r"mpc\.deadline_ms: .*rows = 1.*got 3"),
    ],
)
def test_invalid_settings_are_rejected(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **changes)


def test_environment_must_fit_the_policy(trained):
    with pytest.raises(ValueError, match=r"HalfCheetah-v4: .*11 and 3.*got 17 and 6"):
        evaluate(trained, replace(CONFIG, env_id="HalfCheetah-v4"), quiet=True)
    run = load_run(trained)
    nameless = replace(run, info=replace(run.info, env_id=None))
    with pytest.raises(ValueError, match="got none; set env_id"):
        evaluate(nameless, CONFIG, quiet=True)


def test_a_report_without_an_evaluation_says_where_another_one_is(trained, tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"play one: `jacrec eval {trained} --out {tmp_path}`"):
        write_run_report(trained, tmp_path)
    run = shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("evaluation.json"))
    with pytest.raises(FileNotFoundError, match=rf"play one: `jacrec eval {run}`"):
        write_run_report(run)
    evaluate(run, replace(CONFIG, contestants=("base",)), out=run / "tuned", quiet=True)
    with pytest.raises(FileNotFoundError, match=rf"`jacrec report {run} --evaluation {run / 'tuned'}`"):
        write_run_report(run)


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="jacrec eval"):
        read_evaluation(tmp_path)
    with pytest.raises(FileNotFoundError, match="jacrec train"):
        evaluate(tmp_path, CONFIG, quiet=True)


def test_h0_ends_with_its_own_action():
    config = EvalConfig(mpc=MPCConfig(terminal="base"))
    assert (config.controller("mpc").terminal, config.controller("h0").terminal) == ("base", "policy")


def test_h0_has_no_gate():
    config = EvalConfig(experimental=ExperimentalConfig(min_signal=1.0, max_particles=32))
    h0 = config.controller("h0")
    assert isinstance(h0, MPCConfig)
    assert (h0.horizon, h0.particles) == (0, 1)
    assert (experimental_of(h0).min_signal, experimental_of(h0).max_particles) == (None, None)
