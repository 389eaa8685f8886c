"""Behaviour of soft actor-critic snapshots."""

import numpy as np
import pytest

from jacrec.data import load, make_dataset
from jacrec.data.behaviour.collect import collect
from jacrec.data.behaviour.make import KINDS, behaviour_of, behaviour_stages, default_id, medium_index
from jacrec.data.behaviour.sac import ENVIRONMENTS, WEIGHTS, SquashedGaussian, load_sac_snapshots, pack_snapshots
from jacrec.data.behaviour.train_sac import actor_arrays, measured, snapshot_steps
from jacrec.envs.physics import make_env


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))


def test_an_action_is_the_squashed_sample():
    rng = np.random.default_rng(0)
    shapes = dict(W1=(3, 5), b1=(5,), W2=(5, 5), b2=(5,), W_mean=(5, 2), b_mean=(2,), W_log_std=(5, 2), b_log_std=(2,))
    w = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    w["b_log_std"] = np.array([10.0, -30.0])  # beyond both limits
    s, n = rng.standard_normal((4, 3)), rng.standard_normal((4, 2))
    got = SquashedGaussian(w).sample(s, n)
    for row in range(4):
        h = np.maximum(s[row] @ w["W1"] + w["b1"], 0)
        h = np.maximum(h @ w["W2"] + w["b2"], 0)
        std = np.exp(np.minimum(np.maximum(h @ w["W_log_std"] + w["b_log_std"], -20), 2))
        np.testing.assert_allclose(got[row], np.tanh(h @ w["W_mean"] + w["b_mean"] + std * n[row]), rtol=1e-6)
    assert got.dtype == np.float32


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_the_shipped_snapshots_have_learned_something(name):
    snapshots = load_sac_snapshots(name)
    returns = [x.mean_return for x in snapshots]
    steps = [x.env_steps for x in snapshots]
    assert steps == sorted(set(steps))
    assert steps[0] == 0
    assert max(returns) > 5 * abs(returns[0])
    assert 0 < medium_index(snapshots) < len(snapshots) - 1


def test_a_snapshot_has_its_recorded_return():
    best = max(load_sac_snapshots("hopper"), key=lambda x: x.mean_return)
    stages = behaviour_stages("hopper", "expert", "sac")
    episodes = collect("Hopper-v4", stages, steps=10_000, seed=5)
    returns = [episode.rewards.sum() for episode in episodes[:-1]]
    error = best.std_return / np.sqrt(10) + np.std(returns) / np.sqrt(len(returns))
    assert abs(np.mean(returns) - best.mean_return) < 4 * error + 0.05 * best.mean_return


def test_data_do_not_depend_on_rows_and_threads():
    stages = behaviour_stages("walker2d", "medium-expert", "sac")
    found = [collect("Walker2d-v4", stages, steps=2000, seed=1, threads=t, rows=r) for r, t in ((1, 1), (7, 2))]
    for actual, expected in zip(*found, strict=True):
        assert np.array_equal(actual.observations, expected.observations)
        assert np.array_equal(actual.actions, expected.actions)


def test_kinds_are_built_from_the_snapshots():
    snapshots = load_sac_snapshots("hopper")
    medium = medium_index(snapshots)
    stages = {kind: behaviour_stages("hopper", kind, None if kind == "random" else "sac") for kind in KINDS}
    policies = {kind: [stage.policy for stage in own] for kind, own in stages.items()}
    assert policies["medium"] == [snapshots[medium].policy]
    assert policies["medium-replay"] == [x.policy for x in snapshots[: medium + 1]]
    assert policies["full-replay"] == [x.policy for x in snapshots]
    # each snapshot stands for the steps of training that lie nearer to it than to another
    steps = np.arange(snapshots[-1].env_steps)
    nearest = np.abs(steps[:, None] - [x.env_steps for x in snapshots]).argmin(1)
    share = np.bincount(nearest) / len(steps)
    weights = np.array([stage.weight for stage in stages["full-replay"]])
    np.testing.assert_allclose(weights / weights.sum(), share, atol=1e-4)


def test_shares_follow_the_weights():
    stages = behaviour_stages("hopper", "full-replay", "sac")
    episodes = collect("Hopper-v4", stages, steps=3000, seed=0)
    assert sum(map(len, episodes)) == 3000


def test_behaviours_by_environment():
    assert behaviour_of("hopper", "medium", None) == "linear"
    assert behaviour_of("walker2d", "medium", None) == "sac"
    assert behaviour_of("walker2d", "random", None) is None
    with pytest.raises(ValueError, match=r"^behaviour of walker2d: .*'linear'"):
        behaviour_of("walker2d", "medium", "linear")
    with pytest.raises(ValueError, match="random"):
        behaviour_of("hopper", "random", "sac")
    assert default_id("hopper", "medium", "sac") == "jacrec/hopper-medium-sac-v0"
    assert default_id("hopper", "medium") == "jacrec/hopper-medium-v0"


def test_a_data_set_of_sac_behaviour_reads_back():
    made = make_dataset("walker2d", "medium-replay", steps=300, seed=2)
    assert made.dataset_id == "jacrec/walker2d-medium-replay-sac-v0"
    data = load(made.dataset_id)
    assert (len(data), data.info.env_id) == (300, "Walker2d-v4")
    env = make_env("Walker2d-v4")
    first = np.random.default_rng([2, 0, 0])
    observation, _ = env.reset(seed=int(first.integers(2**31)))
    assert np.array_equal(data.state[0], observation.astype(np.float32))
    assert np.abs(data.action).max() <= 1


def test_a_trained_actor_is_stored_as_it_acts():
    rng = np.random.default_rng(0)
    shapes = {"Dense_0": (11, 256), "Dense_1": (256, 256), "Dense_2": (256, 3), "Dense_3": (256, 3)}
    layers = {
        name: {"kernel": rng.normal(0, 0.05, shape), "bias": rng.normal(0, 0.05, shape[1])} for name, shape in shapes.items()
    }
    arrays = actor_arrays({"params": layers})
    assert set(arrays) == set(WEIGHTS)
    h = rng.standard_normal((4, 11))
    state = h
    for name in ("Dense_0", "Dense_1"):
        h = np.maximum(h @ layers[name]["kernel"] + layers[name]["bias"], 0)
    policy = SquashedGaussian({name: x.astype(np.float64) for name, x in arrays.items()})
    expected = np.tanh(h @ layers["Dense_2"]["kernel"] + layers["Dense_2"]["bias"])
    np.testing.assert_allclose(policy.sample(state, np.zeros((4, 3))), expected, atol=2e-3)  # float16


def test_returns_are_measured_with_the_policys_noise():
    best = max(load_sac_snapshots("hopper"), key=lambda x: x.mean_return)
    mean, _ = measured(make_env("Hopper-v4"), best.policy.weights, seed=1)
    assert mean == pytest.approx(best.mean_return, abs=4 * best.std_return / np.sqrt(10) + 0.05 * best.mean_return)


def test_snapshots_are_dense_at_first():
    assert snapshot_steps(120_000) == [0, 10_000, 25_000, 50_000, 75_000, 100_000, 120_000]
    assert snapshot_steps(20_000) == [0, 10_000, 20_000]


def test_packing_sorts_by_steps_and_keeps_the_returns(tmp_path):
    for steps in (20, 0):
        arrays = {name: np.full((2, 2), steps, np.float16) for name in WEIGHTS}
        np.savez(tmp_path / f"{steps}.npz", **arrays, env_steps=steps, stochastic_mean_std=np.array([steps, 1.0]))
    pack_snapshots([tmp_path / "20.npz", tmp_path / "0.npz"], tmp_path / "all.npz")
    packed = np.load(tmp_path / "all.npz")
    assert packed["env_steps"].tolist() == [0, 20]
    assert packed["mean_return"].tolist() == [0.0, 20.0]
    assert packed["W1"].dtype == np.float16
