"""Settings of the experimental update rules: what they build, what they refuse, and where earlier settings went."""

from dataclasses import asdict

import pytest

from jacrec import MPC, Actor, DiffusionDynamics, MPCConfig, MultiStepDynamics, RewardModel, TwinCritic, World
from jacrec.experimental import Decoupled, ExperimentalConfig, ExperimentalMPCConfig, FisherStep, Gated, NormalisedStep
from jacrec.experimental.config import current_settings, experimental_of, read_mpc_config, with_experimental
from jacrec.experimental.steps import PlainStep

d, m = 4, 2


@pytest.mark.parametrize(
    ("settings", "update"),
    [
        ({}, None),
        ({"min_signal": 1.0}, Gated(1.0)),
        ({"min_signal": 2.0, "max_particles": 64, "step": "normalised"}, Gated(2.0, 64, NormalisedStep())),
        ({"step": "normalised"}, NormalisedStep()),
        ({"step": "fisher", "damping": 0.3}, FisherStep(0.3)),
        ({"objective": "decoupled-critic"}, Decoupled("critic")),
        ({"objective": "decoupled-one-step", "objective_weights": "uniform"}, Decoupled("one-step", "uniform")),
        (
            {"objective": "decoupled-critic", "step": "normalised", "min_signal": 1.0},
            Gated(1.0, step=NormalisedStep(Decoupled("critic"))),
        ),
    ],
)
def test_settings_build_the_update_rule(settings, update):
    experimental = ExperimentalConfig(**settings)
    assert experimental.make_update() == update
    config = with_experimental(MPCConfig(horizon=2), experimental)
    assert config.make_update() == update
    assert experimental_of(config) == experimental
    policy = Actor(d, m, (8,))
    world = World(DiffusionDynamics(d, m, (8,), steps=2), RewardModel(d, m, (8,)), TwinCritic(d, m, (8,)), 0.9)
    assert MPC(policy, world, config).update == update


def test_a_controller_without_experimental_settings_is_a_plain_one():
    config = MPCConfig(horizon=2)
    assert with_experimental(config, ExperimentalConfig()) is config
    assert type(ExperimentalMPCConfig(horizon=2).simplified()) is MPCConfig
    assert ExperimentalMPCConfig(horizon=2).simplified() == config


def test_settings_survive_a_record():
    config = with_experimental(MPCConfig(horizon=2), ExperimentalConfig(min_signal=0.5, step="fisher"))
    assert read_mpc_config(asdict(config)) == config
    assert read_mpc_config(asdict(MPCConfig(seed=3))) == MPCConfig(seed=3)


EARLIER = dict(
    think_every=1, max_growth=None, growth_every=10, growth_particles=4, min_signal=None, max_particles=None, step="plain",
    damping=0.1, objective="return", objective_weights="discounted",
)  # fmt: skip


def test_earlier_settings_without_effect_are_dropped():
    assert current_settings({"horizon": 3} | EARLIER, "mpc") == {"horizon": 3}
    assert read_mpc_config(asdict(MPCConfig(horizon=3)) | EARLIER) == MPCConfig(horizon=3)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"min_signal": 1.0}, r"mpc\.min_signal: .* experimental\.min_signal"),
        ({"objective": "decoupled-critic"}, r"mpc\.objective: .* experimental\.objective"),
        ({"think_every": 2}, r"mpc\.think_every: .* removed"),
        ({"max_growth": 3.0}, r"mpc\.max_growth: .* removed"),
    ],
)
def test_earlier_settings_say_where_they_went(setting, message):
    with pytest.raises(ValueError, match=message):
        read_mpc_config({"horizon": 3} | EARLIER | setting)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"step": "newton"}, "step: expected one of 'plain', 'normalised', 'fisher', got 'newton'"),
        ({"step": "gauss-newton"}, "step: expected one of 'plain', 'normalised', 'fisher', got 'gauss-newton'"),
        ({"damping": 0.0}, "damping: expected a positive number"),
        ({"min_signal": -1.0}, "min_signal: expected a positive number"),
        ({"max_particles": 8}, "max_particles: expected None without min_signal, got 8"),
        ({"objective": "value"}, "objective: expected one of 'return', 'decoupled-critic'"),
        ({"objective_weights": "none"}, "objective_weights: expected one of 'discounted', 'uniform'"),
        ({"step": "fisher", "objective": "decoupled-critic"}, "objective: expected \"return\" .* got 'decoupled-critic'"),
    ],
)
def test_bad_settings_say_what_was_expected(settings, message):
    with pytest.raises(ValueError, match=message):
        ExperimentalConfig(**settings)


@pytest.mark.parametrize(
    ("mpc", "settings", "message"),
    [
        ({"particles": 1}, {"min_signal": 1.0}, "particles: expected at least 2 with min_signal"),
        ({}, {"min_signal": 1.0, "max_particles": 8}, "max_particles: expected an integer >= 16, got 8"),
        ({"max_grad_norm": 1.0}, {"step": "normalised"}, "max_grad_norm: expected None with NormalisedStep"),
        ({"max_grad_norm": 1.0}, {"step": "fisher"}, "max_grad_norm: expected None with FisherStep"),
        ({"method": "forward"}, {"step": "fisher"}, 'method: expected "auto" or "adjoint" .* got \'forward\''),
        ({"method": "adjoint"}, {"objective": "decoupled-critic"}, 'method: expected "auto" with objective="decoupled-critic"'),
    ],
)
def test_settings_that_do_not_go_together(mpc, settings, message):
    with pytest.raises(ValueError, match=message):
        with_experimental(MPCConfig(**mpc), ExperimentalConfig(**settings))
    world = World(DiffusionDynamics(d, m, (8,), steps=2), RewardModel(d, m, (8,)), TwinCritic(d, m, (8,)), 0.9)
    with pytest.raises(ValueError, match=message):
        MPC(Actor(d, m, (8,)), world, MPCConfig(**mpc), update=ExperimentalConfig(**settings).make_update())


@pytest.mark.parametrize("update", [FisherStep(), Decoupled(), Gated(1.0, step=FisherStep())])
def test_a_model_of_all_steps_at_once_has_no_single_transition(update):
    world = World(MultiStepDynamics(d, m, (8,), horizon=3), RewardModel(d, m, (8,)), TwinCritic(d, m, (8,)), 0.9)
    with pytest.raises(ValueError, match="got MultiStepDynamics"):
        MPC(Actor(d, m, (8,)), world, MPCConfig(horizon=2), update=update)


@pytest.mark.parametrize("update", [Gated, "gate", PlainStep])
def test_an_update_rule_has_to_be_one(update):
    world = World(DiffusionDynamics(d, m, (8,), steps=2), RewardModel(d, m, (8,)), TwinCritic(d, m, (8,)), 0.9)
    with pytest.raises(ValueError, match="update: expected None or an update rule"):
        MPC(Actor(d, m, (8,)), world, update=update)
