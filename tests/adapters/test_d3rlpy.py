"""d3rlpy: actions as of `predict`, values as of `predict_value`, scalers included, on the fused kernels' path."""

import numpy as np
import pytest
import torch

from jacrec import Actor, DiffusionDynamics, RewardModel, TwinCritic, World
from jacrec.adapters import from_d3rlpy
from jacrec.adapters.parts import PlainCritic, PlainPolicy
from jacrec.engine.choice import preferred
from jacrec.engine.rollout import sampled_problem

d3rlpy = pytest.importorskip("d3rlpy", reason="needs d3rlpy, pip install 'jacrec[d3rlpy]'")
pre, VectorEncoderFactory = d3rlpy.preprocessing, d3rlpy.models.VectorEncoderFactory

D, M = 3, 2


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    n = 400
    end, terminal = np.arange(n) % 50 == 49, np.arange(n) % 100 == 99
    return d3rlpy.dataset.MDPDataset(
        (rng.standard_normal((n, D)) * [1.0, 5.0, 0.1] + [0.0, 3.0, 1.0]).astype(np.float32),
        rng.uniform(-1, 2, (n, M)).astype(np.float32),
        rng.standard_normal(n).astype(np.float32),
        terminal.astype(np.float32),
        (end & ~terminal).astype(np.float32),
    )


def trained(data, name="ReBRAC", steps=6, encoder=None, **options):
    factory = encoder or VectorEncoderFactory([16, 16])
    encoders = dict(actor_encoder_factory=factory, critic_encoder_factory=factory)
    algo = getattr(d3rlpy.algos, f"{name}Config")(batch_size=32, **encoders, **options).create(device=False)
    algo.build_with_dataset(data)
    if steps:
        quiet = d3rlpy.logging.NoopAdapterFactory()
        algo.fit(data, n_steps=steps, n_steps_per_epoch=steps, show_progress=False, logger_adapter=quiet)
    return algo


def expect_the_same(algo, parts, rows=40):
    rng = np.random.default_rng(1)
    raw = (rng.standard_normal((rows, D)) * [1.0, 5.0, 0.1] + [0.0, 3.0, 1.0]).astype(np.float32)
    theirs = algo.predict(raw)
    with torch.no_grad():
        ours = parts.action_box.from_unit(parts.policy(torch.from_numpy(raw)).numpy())
    assert np.abs(ours - theirs).max() <= 1e-6 * max(1.0, np.abs(theirs).max())
    assert np.ptp(theirs) > 1e-4
    state, unit = torch.from_numpy(raw), torch.rand(rows, M) * 2 - 1
    scaler = algo.config.observation_scaler
    with torch.no_grad():
        seen = state if scaler is None else scaler.transform(state)
        values = torch.stack([q(seen, unit).q_value.squeeze(-1) for q in algo.impl.q_function])
        got = parts.critic(state, unit)
    if algo.config.reward_scaler is not None:
        values = algo.config.reward_scaler.reverse_transform(values)
    torch.testing.assert_close(got, values.amin(0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["ReBRAC", "TD3PlusBC", "TD3", "DDPG", "SAC", "CQL", "IQL", "AWAC", "CalQL", "PRDC"])
def test_actions_and_values_are_the_librarys(data, name):
    values = {"value_encoder_factory": VectorEncoderFactory([16])} if name == "IQL" else {}
    algo = trained(data, name, **values)
    parts = from_d3rlpy(algo)
    assert type(parts.policy) is Actor
    assert type(parts.critic) is TwinCritic
    expect_the_same(algo, parts)
    assert (parts.discount, parts.state_dim, parts.action_dim) == (0.99, D, M)
    assert parts.action_box.is_unit


@pytest.mark.parametrize(
    "encoder",
    [
        VectorEncoderFactory([16, 16], use_layer_norm=True),
        VectorEncoderFactory([16, 16], activation="tanh"),
        VectorEncoderFactory([16, 16], dropout_rate=0.5),
    ],
    ids=["layer norm", "tanh", "dropout"],
)
def test_encoders_that_jacrecs_networks_express(data, encoder):
    algo = trained(data, encoder=encoder)
    parts = from_d3rlpy(algo)
    assert type(parts.policy) is Actor
    assert type(parts.critic) is TwinCritic
    expect_the_same(algo, parts)


@pytest.mark.parametrize(
    "encoder",
    [
        VectorEncoderFactory([16, 16], use_batch_norm=True),
        VectorEncoderFactory([16, 16], activation="tanh", use_layer_norm=True),
    ],
    ids=["batch norm", "layer norm behind tanh"],
)
def test_others_are_plain_modules(data, encoder):
    algo = trained(data, encoder=encoder)
    algo.predict(np.zeros((1, D), np.float32))  # leaves the networks in evaluation mode
    parts = from_d3rlpy(algo)
    assert type(parts.policy) is PlainPolicy
    assert type(parts.critic) is PlainCritic
    expect_the_same(algo, parts)


@pytest.mark.parametrize("observations", [pre.StandardObservationScaler, pre.MinMaxObservationScaler])
@pytest.mark.parametrize("rewards", [lambda: pre.MultiplyRewardScaler(0.1), pre.ReturnBasedRewardScaler])
def test_scalers_are_part_of_policy_and_critic(data, observations, rewards):
    algo = trained(data, observation_scaler=observations(), action_scaler=pre.MinMaxActionScaler(), reward_scaler=rewards())
    parts = from_d3rlpy(algo)
    assert type(parts.policy) is Actor
    expect_the_same(algo, parts)
    actions = np.concatenate([episode.actions for episode in data.episodes])
    assert np.allclose(parts.action_box.low, actions.min(0))
    assert np.allclose(parts.action_box.high, actions.max(0))


def test_it_is_on_the_fused_path(data):
    parts = from_d3rlpy(trained(data, observation_scaler=pre.StandardObservationScaler(), steps=1))
    world = World(
        DiffusionDynamics(D, M, hidden=(16, 16), steps=2), RewardModel(D, M, hidden=(16, 16)), parts.critic, parts.discount
    )
    assert preferred(sampled_problem(parts.policy, world, torch.zeros(D), 2, 2, None)) == "fused-adjoint"


def test_what_it_refuses(data):
    with pytest.raises(ValueError, match="expected a trained algorithm, got one without networks"):
        from_d3rlpy(d3rlpy.algos.ReBRACConfig().create())
    with pytest.raises(ValueError, match=r"expected one of d3rlpy's .*, got BC"):
        from_d3rlpy(d3rlpy.algos.BCConfig().create())
    quantiles = trained(data, q_func_factory=d3rlpy.models.QRQFunctionFactory(), steps=0)
    with pytest.raises(ValueError, match="expected mean Q functions, got ContinuousQRQFunction"):
        from_d3rlpy(quantiles)
    shifted = trained(data, reward_scaler=pre.StandardRewardScaler(), steps=0)
    with pytest.raises(ValueError, match=r"only multiplies.*got StandardRewardScaler"):
        from_d3rlpy(shifted)
