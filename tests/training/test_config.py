"""Settings: published values, data set names, validation and YAML."""

import ast
import inspect
import itertools
from dataclasses import fields

import pytest
import yaml

from jacrec.training.config import (
    DynamicsConfig,
    ReBRACConfig,
    RewardConfig,
    TrainConfig,
    from_dict,
    published_datasets,
    published_name,
    rebrac_config,
    to_dict,
)


def test_published_settings_of_the_24_data_sets():
    names = published_datasets()
    assert len(names) == 24
    locomotion = [n for n in names if not n.startswith("antmaze")]
    assert len(locomotion) == 18
    for name in locomotion:
        c = rebrac_config(name)
        assert (c.batch_size, c.discount, c.actor_lr, c.critic_lr, c.reward_scale) == (1024, 0.99, 1e-3, 1e-3, 1.0)
    for name in set(names) - set(locomotion):
        c = rebrac_config(name)
        assert (c.batch_size, c.discount, c.actor_lr, c.critic_lr, c.reward_scale) == (256, 0.999, 3e-4, 5e-5, 100.0)
    for name in names:
        c = rebrac_config(name)
        assert (c.tau, c.policy_freq, c.policy_noise, c.noise_clip, c.normalize_q) == (0.005, 2, 0.2, 0.5, True)
        assert (c.hidden, c.actor_layer_norm, c.critic_layer_norm, c.updates) == ((256,) * 3, False, True, 1_000_000)


@pytest.mark.parametrize(
    ("name", "betas"),
    [
        ("hopper-medium-replay-v2", (0.05, 0.5)),
        ("hopper-expert-v2", (0.1, 0.1)),
        ("halfcheetah-random-v2", (0.001, 0.1)),
        ("walker2d-random-v2", (0.01, 0.0)),
        ("walker2d-medium-v2", (0.05, 0.1)),
        ("antmaze-medium-play-v2", (0.001, 0.0005)),
        ("antmaze-umaze-diverse-v2", (0.003, 0.001)),
    ],
)
def test_published_penalties(name, betas):
    assert (rebrac_config(name).actor_bc_coef, rebrac_config(name).critic_bc_coef) == betas


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("hopper-medium-replay-v2", "hopper-medium-replay-v2"),
        ("data/hopper_medium_replay-v2.hdf5", "hopper-medium-replay-v2"),
        ("halfcheetah_full_replay-v2.h5", "halfcheetah-full-replay-v2"),
        ("walker2d_medium_expert-v2.hdf5", "walker2d-medium-expert-v2"),
        ("mujoco/walker2d/medium-v0", "walker2d-medium-v2"),
        ("D4RL/antmaze/large-play-v1", "antmaze-large-play-v2"),
        ("Ant_maze_big-maze_noisy_multistart_True_multigoal_False_sparse_fixed.hdf5", "antmaze-medium-play-v2"),
        ("x/Ant_maze_u-maze_noisy_multistart_True_multigoal_True_sparse_fixed.hdf5", "antmaze-umaze-diverse-v2"),
        ("jacrec/hopper/medium-v0", None),
        ("mujoco/hopper/simple-v0", None),
        ("D4RL/pointmaze/umaze-v2", None),
        ("my_hopper_medium_notes.hdf5", None),
    ],
)
def test_data_set_names_are_recognised(data, name):
    assert published_name(data) == name
    expected = ReBRACConfig() if name is None else rebrac_config(name)
    assert TrainConfig.for_dataset(data, seed=3) == TrainConfig(data=data, seed=3, rebrac=expected)


def test_settings_round_trip_through_yaml():
    config = TrainConfig.for_dataset(
        "hopper-medium-v2", env_id="Hopper-v4", dynamics=DynamicsConfig(hidden=(64, 32), levels=(1, 5, 10), max_grad_norm=None)
    )
    assert from_dict(yaml.safe_load(yaml.safe_dump(to_dict(config)))) == config
    assert from_dict({"rebrac": {"updates": 7}}) == TrainConfig(rebrac=ReBRACConfig(updates=7))


def test_unknown_settings_are_rejected():
    with pytest.raises(ValueError, match=r"^settings: .*got speed, reward\.batch$"):
        from_dict({"speed": 3, "reward": {"batch": 4}})
    with pytest.raises(ValueError, match=r"^data set: .* got 'hopper-v2'"):
        rebrac_config("hopper-v2")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ReBRACConfig(batch_size=0), r"^rebrac\.batch_size: .* >= 1, got 0"),
        (lambda: ReBRACConfig(discount=1.5), r"^rebrac\.discount: .*0\.0 <= value <= 1\.0, got 1\.5"),
        (lambda: DynamicsConfig(kind="gan"), r"^dynamics\.kind: .*'diffusion', .*, got 'gan'"),
        (
            lambda: DynamicsConfig(kind="flow", prediction="epsilon"),
            r"^dynamics\.prediction of kind 'flow': .*'velocity', 'x0', got 'epsilon'",
        ),
        (
            lambda: DynamicsConfig(prediction="velocity"),
            r"^dynamics\.prediction of kind 'diffusion': .*'epsilon', 'x0', got 'velocity'",
        ),
        (lambda: DynamicsConfig(times="normal"), r"^dynamics\.times: .*'logit-normal', 'uniform', got 'normal'"),
        (lambda: DynamicsConfig(tilt_std=0.0), r"^dynamics\.tilt_std: .* > 0, got 0\.0"),
        (lambda: DynamicsConfig(tilt_clip=1.0), r"^dynamics\.tilt_clip: .* > 1, got 1\.0"),
        (lambda: DynamicsConfig(sampling_steps=0), r"^dynamics\.sampling_steps: .* >= 1 .*, got 0"),
        (lambda: RewardConfig(updates=-1), r"^reward\.updates: .* >= 0, got -1"),
        (lambda: TrainConfig(held_out=0.0), r"^held_out: .*\(0, 1\), got 0\.0"),
        (lambda: TrainConfig(log_every=0), "^log_every: .* >= 1, got 0"),
    ],
)
def test_invalid_settings_are_rejected(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("kind", [ReBRACConfig, DynamicsConfig, RewardConfig, TrainConfig])
def test_every_setting_has_a_docstring(kind):
    body = ast.parse(inspect.getsource(kind)).body[0].body  # type: ignore[attr-defined]
    explained = {
        a.target.id
        for a, b in itertools.pairwise(body)
        if isinstance(a, ast.AnnAssign) and isinstance(b, ast.Expr) and isinstance(b.value, ast.Constant)
    }
    assert explained == {f.name for f in fields(kind)}
