"""The anchored objective, and settings in units of the critic's values."""

import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from jacrec import (
    MPC,
    Anchor,
    Auto,
    Autograd,
    BatchedPolicy,
    MPCConfig,
    World,
    mpc_update,
    policy_gradient,
    rollout,
    value_scale,
)
from jacrec.experimental import Decoupled
from jacrec.planners import Planner
from tests.cpu_cases import problem_of
from tests.oracles import relative_error
from tests.strategies import shake

D = 11
OBSERVATION = np.linspace(-1, 1, D)


@pytest.mark.parametrize(("beta", "terminal"), [(0.5, "policy"), (0.5, "base"), (0.0, "base")])
def test_a_controller_is_anchored_to_its_pretrained_policy(beta, terminal):
    policy, world, *_ = problem_of()
    config = MPCConfig(horizon=2, particles=4, updates=3, lr=1e-2, anchor=beta, terminal=terminal)
    controller = MPC(policy, world, config)
    noise = torch.randn(4, 2, *world.dynamics.noise_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = copy.deepcopy(policy)
    anchored = replace(world, anchor=Anchor(copy.deepcopy(policy), beta, terminal == "base"))
    state = torch.as_tensor(OBSERVATION)
    step = mpc_update(expected, anchored, state, noise=noise, updates=3, lr=1e-2, method=Autograd())
    np.testing.assert_allclose(controller.act(OBSERVATION), step.action.numpy(), rtol=1e-10)
    for own, other in zip(controller.policy.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("batch", [None, 2])
def test_the_first_gradient_does_not_know_the_anchor(batch):
    """At ψ = ψ₀ the penalty and its gradient are zero; from the second update on they are not."""
    policy, world, *_ = problem_of()
    observation = OBSERVATION if batch is None else np.stack([OBSERVATION, -OBSERVATION])
    common = dict(horizon=2, particles=3, lr=1e-2)
    for updates, same in ((1, True), (2, False)):
        actions = [
            MPC(policy, world, MPCConfig(updates=updates, anchor=beta, **common), batch=batch).act(observation)
            for beta in (0.0, 100.0)
        ]
        assert np.allclose(*actions, rtol=1e-12) == same


def test_at_the_end_the_bases_action_is_a_value_of_the_state():
    """Q(s, π₀(s)) in place of the critic, and no penalty on the action that is not in it."""
    policy, world, state, noise = problem_of()
    base = copy.deepcopy(policy)
    shake(base)
    valued = replace(world, critic=lambda s, a: world.critic(s, base(s)), anchor=Anchor(base, 0.5))
    with torch.no_grad():
        s = rollout(lambda x: policy(x), world, state, noise).states[:, :, -1]
        gap = (policy(s) - base(s)).square().sum(-1).mean(-1)
    got, other = (
        policy_gradient(policy, w, state, noise) for w in (replace(world, anchor=Anchor(base, 0.5, terminal=True)), valued)
    )
    torch.testing.assert_close(got.value, other.value + world.discount**2 * 0.5 * gap, rtol=1e-12, atol=1e-12)
    plain = replace(valued, anchor=None)
    got, other = (policy_gradient(policy, w, state, noise) for w in (replace(world, anchor=Anchor(base, terminal=True)), plain))
    torch.testing.assert_close(got.value, other.value, rtol=1e-12, atol=1e-12)
    assert relative_error(got.gradient, other.gradient) < 1e-12


def test_without_an_imagined_step_the_bases_action_is_refused():
    policy, world, state, noise = problem_of()
    terminal = replace(world, anchor=Anchor(copy.deepcopy(policy), terminal=True))
    with pytest.raises(ValueError, match=r'^terminal: expected "policy" with horizon=0, .* got "base"; imagine a step'):
        MPCConfig(horizon=0, terminal="base")
    mpc_update(policy, terminal, state, noise=noise)  # now the kernels keep a plan
    for call in (
        lambda: policy_gradient(policy, terminal, state, noise[:, :, :0]),
        lambda: mpc_update(policy, terminal, state, horizon=0),
        lambda: MPC(policy, terminal, MPCConfig(horizon=0)),
    ):
        with pytest.raises(ValueError, match=r"^horizon: expected H >= 1 with Anchor\.terminal, .* got 0; imagine a step"):
            call()


def test_a_strong_anchor_holds_the_policy():
    policy, world, *_ = problem_of()
    base = policy(torch.as_tensor(OBSERVATION)[None])[0].detach().numpy()
    change = [
        np.abs(MPC(policy, world, MPCConfig(horizon=2, updates=50, lr=1e-2, anchor=beta)).act(OBSERVATION) - base).max()
        for beta in (0.0, 3.0)
    ]
    assert change[1] < 0.3 * change[0]


def test_value_units_are_those_of_the_scaled_critic():
    """The same decision whatever the scale of rewards and values."""
    policy, world, *_ = problem_of()
    config = MPCConfig(horizon=2, particles=3, updates=2, lr=1e-3, anchor=0.03, units="value", max_grad_norm=0.5)
    expected = MPC(policy, replace(world, value_scale=2.0), config).act(OBSERVATION)
    for factor in (0.01, 300.0):
        scaled = World(
            world.dynamics,
            lambda s, a, f=factor: f * world.reward(s, a),
            lambda s, a, f=factor: f * world.critic(s, a),
            world.discount,
            value_scale=2.0 * factor,
        )
        np.testing.assert_allclose(MPC(policy, scaled, config).act(OBSERVATION), expected, rtol=1e-9)


def test_the_value_scale_is_the_mean_absolute_value():
    policy, world, *_ = problem_of()
    states = torch.randn(100, D, dtype=torch.float64)
    expected = world.critic(states, policy(states)).abs().mean().item()
    assert value_scale(policy, world.critic, states, chunk=7) == pytest.approx(expected, rel=1e-12)
    assert value_scale(policy, world.critic, states.numpy()) == pytest.approx(expected, rel=1e-12)
    for bad in (states[:0], states[0], states * torch.nan):
        with pytest.raises(ValueError, match="expected"):
            value_scale(policy, world.critic, bad)


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("change", ["weight", "none", "terminal", "anchor", "parameter", "layer"])
def test_kept_plans_see_every_change_of_the_anchor(change, terminal):
    policy, world, state, noise = problem_of()
    base = copy.deepcopy(policy)
    shake(base)
    anchored = replace(world, anchor=Anchor(base, 0.5, terminal))
    policy_gradient(policy, anchored, state, noise)
    if change == "weight":
        anchored = replace(anchored, anchor=Anchor(base, 2.0, terminal))
    elif change == "none":
        anchored = replace(anchored, anchor=Anchor(base, 0.0, terminal) if terminal else None)
    elif change == "terminal":
        anchored = replace(anchored, anchor=Anchor(base, 0.5, not terminal))
    elif change == "anchor":
        anchored = replace(anchored, anchor=Anchor(copy.deepcopy(base), 0.5, terminal))
        shake(anchored.anchor.policy)
    elif change == "parameter":
        with torch.no_grad():
            base.mlp.layers[1].weight.mul_(1.5)
    else:
        base.mlp.layers[0] = copy.deepcopy(base.mlp.layers[0])
        shake(base.mlp.layers[0])
    got, expected = (policy_gradient(policy, anchored, state, noise, **x) for x in ({}, {"method": Autograd()}))
    torch.testing.assert_close(got.value, expected.value, rtol=1e-12, atol=1e-12)
    for name, g in got.gradient.items():
        torch.testing.assert_close(g, expected.gradient[name], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(("batch", "settings"), [(None, {"terminal": "base"}), (2, {"anchor": 5.0, "terminal": "base"})])
def test_the_anchor_follows_the_pretrained_policy_of_a_loaded_state(batch, settings):
    policy, world, *_ = problem_of()
    other = copy.deepcopy(policy)
    shake(other)
    config = MPCConfig(horizon=2, particles=3, updates=4, lr=1e-2, **settings)
    observation = OBSERVATION if batch is None else np.stack([OBSERVATION, -OBSERVATION])
    first, second = (MPC(x, world, config, batch=batch) for x in (policy, other))
    third = pickle.loads(pickle.dumps(second))
    for controller in (second, third):
        controller.load_state_dict(first.state_dict())
    expected = first.act(observation)
    fourth = pickle.loads(pickle.dumps(second))
    for controller in (second, third, fourth):
        np.testing.assert_array_equal(controller.act(observation), expected)


def test_a_policy_cannot_be_anchored_to_itself():
    policy, world, state, noise = problem_of()
    with pytest.raises(ValueError, match="deepcopy"):
        mpc_update(policy, replace(world, anchor=Anchor(policy, 1.0)), state, noise=noise)


def test_anchors_are_admitted_like_every_part():
    policy, world, state, noise = problem_of()

    class Noisy(torch.nn.Linear):
        def forward(self, state):
            return super().forward(state) + torch.randn(len(state), 3, dtype=state.dtype)

    for bad, what in ((Noisy(D, 3), "anchor"), (torch.nn.Linear(D, 1), "anchor")):
        for method in (Autograd(), Auto()):
            with pytest.raises(ValueError, match=rf"^{what}: "):
                policy_gradient(policy, replace(world, anchor=Anchor(bad.double(), 1.0)), state, noise, method=method)


def test_settings_and_worlds_that_cannot_be_anchored_are_refused():
    policy, world, *_ = problem_of()
    for bad in (-1.0, float("nan"), float("inf"), "0.1"):
        with pytest.raises(ValueError, match=r"^anchor: "):
            MPCConfig(anchor=bad)
    with pytest.raises(ValueError, match=r"^terminal: expected one of 'policy', 'base', got 'value'"):
        MPCConfig(terminal="value")
    for bad in (0.0, -1.0, float("inf"), "1", [1.0]):
        with pytest.raises(ValueError, match="weight"):
            Anchor(policy, bad)
    for bad in (-1.0, float("nan"), "1"):
        with pytest.raises(ValueError, match="weight: expected a finite β >= 0"):
            Anchor(policy, bad, terminal=True)
    with pytest.raises(ValueError, match=r"Anchor\.terminal: expected True or False, got 'base'"):
        Anchor(policy, terminal="base")
    with pytest.raises(ValueError, match="single policy"):
        Anchor(BatchedPolicy(policy, 2), 1.0)
    with pytest.raises(ValueError, match="value_scale"):
        MPC(policy, world, MPCConfig(units="value"))
    for bad in (0.0, float("nan"), "1", [1.0]):
        with pytest.raises(ValueError, match="value_scale"):
            replace(world, value_scale=bad)
    anchored = replace(world, anchor=Anchor(copy.deepcopy(policy), 1.0))
    for settings in ({"anchor": 1.0}, {"terminal": "base"}):
        with pytest.raises(ValueError, match="anchor"):
            MPC(policy, anchored, MPCConfig(**settings))
        with pytest.raises(ValueError, match="anchor"):
            MPC(policy, world, MPCConfig(**settings), update=Decoupled())
    with pytest.raises(ValueError, match="anchor"):
        Planner(policy, anchored)
