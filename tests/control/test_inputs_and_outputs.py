"""What goes into a controller and comes out: observations of any layout, actions of policies that leave [-1, 1]."""

import pickle
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from jacrec import MPC, Actor, DeterministicDynamics, MPCConfig, RewardModel, TwinCritic, World
from jacrec.engine.action_clip import clip_action, ends_with_tanh
from jacrec.evaluation.episodes import PolicyController
from jacrec.models.world import BatchedPolicy
from jacrec.planners import Planner, PlannerConfig

D, M = 4, 2
STATE = np.array([0.1, -0.2, 0.3, 0.4])


@pytest.fixture(scope="module")
def world():
    torch.manual_seed(0)
    return World(DeterministicDynamics(D, M, (8,)), RewardModel(D, M, (8,)), TwinCritic(D, M, (8,)), 0.99)


def far_policy(value=5.0):
    """A policy without tanh, whose first action component is `value`."""
    policy = nn.Sequential(nn.Linear(D, M))
    nn.init.zeros_(policy[0].weight)
    policy[0].bias.data = torch.tensor([value, 0.25])
    return policy


CONTROLLERS = {
    "mpc": lambda policy, world: MPC(policy, world, MPCConfig(horizon=2, particles=2, method="autograd", lr=1e-9)),
    "bounded": lambda policy, world: MPC(
        policy, world, MPCConfig(horizon=2, particles=2, method="autograd", max_action_change=0.1, lr=1e-9)
    ),
    "planner": lambda policy, world: Planner(policy, world, PlannerConfig(planner="best-of-q", max_action_change=1e-6)),
    "policy": lambda policy, world: PolicyController(policy),
}


@pytest.mark.parametrize("name", CONTROLLERS)
def test_actions_that_leave_the_box_are_clipped_with_one_warning(world, name):
    controller = CONTROLLERS[name](far_policy(), world)
    with pytest.warns(UserWarning, match=r"policy: expected actions in \[-1, 1\], got 5; .*tanh"):
        action = controller.act(STATE)
    assert action[0] == 1.0
    assert action[1] == pytest.approx(0.25, abs=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert controller.act(STATE)[0] == 1.0


@pytest.mark.parametrize("name", CONTROLLERS)
def test_actions_inside_the_box_keep_their_bits(world, name):
    torch.manual_seed(1)
    policy = Actor(D, M, (8,))
    nn.init.normal_(policy.mlp.layers[-1].weight)
    controller = CONTROLLERS[name](policy, world)
    before = controller.act(STATE)
    controller = CONTROLLERS[name](policy, world)
    controller.clip = lambda action, policy: action
    assert np.array_equal(before, controller.act(STATE))


def test_actors_need_no_look_at_the_numbers_on_a_gpu():
    actor = Actor(D, M, (8,))
    assert ends_with_tanh(actor)
    assert ends_with_tanh(BatchedPolicy(actor, 2))
    assert not ends_with_tanh(far_policy())
    actor.mlp.tanh_output = False
    assert not ends_with_tanh(actor)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_not_made_a_valid_action_silently(value):
    action = torch.tensor([value, 0.5])
    if value != value:
        assert torch.equal(clip_action(action, far_policy()).isnan(), torch.tensor([True, False]))
        return
    with pytest.warns(UserWarning, match=f"got {value:g}"):
        assert clip_action(action, far_policy()).tolist() == [1.0 if value > 0 else -1.0, 0.5]


def test_the_last_decision_reports_the_clipped_action_and_pickles(world):
    mpc = MPC(far_policy(-3.0), world, MPCConfig(horizon=1, particles=2, method="autograd"), batch=2)
    with pytest.warns(UserWarning, match="got -3"):
        mpc.act(np.stack([STATE, STATE]))
    assert mpc.last is not None
    assert mpc.last.action[:, 0].tolist() == [-1.0, -1.0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pickle.loads(pickle.dumps(mpc)).act(np.stack([STATE, STATE]))


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_what_the_caller_writes_into_the_action_does_not_reach_the_record(world, kind):
    mpc = MPC(Actor(D, M, (8,)), world, MPCConfig(horizon=1, particles=2))
    action = mpc.act(kind(STATE))
    kept = mpc.last.action.clone()
    action[:] = 9.0
    assert torch.equal(mpc.last.action, kept)


@pytest.mark.parametrize("method", ["multistep", "fused-multistep"])
def test_a_method_that_does_not_fit_the_world_is_refused_when_the_controller_is_made(world, method):
    with pytest.raises(ValueError, match=f"method: expected another than '{method}' for DeterministicDynamics"):
        MPC(Actor(D, M, (8,)), world, MPCConfig(method=method))


def read_only():
    state = STATE.copy()
    state.flags.writeable = False
    return state


LAYOUTS = {
    "negative stride": STATE[::-1].copy()[::-1],
    "column": np.stack([STATE, STATE], 1)[:, 0],
    "big-endian": STATE.astype(">f8"),
    "little-endian": STATE.astype("<f4"),
    "list": STATE.tolist(),
    "read-only": read_only(),
    "long double": STATE.astype(np.longdouble),
    "half": STATE.astype(np.float16),
    "subclass": STATE.view(np.ma.MaskedArray),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["mpc", "planner", "policy"])
def test_observations_of_any_layout_are_used(world, name, layout):
    torch.manual_seed(1)
    policy, observation = Actor(D, M, (8,)), LAYOUTS[layout]
    expected = CONTROLLERS[name](policy, world).act(STATE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        action = CONTROLLERS[name](policy, world).act(observation)
    assert type(action) is np.ndarray
    assert action == pytest.approx(expected, abs=1e-3 if layout == "half" else 1e-6)


def test_batches_may_be_lists(world):
    mpc = MPC(Actor(D, M, (8,)), world, MPCConfig(horizon=1, particles=2), batch=2)
    assert mpc.act([STATE.tolist(), STATE.tolist()]).shape == (2, M)


def test_observations_are_copied(world):
    mpc, state = CONTROLLERS["mpc"](Actor(D, M, (8,)), world), STATE.astype(np.float32)
    mpc.act(state)
    assert np.array_equal(state, STATE.astype(np.float32))


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        ((STATE, {}), r"got tuple; gymnasium's reset\(\)"),
        (["a", "b", "c", "d"], "expected real numbers, got <U1"),
        ([[0.0], [0.0, 1.0]], "rows of equal length"),
        (STATE.astype(complex), "expected real numbers, got complex128"),
        (STATE.astype(object), "expected real numbers, got object"),
        (np.ma.masked_array(STATE, STATE < 0), "masked"),
        (np.zeros(3), r"expected a state|state has|expects a state|dimension"),
    ],
)
def test_what_is_no_observation_is_one_sentence(world, observation, message):
    with pytest.raises(ValueError, match=message):
        CONTROLLERS["mpc"](Actor(D, M, (8,)), world).act(observation)
