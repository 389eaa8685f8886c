"""Training of the multi-step model: segments, batches, steps and learning."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jacrec import DeterministicDynamics, MultiStepDynamics
from jacrec.data.transitions import DatasetInfo, Transitions
from jacrec.models.io import load_module, save_module
from jacrec.training.config import DynamicsConfig
from jacrec.training.stages.dynamics import DynamicsStage
from jacrec.training.stages.multistep import GaussianStepBatch, MultiStepStage, multi_step_errors, segment_lengths, segments
from jacrec.training.stages.objectives import make_dynamics, objective
from tests.conftest import property_cases


def episodes(steps, d=3, m=2, seed=0):
    """Episodes of the given lengths from a linear system."""
    rng = np.random.default_rng(seed)
    A, B = np.eye(d) + 0.1 * rng.standard_normal((d, d)), 0.3 * rng.standard_normal((d, m))
    state, action, following, episode = [], [], [], []
    for e, length in enumerate(steps):
        s = rng.standard_normal(d).astype(np.float32)
        for _ in range(length):
            a = rng.uniform(-1, 1, m).astype(np.float32)
            state.append(s)
            action.append(a)
            s = (A @ s + B @ a).astype(np.float32)
            following.append(s)
            episode.append(e)
    n = len(state)
    ends = np.flatnonzero(np.diff(np.append(episode, -1)))
    more = np.ones(n, bool)
    more[ends] = False
    return Transitions(
        np.array(state),
        np.array(action),
        np.zeros(n, np.float32),
        np.array(following),
        np.zeros((n, m), np.float32),
        ~more,
        more,
        np.array(episode),
        DatasetInfo("linear"),
    )


@property_cases(0.02)
@given(steps=st.lists(st.integers(1, 6), min_size=1, max_size=5), horizon=st.integers(1, 4), dropped=st.integers(0, 40))
def test_segments_stay_within_their_episode_and_cross_no_gap(steps, horizon, dropped):
    data = episodes(steps)
    kept = np.arange(len(data)) != dropped
    if not kept.any():
        return
    data = data.rows(kept)
    n_k = segment_lengths(data, horizon)
    for k in range(len(data)):
        count = 1
        while count < horizon and k + count < len(data) and data.episode[k + count] == data.episode[k]:
            if not np.array_equal(data.next_state[k + count - 1], data.state[k + count]):
                break
            count += 1
        assert n_k[k] == count
    if n_k.max() == horizon:
        actions, following, _ = segments(data, horizon)
        for k, count in enumerate(n_k):
            np.testing.assert_array_equal(actions[k, :count], data.action[k : k + count])
            np.testing.assert_array_equal(following[k, :count], data.next_state[k : k + count])
            assert not actions[k, count:].any()
            assert not following[k, count:].any()
    else:
        with pytest.raises(ValueError, match=rf"^dynamics\.horizon: .* {horizon} consecutive .*got at most {n_k.max()}"):
            segments(data, horizon)


CONFIG = DynamicsConfig(kind="multistep", horizon=3, hidden=(16,), updates=150, batch_size=64, lr=1e-2, activation="silu")


@pytest.mark.parametrize("stochastic", [False, True])
def test_step_equals_autograd_of_the_explicit_loss(stochastic):
    """Updates with autograd's gradient of the model's own prediction and plain Adam."""
    data = episodes([5, 7, 2])
    config = replace(CONFIG, stochastic=stochastic, max_grad_norm=None, ema=0.0, lr_schedule="constant")
    stage = MultiStepStage(data, data, config, 3, dtype=torch.float64)
    twin = MultiStepStage(data, data, config, 3, dtype=torch.float64).model.requires_grad_()
    adam = torch.optim.Adam(twin.parameters(), lr=config.lr)
    actions, following, n_k = (torch.as_tensor(x) for x in segments(data, 3))
    state = torch.as_tensor(data.state).double()
    for update in range(3):
        index, u = stage.stream.at(update)
        j = (u * n_k[index]).floor().long()
        noise = torch.ones(len(index), 3, *twin.noise_shape).double()
        predicted = twin.predict(state[index], actions[index].double(), 0 * noise)[torch.arange(len(index)), j]
        error = (predicted - following[index, j].double()) / twin.out_std[j]
        loss = error.square().mean()
        objective_value = loss
        if stochastic:
            # noise whose partial sums are √j: one standard deviation at every step
            ones = torch.arange(4).double().sqrt().diff()[:, None, None].expand(3, 1, 3)
            moved = twin.predict(state[index], actions[index].double(), ones.expand(len(index), 3, 1, 3))
            sigma = (moved[torch.arange(len(index)), j] - predicted) / twin.out_std[j]
            terms = 0.5 * (error / sigma).square() + sigma.log()
            loss, objective_value = terms.mean(), (sigma.detach().square() * terms).mean()
        adam.zero_grad()
        objective_value.backward()
        adam.step()
        assert stage.step(update)["loss"].item() == pytest.approx(loss.item(), rel=1e-9)
    for a, b in zip(stage.model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


def test_it_learns_every_step_of_a_linear_system(tmp_path):
    data, held_out = episodes([12] * 40), episodes([12] * 10, seed=0)
    stage = MultiStepStage(data, held_out, CONFIG, 0)
    before = stage.evaluate()
    for update in range(CONFIG.updates):
        stage.step(update)
    after = stage.evaluate()
    assert set(after) >= {"one_step_rmse", "rmse_step_1", "rmse_step_2", "rmse_step_3", "still_rmse"}
    assert after["rmse_step_1"] == pytest.approx(after["one_step_rmse"])
    for j in (1, 2, 3):
        assert after[f"rmse_step_{j}"] < 0.5 * before[f"rmse_step_{j}"]
    model = load_module(save_module(stage.modules()["dynamics"], tmp_path / "dynamics.safetensors"))
    assert isinstance(model, MultiStepDynamics)


def test_a_one_step_model_is_rolled_out():
    torch.manual_seed(0)
    f = DeterministicDynamics(3, 2, (8,)).double()
    state, actions, following = torch.randn(4, 3).double(), torch.randn(4, 2, 2).double(), torch.randn(4, 2, 3).double()
    errors = multi_step_errors(f, state, actions, following, torch.zeros(4, 1, 2, 0, 3).double())
    empty = torch.zeros(4, 0, 3).double()
    s_1 = f(state, actions[:, 0], empty)
    s_2 = f(s_1, actions[:, 1], empty)
    torch.testing.assert_close(errors, (torch.stack([s_1, s_2], 1) - following).square().mean(-1).detach())


def test_the_scale_decreases_if_the_mean_is_exact():
    batch = GaussianStepBatch(torch.zeros(2, 1), torch.zeros(2, 1))
    _, bar = batch.loss_and_gradient(torch.zeros(2, 2), lambda x: x)
    assert not bar[:, 0].any()
    assert bool((bar[:, 1] > 0).all())


def test_tilting_is_rejected():
    data = episodes([5])
    with pytest.raises(ValueError, match=r"^dynamics\.tilt: expected 0 .*'multistep', got 1\.0"):
        MultiStepStage(data, data, replace(CONFIG, tilt=1.0), 0)


def test_the_one_step_stage_rejects_it():
    f = make_dynamics(3, 2, CONFIG)
    with pytest.raises(ValueError, match=r"^dynamics\.kind: .*got 'multistep'.*MultiStepStage"):
        objective(f, torch.zeros(4, 8), CONFIG)
    with pytest.raises(ValueError, match=r"^dynamics\.kind: .*got 'multistep'.*MultiStepStage"):
        DynamicsStage(episodes([5]), episodes([5]), CONFIG, 0)
