"""Augmented random search: running statistics, selection of snapshots, learning."""

import numpy as np
import pytest
import yaml

from jacrec.data.behaviour.ars import RunningMoments, SearchSettings, main, rollouts, search, select_snapshots
from jacrec.data.behaviour.linear_policy import LinearPolicy, Snapshot, load_snapshots_file
from jacrec.envs.batch import BatchedEnv
from jacrec.envs.physics import make_env

QUICK = SearchSettings(
    directions=4, top=2, step=0.02, noise=0.03, search_noise=0.1, action_noise=0.1, survival_reward=1.0, every=1, evaluations=3
)


def snapshot(iteration: int, mean_return: float) -> Snapshot:
    return Snapshot(iteration, LinearPolicy(np.zeros((1, 1)), np.zeros(1)), mean_return, 0.0)


def test_running_moments_equal_those_of_all_rows():
    rng = np.random.default_rng(0)
    parts = [rng.normal(5.0, 2.0, (n, 3)) for n in (1, 7, 40)]
    moments = RunningMoments(3)
    assert moments.std.tolist() == [1.0, 1.0, 1.0]
    for part in parts:
        moments.update(part)
    together = np.concatenate(parts)
    assert np.allclose(moments.mean, together.mean(0), rtol=1e-13)
    assert np.allclose(moments.std, together.std(0), rtol=1e-13)


def test_rollouts_are_gymnasium_episodes():
    rng = np.random.default_rng(0)
    gains, biases = rng.normal(0, 0.3, (3, 3, 11)), rng.normal(0, 0.1, (3, 3))
    returns, seen = rollouts(BatchedEnv("Hopper-v4", 3), gains, biases, np.array([5, 6, 7]), rng, survival_reward=1.0)
    env, total, states = make_env("Hopper-v4"), [], 0
    for i, seed in enumerate((5, 6, 7)):
        state, _ = env.reset(seed=seed)
        total.append(0.0)
        done = False
        while not done:
            states += 1
            state, reward, terminated, truncated, _ = env.step(np.clip(gains[i] @ state + biases[i], -1, 1))
            total[i] += reward - 1.0
            done = terminated or truncated
    assert np.allclose(returns, total, rtol=1e-6)
    assert len(seen) == states


def test_search_is_reproducible_for_any_limit():
    long = search("Hopper-v4", QUICK, seed=4, iterations=3, threads=2)
    short = search("Hopper-v4", QUICK, seed=4, iterations=2, threads=1)
    other = search("Hopper-v4", QUICK, seed=5, iterations=2)
    assert [s.iteration for s in long] == [0, 1, 2, 3]
    for actual, expected in zip(short, long, strict=False):
        assert np.array_equal(actual.policy.gain, expected.policy.gain)
        assert actual.mean_return == expected.mean_return
    assert not np.array_equal(other[2].policy.gain, long[2].policy.gain)
    with pytest.raises(ValueError, match=r"^search: .*got neither"):
        search("Hopper-v4", QUICK, seed=4)


def test_search_learns():
    settings = SearchSettings(6, 3, 0.1, 0.2, search_noise=0.0, action_noise=0.0, every=2, evaluations=3)
    found = search("InvertedPendulum-v5", settings, seed=0, iterations=6)
    assert found[0].mean_return < 50
    assert max(s.mean_return for s in found) > 500


def test_selected_snapshots_are_records_evenly_spaced_in_return():
    found = [snapshot(i, value) for i, value in enumerate([0, 5, 3, 10, 2, 31, 30, 48, 49, 100, 70])]
    assert [s.mean_return for s in select_snapshots(found, 3)] == [0, 49, 100]
    assert [s.mean_return for s in select_snapshots(found, 5)] == [0, 31, 49, 100]


def test_the_command_line_writes_the_snapshots(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("jacrec.data.behaviour.ars.SETTINGS", {"hopper": QUICK})
    path = tmp_path / "found.yaml"
    main(["hopper", "--iterations", "2", "--seed", "3", "--snapshots", "2", "--out", str(path)])
    printed = capsys.readouterr().out
    assert "iteration     2  return" in printed
    assert str(path) in printed
    entry = yaml.safe_load(path.read_text())["hopper"]
    assert entry["command"] == "python -m jacrec.data.behaviour.ars hopper --iterations 2 --seed 3"
    assert (entry["env_id"], entry["action_noise"]) == ("Hopper-v4", 0.1)
    found = {s.iteration: s for s in search("Hopper-v4", QUICK, seed=3, iterations=2)}
    for read in load_snapshots_file(path, "hopper"):
        assert np.array_equal(read.policy.gain, found[read.iteration].policy.gain)
        assert read.mean_return == pytest.approx(found[read.iteration].mean_return, abs=0.05)


def test_linear_policy_is_clipped_and_takes_any_leading_axes():
    policy = LinearPolicy(np.array([[1.0, 0.0], [0.0, 3.0]]), np.array([0.5, 0.0]))
    state = np.array([[[0.2, 0.1], [2.0, -1.0]]])
    assert policy(state) == pytest.approx(np.array([[[0.7, 0.3], [1.0, -1.0]]]))
