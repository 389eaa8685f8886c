"""A world for a policy trained elsewhere: its two models are trained, the policy is kept, and the folder is a run."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from jacrec import MPC, Actor, MPCConfig, TwinCritic, World, value_scale
from jacrec.models.io import load_module
from jacrec.training import DynamicsConfig, RewardConfig, TrainConfig, load_run, load_world, train, train_world
from tests.training_data import linear_system

SMALL = TrainConfig(
    dynamics=DynamicsConfig(hidden=(16, 16), updates=20, batch_size=32, steps=2, eval_transitions=20),
    reward=RewardConfig(hidden=(16, 16), updates=20, batch_size=32, eval_transitions=20),
    threads=1,
    log_every=10,
    checkpoint_every=5,
)
D, M = 3, 2


@pytest.fixture(scope="module")
def data():
    return linear_system(D, M)


@pytest.fixture(scope="module")
def own():
    torch.manual_seed(0)
    return dict(policy=Actor(D, M, (16, 16)), critic=TwinCritic(D, M, (16, 16)), discount=0.97)


@pytest.fixture(scope="module")
def finished(data, own, tmp_path_factory):
    out = tmp_path_factory.mktemp("world") / "run"
    return out, train_world(data, out, config=SMALL, quiet=True, **own)


def same(a, b):
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def test_the_world_is_ready_for_a_controller(finished, own, data):
    _, world = finished
    assert world.critic is own["critic"]
    assert world.discount == 0.97
    assert world.value_scale == pytest.approx(value_scale(own["policy"], own["critic"], torch.from_numpy(data.state)))
    mpc = MPC(own["policy"], world, MPCConfig(horizon=2, particles=2, lr=0.1, units="value"))
    mpc.act(data.state[0])
    assert mpc.last.accepted.all()


def test_the_folder_is_a_run(finished, own):
    out, world = finished
    run, loaded = load_run(out), load_world(out)
    assert same(run.policy, own["policy"])
    assert same(loaded.critic, own["critic"])
    for part in ("dynamics", "reward"):
        assert same(getattr(loaded, part), getattr(world, part))
        assert same(getattr(run.world, part), getattr(world, part))
    for found in (loaded, run.world):
        assert (found.discount, found.value_scale) == (0.97, pytest.approx(world.value_scale))


def test_the_models_are_those_of_a_plain_training(finished, data, own, tmp_path):
    _, world = finished
    config = replace(SMALL, data=data.info.name, rebrac=replace(SMALL.rebrac, discount=0.97, updates=0))
    train(config, tmp_path / "plain", stages=("dynamics", "reward"), data=data, quiet=True)
    for part in ("dynamics", "reward"):
        assert same(load_module(tmp_path / "plain" / f"{part}.safetensors"), getattr(world, part))


def test_the_same_call_resumes_and_another_policy_is_refused(finished, data, own):
    out, world = finished
    again = train_world(data, out, config=SMALL, quiet=True, **own)
    assert same(again.dynamics, world.dynamics)
    other = own | {"policy": Actor(D, M, (16, 16))}
    with pytest.raises(ValueError, match=r"actor\.safetensors: expected the actor that is given, got another"):
        train_world(data, out, config=SMALL, quiet=True, **other)
    with pytest.raises(ValueError, match=r"expected a new folder or a run with the same settings.*rebrac\.discount = 0\.97"):
        train_world(data, out, config=SMALL, quiet=True, **(own | {"discount": 0.9}))
    assert same(load_run(out).policy, own["policy"])


def test_a_training_does_not_replace_the_policy(finished, data, own):
    out, _ = finished
    config = load_run(out).config
    longer = replace(config, rebrac=replace(config.rebrac, updates=5))
    for stages, settings, extend in ((("rebrac",), config, False), (("reward",), longer, True)):
        with pytest.raises(ValueError, match="expected a run whose policy is trained here, got one that was trained elsewhere"):
            train(settings, out, stages=stages, data=data, quiet=True, extend=extend)
    train(config, out, stages=("dynamics", "reward"), data=data, quiet=True)
    assert same(load_run(out).policy, own["policy"])


def test_third_party_parts(data, tmp_path):
    policy, net = nn.Sequential(nn.Linear(D, M), nn.Tanh()), nn.Linear(D + M, 1)

    def critic(state, action):
        return net(torch.cat([state, action], -1)).squeeze(-1)

    given = dict(policy=policy, critic=critic, discount=0.99)
    tilted = replace(SMALL, dynamics=replace(SMALL.dynamics, tilt=1.0))
    world = train_world(data, tmp_path / "world", config=tilted, quiet=True, **given)
    assert isinstance(world, World)
    assert world.critic is critic
    assert world.value_scale > 0
    assert load_world(tmp_path / "world", critic=critic).critic is critic
    other = nn.Sequential(nn.Linear(D, M), nn.Tanh())
    with pytest.raises(ValueError, match="expected the actor of its training, got another"):
        train_world(data, tmp_path / "world", config=tilted, quiet=True, **(given | {"policy": other}))
    with pytest.raises(FileNotFoundError, match=r"without critic.*load_world\(path, critic=critic\)"):
        load_world(tmp_path / "world")
    with pytest.raises(FileNotFoundError, match=r"without actor, critic.*load_world"):
        load_run(tmp_path / "world")


class Sampled(nn.Linear):
    """A policy of a distribution, as other libraries' are."""

    def forward(self, state):
        return torch.distributions.Normal(super().forward(state), 0.1).rsample().tanh()


def test_a_critic_of_columns_serves(data, own, tmp_path):
    world = train_world(
        data, tmp_path / "world", config=SMALL, quiet=True, **(own | {"critic": lambda s, a: own["critic"](s, a)[:, None]})
    )
    assert world.value_scale == pytest.approx(value_scale(own["policy"], own["critic"], torch.from_numpy(data.state)))


@pytest.mark.parametrize("given", [{"observations": []}, "hopper-medium-v2"])
def test_other_data_are_refused(given, own, tmp_path):
    for call in (lambda: train_world(given, tmp_path / "x", **own), lambda: train(SMALL, tmp_path / "x", data=given)):
        with pytest.raises(ValueError, match=f"data: expected Transitions, .* got {type(given).__name__}"):
            call()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(policy=Actor(D + 1, M, (8,))), "policy: expected to take the data's states of d = 3"),
        (dict(policy=Actor(D, M + 1, (8,))), r"policy: expected actions of m = 2 as in the data, got shape \(2, 3\)"),
        (dict(critic=TwinCritic(D, M + 1, (8,))), r"critic: expected to take states \(2, 3\) and actions \(2, 2\)"),
        (dict(critic=lambda s, a: s), r"critic: expected one value per row, shape \(2,\), got \(2, 3\)"),
        (dict(critic=lambda s, a: (s, s)), r"critic: expected a torch\.Tensor of shape .*, got tuple.*torch\.minimum"),
        (dict(critic=None), "critic: expected a callable, got NoneType"),
        (dict(policy=None), r"policy: expected a torch\.nn\.Module state -> action, got NoneType"),
        (dict(policy=Sampled(D, M)), "policy: expected the same answer to the same input"),
        (dict(discount=1.5), "discount: expected 0.0 <= value <= 1.0, got 1.5"),
    ],
)
def test_parts_that_do_not_fit_leave_no_folder(data, own, changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        train_world(data, tmp_path / "world", config=SMALL, quiet=True, **(own | changes))
    assert not (tmp_path / "world").exists()
