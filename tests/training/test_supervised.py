"""The supervised stages: exact gradients, decreasing errors, correct standard errors."""

import math

import numpy as np
import pytest
import torch

from jacrec.models.dynamics import DiffusionDynamics
from jacrec.models.networks import MLP
from jacrec.training.config import DynamicsConfig, RewardConfig
from jacrec.training.flat import Adam, FlatParameters
from jacrec.training.passes import MLPPass
from jacrec.training.stages.dynamics import DynamicsStage, one_step_errors, scales
from jacrec.training.stages.objectives import make_dynamics
from jacrec.training.stages.reward import RewardStage
from jacrec.training.stages.supervised import Regression, rmse
from jacrec.training.streams import BLOCK, BatchStream, derive_seed
from tests.training_data import linear_system


@pytest.mark.parametrize("activation", ["relu", "silu", "mish", "tanh", "gelu"])
@pytest.mark.parametrize(
    "options",
    [{}, {"layer_norm": True}, {"residual": True, "layer_norm": True}, {"residual": True}, {"tanh_output": True, "stack": 3}],
    ids=lambda options: "+".join(options) or "plain",
)
def test_passes_equal_autograd(activation, options):
    mlp = MLP(5, 3, (8, 8, 6), activation=activation, **options).double()
    mlp.initialise()
    for norm in mlp.norms:
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    heads = mlp.stack or 1
    x = torch.randn(heads, 7, 5, dtype=torch.float64, requires_grad=True)
    y_bar = torch.randn(heads, 7, 3, dtype=torch.float64)
    y = mlp(x if mlp.stack else x[0]).reshape(heads, 7, 3)
    names, parameters = zip(*mlp.named_parameters(), strict=True)
    x_bar, *bars = torch.autograd.grad(y, [x, *parameters], y_bar)
    flat = FlatParameters(mlp)
    with torch.no_grad():
        for head in range(heads):
            net = MLPPass(mlp, flat.gradient_of, head if mlp.stack else None)
            actual, tape = net.record(x[head])
            torch.testing.assert_close(actual, y[head], rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(net.value(x[head]), y[head], rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(net.pull(tape, y_bar[head], inputs=True), x_bar[head], rtol=1e-11, atol=1e-12)
            some = torch.tensor([1, 4, 5])
            part = net.pull(tape.rows(some), y_bar[head][some], parameters=False, inputs=True)
            torch.testing.assert_close(part, x_bar[head][some], rtol=1e-11, atol=1e-12)
    for name, bar in zip(names, bars, strict=True):
        torch.testing.assert_close(flat.gradient_of[name], bar, rtol=1e-11, atol=1e-12)


def test_a_stack_requires_a_head():
    with pytest.raises(ValueError, match=r"^head: expected an index below 2, got None"):
        MLPPass(MLP(2, 1, (4,), stack=2))


def test_flat_parameters_keep_the_function_and_can_be_averaged():
    mlp, another = MLP(3, 2, (5, 7), layer_norm=True), MLP(3, 2, (5, 7), layer_norm=True)
    mlp.initialise()
    another.initialise()
    x = torch.randn(4, 3)
    before = mlp(x).detach()
    flat, other = FlatParameters(mlp), FlatParameters(another)
    assert torch.equal(mlp(x), before)
    other.move_towards(flat, 1.0)
    assert torch.equal(other.module(x), before)
    assert all(p.data_ptr() % 64 == flat.value.data_ptr() % 64 for p in mlp.parameters())


def test_clipped_adam_equals_torch():
    torch.manual_seed(0)
    actual, plain = MLP(3, 2, (5,)).double(), MLP(3, 2, (5,)).double()
    actual.initialise()
    plain.load_state_dict(actual.state_dict())
    flat = FlatParameters(actual)
    adam, optimiser = Adam(flat, 1e-2, max_grad_norm=0.5), torch.optim.Adam(plain.parameters(), lr=1e-2, fused=False)
    for scale in (0.01, 10.0, 1.0):
        for name, p in plain.named_parameters():
            p.grad = scale * torch.randn_like(p)
            flat.gradient_of[name].copy_(p.grad)
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        optimiser.step()
        adam.step()
    for actual_p, p in zip(actual.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(actual_p, p, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("prediction", ["epsilon", "x0"])
@pytest.mark.parametrize("target", ["difference", "state"])
def test_diffusion_step_equals_autograd_of_the_models_loss(prediction, target):
    """Loss and gradient of the stage's packed, hand-written step against `DiffusionDynamics.loss` with autograd."""
    data = linear_system()
    config = DynamicsConfig(hidden=(16, 16), steps=5, batch_size=32, prediction=prediction, target=target, max_grad_norm=None)
    stage = DynamicsStage(data, data, config, seed=1)
    model = make_dynamics(3, 2, config)
    model.load_state_dict(stage.model.state_dict())
    assert isinstance(model, DiffusionDynamics)
    index, k, noise = stage.stream.at(0)
    loss = stage.step(0)["loss"]
    rows = data.rows(index.numpy())
    s, a, s2 = (torch.from_numpy(x) for x in (rows.state, rows.action, rows.next_state))
    expected = model.loss(s, a, s2, k + 1, noise).mean()
    expected.backward()
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-5, atol=0)
    for name, p in model.named_parameters():
        assert p.grad is not None
        torch.testing.assert_close(stage.regression.flat.gradient_of[name], p.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["diffusion", "deterministic", "flow", "meanflow", "ensemble"])
def test_the_world_model_learns_a_linear_system(kind):
    data = linear_system(episodes=30)
    kept, held_out = data.split(0.2, 0)
    config = DynamicsConfig(kind=kind, hidden=(64, 64), steps=5, updates=800, batch_size=128, lr=2e-3, ema=0.98)
    stage = DynamicsStage(kept, held_out, config, seed=0)
    before = stage.evaluate()
    for t in range(config.updates):
        stage.step(t)
    after = stage.evaluate()
    assert after["one_step_rmse"] < 0.2 * after["still_rmse"]
    assert after["one_step_rmse"] < 0.3 * before["one_step_rmse"]
    assert after["one_step_rmse_mean"] <= after["one_step_rmse"]
    assert 0 < after["one_step_rmse_se"] < 0.2 * after["one_step_rmse"]


def test_diffusion_learns_the_noise_level():
    """On s' = A s + B a + 0.3 n the samples must vary by 0.3 rather than collapse to the mean: their error is √2 · 0.3."""
    data = linear_system(episodes=40, noise=0.3)
    kept, held_out = data.split(0.25, 0)
    config = DynamicsConfig(hidden=(64, 64), steps=10, updates=1500, batch_size=256, lr=2e-3, ema=0.99, eval_samples=16)
    stage = DynamicsStage(kept, held_out, config, seed=0)
    for t in range(config.updates):
        stage.step(t)
    errors = stage.evaluate()
    assert errors["one_step_rmse_mean"] == pytest.approx(0.3 * math.sqrt(1 + 1 / 16), rel=0.15)
    assert errors["one_step_rmse"] == pytest.approx(0.3 * math.sqrt(2), rel=0.15)


def test_the_reward_model_learns_scaled_rewards():
    data = linear_system(episodes=30)
    kept, held_out = data.split(0.2, 0)
    config = RewardConfig(hidden=(64, 64), updates=600, batch_size=128, lr=2e-3)
    stage = RewardStage(kept, held_out, config, seed=0, reward_scale=100.0)
    for t in range(config.updates):
        stage.step(t)
    errors = stage.evaluate()
    assert errors["reward_std"] == pytest.approx(100 * held_out.reward.std(), rel=1e-5)
    assert errors["reward_rmse"] < 0.15 * errors["reward_std"]
    prediction = stage.modules()["reward"](torch.from_numpy(held_out.state), torch.from_numpy(held_out.action))
    assert prediction.numpy() == pytest.approx(100 * held_out.reward, abs=6 * errors["reward_rmse"])


@pytest.mark.parametrize("kind", ["diffusion", "deterministic", "flow", "meanflow", "ensemble", "reward"])
def test_capturable_stages_perform_the_same_steps(kind):
    """What a CUDA graph would contain, run directly, is bit-identical to torch's ordinary step."""
    data = linear_system()
    stages = []
    for capturable in (True, False):
        form = {"fused": False, "capturable": capturable}
        if kind == "reward":
            stages.append(RewardStage(data, data, RewardConfig(hidden=(16,), updates=9), 0, **form))
        else:
            config = DynamicsConfig(kind=kind, hidden=(16,), updates=9, ema=0.9)
            stages.append(DynamicsStage(data, data, config, 0, **form))
    actual, plain = stages
    for t in range(9):
        assert torch.equal(actual.step(t)["loss"], plain.step(t)["loss"])
    state = plain.state()
    assert all(torch.allclose(value, state[name], rtol=1e-6, atol=1e-8) for name, value in actual.state().items())


def test_one_step_errors_by_hand():
    class Shift:
        noise_shape = (1,)

        def __call__(self, state, action, noise):
            return state + noise

    state, next_state = torch.zeros(2, 2), torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    noise = torch.tensor([[[0.0], [2.0]], [[1.0], [3.0]]])  # two samples each
    own, of_mean = one_step_errors(Shift(), state, torch.zeros(2, 1), next_state, noise)
    assert own.tolist() == [1.0, 5.0]
    assert of_mean.tolist() == [0.0, 4.0]


def test_rmse_and_its_standard_error():
    e = torch.tensor([1.0, 4.0, 4.0, 7.0])
    value, error = rmse(e)
    assert value == 2.0
    assert error == pytest.approx(np.std([1, 4, 4, 7], ddof=1) / (2 * 2 * 2))
    assert rmse(torch.zeros(3)) == (0.0, 0.0)
    # compared with the standard deviation over repetitions
    g = torch.Generator().manual_seed(0)
    draws = torch.randn(2000, 100, generator=g).square()
    values, errors = zip(*(rmse(row) for row in draws), strict=True)
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.1)


def test_a_constant_coordinate_has_finite_scales():
    data = linear_system()
    data.state[:, 1] = data.next_state[:, 1] = 3.0
    state_mean, state_std, out_mean, out_std = scales(data)
    assert state_mean[1] == 3.0
    assert state_std[1] == 1.0
    assert out_mean[1] == 0.0
    assert out_std[1] == pytest.approx(1e-6)
    assert scales(data, "state")[2][1] == 3.0


def test_averaged_weights_equal_an_explicit_loop():
    torch.manual_seed(0)
    net, averaged = MLP(2, 1, (4,)), MLP(2, 1, (4,))
    net.initialise()
    averaged.load_state_dict(net.state_dict())
    config = RewardConfig(lr=0.1, lr_schedule="cosine", max_grad_norm=None, ema=0.5, updates=20)
    regression = Regression(net, averaged, net, "", config)
    expected = regression.flat_averaged.value.clone()
    for t in range(20):
        regression.update(torch.randn(8, 2), torch.randn(8, 1), t)
        keep = min(0.5, (1 + t) / (10 + t))
        expected = keep * expected + (1 - keep) * regression.flat.value
    torch.testing.assert_close(regression.flat_averaged.value, expected)
    assert Regression(net, averaged, net, "", RewardConfig(ema=0.0)).averaged is net


@pytest.mark.parametrize(("schedule", "last"), [("constant", 0.1), ("cosine", 0.1 * 0.5 * (1 + math.cos(0.75 * math.pi)))])
def test_learning_rate_schedule(schedule, last):
    net = MLP(2, 1, (4,))
    net.initialise()
    regression = Regression(net, net, net, "", RewardConfig(lr=0.1, lr_schedule=schedule, updates=4))
    rates = []
    for t in range(4):
        regression.update(torch.randn(8, 2), torch.randn(8, 1), t)
        rates.append(regression.adam.optimiser.param_groups[0]["lr"])
    assert rates[0] == 0.1
    assert rates[-1] == pytest.approx(last)


def test_streams_depend_only_on_seed_stage_and_update():
    def draw(generator, block):
        return (torch.randint(1000, (block, 5), generator=generator),)

    stream, other = BatchStream(0, "rebrac", draw), BatchStream(0, "rebrac", draw)
    in_order = [stream.at(t)[0].clone() for t in range(2 * BLOCK + 3)]
    for t in (BLOCK + 1, 3, 2 * BLOCK, 0):
        assert torch.equal(other.at(t)[0], in_order[t])
    assert not torch.equal(in_order[0], in_order[BLOCK])
    assert not torch.equal(BatchStream(0, "reward", draw).at(0)[0], in_order[0])
    assert not torch.equal(BatchStream(1, "rebrac", draw).at(0)[0], in_order[0])
    assert derive_seed(0, "a", 1) == derive_seed(0, "a", 1) != derive_seed(0, "a", 2)
