"""Any policy and world in any gymnasium environment: by id, as an instance, by a function."""

import gymnasium
import numpy as np
import pytest
import torch
from torch import nn

from jacrec import Actor, DeterministicDynamics, MPCConfig, RewardModel, TwinCritic, World
from jacrec.envs.actions import ActionBox
from jacrec.evaluation.config import EvalConfig
from jacrec.evaluation.policies import evaluate_policy
from jacrec.evaluation.results import compare, table

D, M = 3, 1
MPC = MPCConfig(horizon=2, particles=1, lr=0.05, method="adjoint")
CONFIG = EvalConfig(episodes=3, contestants=("base", "mpc"), mpc=MPC, max_episode_steps=20)


@pytest.fixture(scope="module")
def parts():
    torch.manual_seed(0)
    policy = Actor(D, M, (16, 16))
    with torch.no_grad():
        policy.mlp.layers[-1].weight.mul_(300)
    world = World(DeterministicDynamics(D, M, (16, 16)), RewardModel(D, M, (16, 16)), TwinCritic(D, M, (16, 16)), 0.99)
    return policy, world


def returns_of(policy, seeds, steps=20):
    """Played without jacrec."""
    env, found = gymnasium.make("Pendulum-v1"), []
    for seed in seeds:
        state, _ = env.reset(seed=seed)
        found.append(0.0)
        for _ in range(steps):
            with torch.no_grad():
                action = 2.0 * policy(torch.from_numpy(state[None])).numpy()[0]
            state, reward, *_ = env.step(action)
            found[-1] += float(reward)
    return found


@pytest.mark.parametrize("kind", ["id", "function", "instance"])
def test_every_kind_of_environment_gives_the_same_returns(parts, kind):
    policy, world = parts
    env = {
        "id": "Pendulum-v1",
        "function": lambda: gymnasium.make("Pendulum-v1"),
        "instance": gymnasium.make("Pendulum-v1"),
    }[kind]
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    record = evaluate_policy(policy, world, env, CONFIG, action_box=ActionBox((-2.0,), (2.0,)))
    base, mpc = (record["contestants"][name] for name in ("base", "mpc"))
    assert base["returns"] == pytest.approx(returns_of(policy, CONFIG.seeds), rel=1e-4)
    assert base["lengths"] == mpc["lengths"] == [20] * 3
    assert mpc["returns"] != base["returns"]
    assert record["environment"]["id"] == "Pendulum-v1"
    assert (record["environment"]["action_low"], record["environment"]["action_high"]) == ([-2.0], [2.0])
    results = compare(record)
    assert [r.name for r in results] == ["base", "mpc"]
    assert results[1].gain.mean == pytest.approx(np.mean(mpc["returns"]) - np.mean(base["returns"]))
    assert table(record).row_count == 2
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())
    if kind == "instance":
        env.reset(seed=0)  # it is still open
        env.step(env.action_space.sample())


class Strict(gymnasium.Env):
    """One step per episode, which insists on its space's own actions."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = gymnasium.spaces.Box(np.float32([-1.0, 0.0]), np.float32([1.0, 0.1]))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        return np.zeros(2, np.float32), float(action.sum()), True, False, {}


def third_party():
    policy = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2), nn.Tanh())

    def dynamics(state, action, noise):
        return state + 0.1 * action

    dynamics.noise_shape = (0,)
    return policy, World(dynamics, lambda s, a: -a.square().sum(-1), lambda s, a: (s * a).sum(-1), 0.9)


@pytest.mark.parametrize("env", [Strict, Strict()], ids=["class", "instance"])
def test_third_party_parts_in_an_environment_of_ones_own(env):
    policy, world = third_party()
    shares = []
    record = evaluate_policy(
        policy,
        world,
        env,
        EvalConfig(episodes=4, mpc=MPCConfig(horizon=1, particles=1, lr=0.1), max_episode_steps=5),
        progress=lambda name, share: shares.append((name, share)),
    )
    assert [record["contestants"][name]["lengths"] for name in ("base", "h0", "mpc")] == [[1] * 4] * 3
    assert record["contestants"]["base"]["terminated"] == [True] * 4
    assert record["environment"]["id"] == "Strict"
    assert {name for name, share in shares if share == 1.0} == {"base", "h0", "mpc"}


@pytest.mark.parametrize(
    ("env", "changes", "message"),
    [
        ("Pendulum-v1", dict(env_id="Hopper-v4"), "config.env_id: expected the default without a run, got 'Hopper-v4'"),
        ("Pendulum-v1", dict(tuned=True, mpc=MPCConfig()), "config.tuned: expected the default without a run"),
        (gymnasium.make("Pendulum-v1"), dict(rows=2), "config.rows: expected 1 or None with a single environment, got 2"),
        (None, {}, "env: expected a gymnasium id, an environment or a function that makes one, got NoneType"),
        (lambda: None, {}, "env: expected a function that makes a gymnasium.Env, got one that makes NoneType"),
        ("Hopper-v4", {}, r"Hopper-v4: expected observations that the policy takes \(state_dim = 3\), got d = 11"),
        (Strict, dict(max_episode_steps=None), "Strict: expected an environment with a time limit, got one without"),
    ],
)
def test_what_it_refuses(parts, env, changes, message):
    config = {"episodes": 3, "max_episode_steps": 20, **changes}
    with pytest.raises(ValueError, match=message):
        evaluate_policy(*parts, env, EvalConfig(**config))


def test_a_function_that_makes_one_environment_again_and_again(parts):
    env = gymnasium.make("Pendulum-v1")
    with pytest.raises(
        ValueError, match="expected a function that makes a new environment at every call, got the same one 3 times"
    ):
        evaluate_policy(*parts, lambda: env, CONFIG)


def test_other_action_bounds_have_to_be_settled(parts):
    with pytest.raises(ValueError, match=r"Pendulum-v1: expected action bounds \[-1, 1\], as in the data, got \[-2, 2\]"):
        evaluate_policy(*parts, "Pendulum-v1", CONFIG, action_box=ActionBox())


def test_a_time_limit_of_a_wrapper_counts(parts):
    def env():
        return gymnasium.wrappers.TimeLimit(gymnasium.make("Pendulum-v1").unwrapped.__class__(), 7)

    record = evaluate_policy(*parts, env, EvalConfig(episodes=2, contestants=("base",)))
    assert record["contestants"]["base"]["lengths"] == [7, 7]


@pytest.mark.parametrize(
    ("changes", "box", "message"),
    [
        (dict(mpc=MPCConfig(units="value")), None, 'units: expected "absolute"'),
        ({}, ActionBox((-2.0,) * 3, (2.0,) * 3), "action_box: expected bounds of m = 1"),
    ],
)
def test_nothing_is_played_before_it_refuses(parts, changes, box, message):
    played = []
    with pytest.raises(ValueError, match=message):
        evaluate_policy(
            *parts,
            "Pendulum-v1",
            EvalConfig(episodes=1, max_episode_steps=2, **changes),
            action_box=box,
            progress=lambda *x: played.append(x),
        )
    assert not played


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(policy=lambda state: state), r"policy: expected a torch\.nn\.Module state -> action, got function"),
        (dict(world=nn.Identity()), "world: expected World, got Identity"),
        (dict(config=MPC), "config: expected EvalConfig, got MPCConfig"),
    ],
)
def test_other_objects_are_refused(parts, given, message):
    policy, world = parts
    with pytest.raises(ValueError, match=message):
        evaluate_policy(**(dict(policy=policy, world=world, env="Pendulum-v1", config=CONFIG) | given))


def test_bounds_of_another_type_are_one_sentence(parts):
    with pytest.raises(ValueError, match=r"^action_box: expected an ActionBox or None, got \(-2, 2\); ActionBox.stated"):
        evaluate_policy(*parts, "Pendulum-v1", CONFIG, action_box=(-2, 2))


@pytest.mark.parametrize("wrapper", [gymnasium.wrappers.NormalizeObservation, gymnasium.wrappers.NormalizeReward])
def test_running_statistics_would_make_every_episode_another_environment(parts, wrapper):
    env = wrapper(gymnasium.make("Pendulum-v1"))
    for given in (env, lambda: wrapper(gymnasium.make("Pendulum-v1"))):
        with pytest.raises(ValueError, match=rf"^env: expected .*, got {wrapper.__name__} with running statistics; set its"):
            evaluate_policy(*parts, given, CONFIG)
    env.update_running_mean = False
    assert len(evaluate_policy(*parts, env, CONFIG)["contestants"]["mpc"]["returns"]) == 3
