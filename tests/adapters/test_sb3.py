"""Stable-Baselines3: actions as of `predict`, values as of its critics, on the fused kernels' path, and its replay buffer as data."""

import gymnasium
import numpy as np
import pytest
import torch
from torch import nn

from jacrec import MPC, Actor, DiffusionDynamics, MPCConfig, RewardModel, TwinCritic, World
from jacrec.adapters import from_sb3, transitions_from_sb3
from jacrec.adapters.parts import PlainCritic, PlainPolicy
from jacrec.engine.choice import preferred
from jacrec.engine.rollout import sampled_problem

sb3 = pytest.importorskip("stable_baselines3", reason="needs stable-baselines3, pip install 'jacrec[sb3]'")
make_vec_env, vec_env = sb3.common.env_util.make_vec_env, sb3.common.vec_env

SMALL = dict(learning_starts=20, batch_size=16, seed=0)


def trained(kind, env, steps=40, net_arch=(16, 16), **options):
    policy = dict(net_arch=list(net_arch)) | options.pop("policy_kwargs", {})
    return kind("MlpPolicy", env, policy_kwargs=policy, **SMALL, **options).learn(steps)


def lopsided():
    """Pendulum, of actions in [-1, 3]."""
    env = gymnasium.make("Pendulum-v1")
    return gymnasium.wrappers.RescaleAction(env, np.float32(-1.0), np.float32(3.0))


def states(model, n=50):
    rng = np.random.default_rng(0)
    return (rng.standard_normal((n, *model.observation_space.shape)) * [1.0, 1.0, 4.0]).astype(np.float32)


def expect_same_actions(model, parts, raw, normalised=None):
    theirs = model.predict(raw if normalised is None else normalised, deterministic=True)[0]
    with torch.no_grad():
        ours = parts.action_box.from_unit(parts.policy(torch.from_numpy(raw)).numpy())
    assert np.abs(ours - theirs).max() <= 1e-6 * max(1.0, np.abs(theirs).max())
    assert np.ptp(theirs) > 1e-3


def critic_values(model, observation, action):
    with torch.no_grad():
        return [x.squeeze(-1) for x in model.critic(torch.from_numpy(observation), action)]


@pytest.mark.parametrize("name", ["SAC", "TD3", "DDPG"])
@pytest.mark.parametrize("make", [lambda: gymnasium.make("Pendulum-v1"), lopsided], ids=["pendulum", "lopsided"])
def test_actions_and_values_are_the_librarys(name, make):
    model = trained(getattr(sb3, name), make())
    parts, raw = from_sb3(model), states(model)
    assert type(parts.policy) is Actor
    assert type(parts.critic) is TwinCritic
    expect_same_actions(model, parts, raw)
    action = torch.rand(len(raw), 1) * 2 - 1
    theirs = torch.stack(critic_values(model, raw, action)).amin(0)
    torch.testing.assert_close(parts.critic(torch.from_numpy(raw), action).detach(), theirs, rtol=1e-5, atol=1e-5)
    assert (parts.discount, parts.state_dim, parts.action_dim) == (0.99, 3, 1)
    space = model.action_space
    assert (parts.action_box.low, parts.action_box.high) == (tuple(space.low.tolist()), tuple(space.high.tolist()))


@pytest.mark.parametrize("activation", [nn.Tanh, nn.SiLU, nn.GELU])
def test_other_activations(activation):
    model = trained(sb3.SAC, "Pendulum-v1", policy_kwargs=dict(activation_fn=activation))
    parts = from_sb3(model)
    assert type(parts.policy) is Actor
    expect_same_actions(model, parts, states(model))


def test_the_pretrained_model_stays_as_it_is():
    model = trained(sb3.SAC, "Pendulum-v1")
    parts, raw = from_sb3(model), states(model)
    before = model.predict(raw, deterministic=True)[0]
    with torch.no_grad():
        for p in (*parts.policy.parameters(), *parts.critic.parameters()):
            p.add_(1.0)
    assert np.array_equal(model.predict(raw, deterministic=True)[0], before)


def normalised(clip=10.0, steps=200, kind=None, **options):
    venv = vec_env.VecNormalize(make_vec_env("Pendulum-v1", n_envs=2, seed=0), clip_obs=clip)
    return trained(kind or sb3.SAC, venv, steps, **options), venv


@pytest.mark.parametrize("clip", [10.0, 0.7, float("inf")])
def test_vec_normalize_is_part_of_policy_and_critic(clip):
    model, venv = normalised(clip)
    parts, raw = from_sb3(model), states(model)
    assert type(parts.policy) is Actor
    assert type(parts.critic) is TwinCritic
    seen = venv.normalize_obs(raw)
    if clip == 0.7:
        assert (np.abs(seen) == np.float32(0.7)).mean() > 0.2
    expect_same_actions(model, parts, raw, seen)
    action = torch.rand(len(raw), 1) * 2 - 1
    theirs = torch.stack(critic_values(model, seen, action)).amin(0) * float(np.sqrt(venv.ret_rms.var + venv.epsilon))
    torch.testing.assert_close(parts.critic(torch.from_numpy(raw), action).detach(), theirs, rtol=1e-5, atol=1e-4)


def test_statistics_that_are_given_count(tmp_path):
    model, venv = normalised()
    model.save(tmp_path / "model")
    venv.save(str(tmp_path / "statistics"))
    alone = sb3.SAC.load(tmp_path / "model")
    again = vec_env.VecNormalize.load(
        str(tmp_path / "statistics"), vec_env.DummyVecEnv([lambda: gymnasium.make("Pendulum-v1")])
    )
    raw = states(model)
    expect_same_actions(alone, from_sb3(alone, again), raw, venv.normalize_obs(raw))
    wrong = vec_env.VecNormalize(make_vec_env("MountainCarContinuous-v0"))
    with pytest.raises(ValueError, match=r"expected statistics of 3 observations, got \(2,\)"):
        from_sb3(alone, wrong)


class Doubled(sb3.common.torch_layers.FlattenExtractor):
    def forward(self, observations):
        return 2.0 * super().forward(observations)


@pytest.mark.parametrize(
    ("options", "policy_kwargs"),
    [({"use_sde": True}, {}), ({}, {"features_extractor_class": Doubled}), ({}, {"activation_fn": nn.Tanh})],
    ids=["clipped mean", "features extractor", "tanh behind a clip"],
)
def test_what_jacrecs_networks_cannot_express_is_a_plain_module(options, policy_kwargs):
    model, venv = normalised(kind=sb3.SAC, policy_kwargs=policy_kwargs, **options)
    parts, raw = from_sb3(model), states(model)
    assert type(parts.policy) is PlainPolicy
    seen = venv.normalize_obs(raw)
    expect_same_actions(model, parts, raw, seen)
    action = torch.rand(len(raw), 1) * 2 - 1
    theirs = torch.stack(critic_values(model, seen, action)).amin(0) * float(np.sqrt(venv.ret_rms.var + venv.epsilon))
    got = parts.critic(torch.from_numpy(raw), action).detach()
    torch.testing.assert_close(got, theirs, rtol=1e-5, atol=1e-4)
    assert type(parts.critic) is (PlainCritic if policy_kwargs else TwinCritic)
    config = MPCConfig(horizon=2, particles=2, lr=1e-3, method="autograd")
    mpc = MPC(parts.policy, world(parts), config, batch=2)
    assert mpc.act(raw[:2]).shape == (2, 1)
    assert mpc.last.accepted.all()


def world(parts):
    d, m = parts.state_dim, parts.action_dim
    return World(
        DiffusionDynamics(d, m, hidden=(16, 16), steps=2), RewardModel(d, m, hidden=(16, 16)), parts.critic, parts.discount
    )


def test_a_normalised_policy_is_on_the_fused_path():
    model, _ = normalised()
    parts = from_sb3(model)
    problem = sampled_problem(parts.policy, world(parts), torch.from_numpy(states(model)[0]), 2, 2, None)
    assert preferred(problem) == "fused-adjoint"


def test_tqc_is_the_smallest_mean_of_quantiles():
    tqc = pytest.importorskip("sb3_contrib", reason="needs sb3-contrib, pip install 'jacrec[sb3]'").TQC
    model = trained(tqc, "Pendulum-v1")
    parts, raw = from_sb3(model), states(model)
    expect_same_actions(model, parts, raw)
    action = torch.rand(len(raw), 1) * 2 - 1
    with torch.no_grad():
        theirs = model.critic(torch.from_numpy(raw), action).mean(-1).amin(1)
    assert type(parts.critic) is TwinCritic
    torch.testing.assert_close(parts.critic(torch.from_numpy(raw), action).detach(), theirs, rtol=1e-5, atol=1e-5)


def test_other_models_are_refused():
    model = sb3.SAC("MlpPolicy", "Pendulum-v1", buffer_size=10)
    with pytest.raises(ValueError, match=r"got str; read a file with jacrec\.adapters\.from_file\(path\)"):
        from_sb3("sac.zip")
    with pytest.raises(ValueError, match=r"got SACPolicy; pass the model that it belongs to"):
        from_sb3(model.policy)
    with pytest.raises(ValueError, match=r"vec_normalize: expected a VecNormalize, got DummyVecEnv; load one"):
        from_sb3(model, model.get_env())
    with pytest.raises(ValueError, match="expected SAC, TD3, DDPG or TQC of Stable-Baselines3, got PPO"):
        from_sb3(sb3.PPO("MlpPolicy", "Pendulum-v1"))
    with pytest.raises(ValueError, match="expected SAC, TD3, DDPG or TQC of Stable-Baselines3, got Linear"):
        from_sb3(nn.Linear(1, 1))


@pytest.mark.parametrize("buffer_size", [1000, 120])
def test_the_replay_buffer_is_data(buffer_size):
    venv = make_vec_env("Pendulum-v1", n_envs=2, seed=0)
    model = trained(sb3.SAC, venv, steps=500, buffer_size=buffer_size, learning_rate=0.0)
    data = transitions_from_sb3(model, env_id="Pendulum-v1")
    rows = min(buffer_size // 2, 250)
    assert len(data) == 2 * rows
    assert data.info.action_box.same_as(from_sb3(model).action_box)
    inside = np.flatnonzero(data.has_next_action)
    assert np.array_equal(data.next_state[inside], data.state[inside + 1])
    assert np.array_equal(data.episode[inside], data.episode[inside + 1])
    # an episode of Pendulum ends by its time limit alone, after 200 steps
    assert not data.terminal.any()
    assert len(np.unique(data.episode)) == 2 * (2 if buffer_size == 1000 else 1 + (rows > 50))
    # the first action after learning: what the environment was given, in [-1, 1]
    core = gymnasium.make("Pendulum-v1").unwrapped
    core.reset(seed=0)
    cosine, sine, speed = data.state[0].astype(float)
    core.state = np.array([np.arctan2(sine, cosine), speed])
    following, reward, *_ = core.step(2.0 * data.action[0])
    assert np.allclose(following, data.next_state[0], atol=1e-5)
    assert reward == pytest.approx(data.reward[0], abs=1e-4)


class Goal(gymnasium.Env):
    observation_space = gymnasium.spaces.Dict({"observation": gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)})
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)


def test_spaces_that_are_not_flat():
    model = sb3.SAC("MultiInputPolicy", Goal(), buffer_size=10)
    for convert in (from_sb3, transitions_from_sb3):
        with pytest.raises(ValueError, match="expected observations in a flat Box, got Dict"):
            convert(model)


def test_a_buffer_that_cannot_serve():
    model = sb3.SAC("MlpPolicy", "Pendulum-v1")
    with pytest.raises(ValueError, match="expected one with transitions, got an empty one"):
        transitions_from_sb3(model)
    compact = sb3.SAC(
        "MlpPolicy",
        "Pendulum-v1",
        buffer_size=500,
        optimize_memory_usage=True,
        replay_buffer_kwargs={"handle_timeout_termination": False},
        learning_starts=100,
    ).learn(50)
    with pytest.raises(ValueError, match="expected one that keeps successors, got optimize_memory_usage=True"):
        transitions_from_sb3(compact)
