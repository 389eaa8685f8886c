"""A controller in one file decides as the one that was saved."""

import json
import re

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import jacrec
from jacrec import (
    MPC,
    Actor,
    Anchor,
    DiffusionDynamics,
    EnsembleDynamics,
    MPCConfig,
    MultiStepDynamics,
    RewardModel,
    TwinCritic,
    World,
)
from jacrec.experimental import Gated
from jacrec.models.io import save_module
from tests.strategies import shake

D, M = 3, 2
PLAIN = dict(horizon=2, particles=2, lr=0.05, updates=2, method="adjoint")


def parts(dynamics=None, dtype=torch.float32, **options):
    torch.manual_seed(0)
    policy, reward, critic = Actor(D, M, (8, 8)), RewardModel(D, M, (8,)), TwinCritic(D, M, (8, 8))
    world = World(dynamics or DiffusionDynamics(D, M, (8,), steps=2), reward, critic, 0.97, **options)
    for part in (policy, world.dynamics, reward, critic):
        shake(part)
        part.to(dtype)
    return policy, world


def observations(batch, n=4):
    rng = np.random.default_rng(0)
    return [rng.standard_normal((D,) if batch is None else (batch, D)) for _ in range(n)]


def expect_same_decisions(mpc, again, batch):
    for observation in observations(batch):
        assert np.array_equal(mpc.act(observation), again.act(observation))
        assert torch.equal(mpc.last.gradient_norm, again.last.gradient_norm)
    mpc.new_episode()
    again.new_episode()
    assert torch.equal(mpc.drift(), again.drift())
    assert np.array_equal(mpc.act(observations(batch)[0]), again.act(observations(batch)[0]))


@pytest.mark.parametrize("batch", [None, 3])
@pytest.mark.parametrize(
    ("dynamics", "options", "settings"),
    [
        (None, {}, {}),
        (None, {"value_scale": 3.0}, {"units": "value", "anchor": 0.1, "max_grad_norm": 1.0}),
        (None, {"anchor": Anchor(Actor(D, M, (4,)), 0.3)}, {"trust_radius": 0.5, "max_action_change": 0.2}),
        (None, {}, {"terminal": "base"}),
        (None, {"anchor": Anchor(Actor(D, M, (4,)), terminal=True)}, {}),
        (EnsembleDynamics(D, M, (8,), members=3), {}, {"carry": "persist"}),
        (MultiStepDynamics(D, M, (8,), horizon=2), {}, {"method": "multistep"}),
        (None, {}, {"horizon": 0}),
    ],
    ids=["plain", "value units", "anchor", "terminal", "anchor's", "ensemble", "multistep", "critic alone"],
)
def test_it_decides_as_the_saved_one(batch, dynamics, options, settings, tmp_path):
    policy, world = parts(dynamics, **options)
    mpc = MPC(policy, world, MPCConfig(**PLAIN | settings), batch=batch)
    for observation in observations(batch, 2):
        mpc.act(observation)
    before = {name: value.clone() for name, value in mpc.state_dict().items()}
    path = jacrec.save(mpc, tmp_path / "new" / "controller.safetensors")
    assert all(torch.equal(value, before[name]) for name, value in mpc.state_dict().items())
    again = jacrec.load(path)
    assert again.config == mpc.config
    assert again.batch == batch
    assert (again.world.discount, again.world.value_scale) == (0.97, options.get("value_scale"))
    assert sorted(p.name for p in path.parent.iterdir()) == ["controller.safetensors"]
    expect_same_decisions(mpc, again, batch)


def test_files_from_before_there_was_a_terminal_anchor_are_read(tmp_path):
    mpc = MPC(*parts(anchor=Anchor(Actor(D, M, (4,)), 0.3)), MPCConfig(**PLAIN))
    path = jacrec.save(mpc, tmp_path / "controller.safetensors")
    changed_header(
        path, lambda header: (header.pop("checksum"), header.pop("anchor_terminal"), header["settings"].pop("terminal"))
    )
    expect_same_decisions(mpc, jacrec.load(path), None)


def test_precision_survives(tmp_path):
    policy, world = parts(dtype=torch.float64)
    mpc = MPC(policy, world, MPCConfig(**PLAIN))
    again = jacrec.load(jacrec.save(mpc, tmp_path / "controller.safetensors"))
    assert again.dtype == torch.float64
    expect_same_decisions(mpc, again, None)


def test_equal_controllers_give_equal_files(tmp_path):
    a, b = (jacrec.save(MPC(*parts(), MPCConfig(**PLAIN)), tmp_path / name) for name in ("a.safetensors", "b.safetensors"))
    assert a.read_bytes() == b.read_bytes()


class Other(Actor):
    pass


def test_what_cannot_be_saved(tmp_path):
    policy, world = parts()
    path = tmp_path / "controller.safetensors"
    net = nn.Sequential(nn.Linear(D, M), nn.Tanh())
    for strange, name in ((net, "Sequential"), (Other(D, M, (8,)), "Other")):
        with pytest.raises(ValueError, match=f"save: expected a policy of jacrec's own classes.*got {name}; .*torch.save"):
            jacrec.save(MPC(strange, world, MPCConfig(**PLAIN)), path)
    plain = World(world.dynamics, lambda s, a: s.sum(-1), world.critic, 0.97)
    with pytest.raises(ValueError, match=r"save: expected a reward of jacrec's own classes.*got function"):
        jacrec.save(MPC(policy, plain, MPCConfig(**PLAIN)), path)
    with pytest.raises(ValueError, match=r"expected a controller that takes the plain step.*update=Gated"):
        jacrec.save(MPC(policy, world, MPCConfig(**PLAIN), update=Gated(min_signal=1.0)), path)
    assert not path.exists()


def changed_header(path, change):
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["jacrec"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(header)
    save_file(tensors, path, metadata={"jacrec": json.dumps(header)})


def test_damage_is_named(tmp_path):
    path = jacrec.save(MPC(*parts(), MPCConfig(**PLAIN)), tmp_path / "controller.safetensors")
    good = path.read_bytes()
    flipped = bytearray(good)
    flipped[-5] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}: expected content with checksum .*damaged"):
        jacrec.load(path)
    path.write_bytes(good[:-9])
    with pytest.raises(ValueError, match="expected a whole safetensors file, got a damaged one"):
        jacrec.load(path)
    path.write_bytes(good)
    changed_header(path, lambda header: header["settings"].update(lr=1.0))
    with pytest.raises(ValueError, match="expected content with checksum"):
        jacrec.load(path)
    with pytest.raises(FileNotFoundError, match=r"no controller at .*jacrec\.save"):
        jacrec.load(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h.update(controller=2), "expected a controller that jacrec.save wrote, got another version's"),
        (lambda h: h["settings"].update(lr="big"), "expected a number at lr, got 'big'"),
        (lambda h: h["settings"].update(novelty=1), "parts or settings that do not fit .*novelty"),
        (lambda h: h["parts"].pop("reward"), "expected the parts .*got .'critic', 'dynamics', 'policy'."),
        (lambda h: h["parts"]["reward"].update({"class": "Stranger"}), "of jacrec's classes, got .*'Stranger'"),
        (lambda h: h["parts"]["reward"]["config"].update(hidden=[9]), "expected a network of class RewardModel, got another"),
        (lambda h: h.update(batch=2), "expected"),
        (lambda h: h.update(discount=7.0), "parts or settings that do not fit .*World.discount"),
    ],
)
def test_another_content_is_named(change, message, tmp_path):
    """Without a checksum, as files of which someone has edited the header may be."""
    path = jacrec.save(MPC(*parts(), MPCConfig(**PLAIN)), tmp_path / "controller.safetensors")
    changed_header(path, lambda header: (header.pop("checksum"), change(header)))
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}: .*{message}"):
        jacrec.load(path)


def test_a_network_is_no_controller(tmp_path):
    path = save_module(Actor(D, M, (8,)), tmp_path / "actor.safetensors")
    with pytest.raises(ValueError, match=r"expected a controller that jacrec\.save wrote, got Actor"):
        jacrec.load(path)


@pytest.mark.parametrize("batch", [None, 2])
def test_frozen_parameters_stay_frozen(tmp_path, batch):
    policy, world = parts()
    policy.mlp.layers[0].weight.requires_grad_(False)
    mpc = MPC(policy, world, MPCConfig(**PLAIN), batch=batch)
    again = jacrec.load(jacrec.save(mpc, tmp_path / "mpc.safetensors"))
    expect_same_decisions(mpc, again, batch)


@pytest.mark.parametrize(
    "alter",
    [
        lambda p, w: setattr(w.critic.mlp, "activation", "tanh"),
        lambda p, w: setattr(w.dynamics, "target", "state"),
        lambda p, w: setattr(w.reward.mlp, "residual", True),
        lambda p, w: setattr(p.mlp, "tanh_output", False),
        lambda p, w: p.mlp.layers[0].register_parameter("extra", nn.Parameter(torch.zeros(1))),
    ],
)
def test_altered_networks_are_not_saved(tmp_path, alter):
    """Their constructors would make others."""
    policy, world = parts()
    mpc = MPC(policy, world, MPCConfig(**PLAIN))
    alter(mpc.policy, mpc.world)
    with pytest.raises(ValueError, match=r"expected .* as its constructor makes"):
        jacrec.save(mpc, tmp_path / "mpc.safetensors")
    assert not list(tmp_path.iterdir())


def test_what_is_no_controller_or_no_path_is_one_sentence(tmp_path):
    policy, world = parts()
    with pytest.raises(ValueError, match=r"^save: expected a controller MPC\(policy, world, config\), got Actor"):
        jacrec.save(policy, tmp_path / "policy.safetensors")
    for call in (lambda: jacrec.save(MPC(policy, world), None), lambda: jacrec.load(None), lambda: jacrec.load(5)):
        with pytest.raises(ValueError, match=r"^path: expected text or a pathlib\.Path, got (NoneType|int)"):
            call()
