"""Tilted world models: weights, sampling, order of the stages."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jacrec import Actor
from jacrec.models.io import load_module
from jacrec.training.config import DynamicsConfig, ReBRACConfig, RewardConfig, TrainConfig
from jacrec.training.run import train
from jacrec.training.seeds import train_seeds
from jacrec.training.stages.dynamics import DynamicsStage
from jacrec.training.stages.tilt import clipped_weights, effective_share, tilt_weights
from tests.conftest import property_cases
from tests.training_data import linear_system

DATA = linear_system()


def policy(seed=0):
    torch.manual_seed(seed)
    actor = Actor(3, 2, (8,))
    actor.mlp.initialise()
    return actor


@property_cases(0.05)
@given(seed=st.integers(0, 99), n=st.integers(1, 200), tilt=st.floats(0, 1e4), clip=st.floats(1.01, 300))
def test_weights_have_mean_one_and_are_monotone_and_bounded(seed, n, tilt, clip):
    log_density = -np.random.default_rng(seed).exponential(size=n)
    w = clipped_weights(log_density, tilt, clip)
    assert w.mean() == pytest.approx(1, rel=1e-9)
    assert w.max() <= clip * (1 + 1e-9)
    assert (np.diff(w[np.argsort(log_density)]) >= 0).all()
    plain = np.exp(tilt * (log_density - log_density.max()))
    if plain.max() <= clip * plain.mean():
        np.testing.assert_allclose(w, plain / plain.mean(), rtol=1e-12)
    else:  # unclipped weights keep their proportions
        free = w < w.max() * (1 - 1e-9)
        if free.sum() > 1 and plain[free].min() > 1e-290:
            np.testing.assert_allclose(w[free] / w[free].max(), plain[free] / plain[free].max(), rtol=1e-9)


def test_weights_equal_those_of_a_gaussian_policy():
    config, actor = DynamicsConfig(tilt=0.7, tilt_std=0.5, tilt_clip=1e6), policy()
    with torch.no_grad():
        mean = actor(torch.from_numpy(DATA.state))
    normal = torch.distributions.Normal(mean.double(), 0.5)
    density = normal.log_prob(torch.from_numpy(DATA.action).double()).sum(-1)
    expected = torch.exp(0.7 * density) / torch.exp(0.7 * density).mean()
    weights = tilt_weights(actor, DATA, config)
    torch.testing.assert_close(weights, expected, rtol=1e-6, atol=0)
    assert 0 < effective_share(weights) < 1
    assert effective_share(torch.ones(7)) == 1


@pytest.mark.parametrize("kind", ["diffusion", "deterministic", "flow", "meanflow", "ensemble"])
def test_every_kind_samples_rows_in_proportion_to_their_weights(kind):
    actor = policy()
    config = DynamicsConfig(kind=kind, hidden=(8,), batch_size=500, tilt=2.0, tilt_std=0.5, tilt_clip=4.0, members=2)
    stage = DynamicsStage(DATA, DATA, config, 0, policy=actor)
    weights = tilt_weights(actor, DATA, config)
    index, *_ = stage.stream.draw_block(0)
    times = torch.bincount(index.flatten(), minlength=len(DATA)).double()
    expected = weights * index.numel() / len(DATA)
    assert ((times - expected).abs() < 5 * expected.sqrt() + 3).all()  # five standard deviations of a Poisson count
    assert float((times / expected)[weights > 3].mean()) == pytest.approx(1, abs=0.05)
    stage.step(0)
    errors = stage.evaluate()
    assert errors["effective_share"] == pytest.approx(effective_share(weights))
    assert errors["one_step_rmse_tilted"] > 0


SMALL = TrainConfig(
    data="linear",
    rebrac=ReBRACConfig(hidden=(8,), updates=6, batch_size=8),
    dynamics=DynamicsConfig(kind="meanflow", hidden=(8,), updates=6, batch_size=8, tilt=1.0, eval_transitions=9),
    reward=RewardConfig(hidden=(8,), updates=6, batch_size=8, eval_transitions=9),
    log_every=3,
    checkpoint_every=4,
    threads=1,
)


def test_a_tilted_model_is_trained_after_its_policy(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"^dynamics\.tilt: .*actor\.safetensors, got no file"):
        train(SMALL, tmp_path / "none", stages=("dynamics", "reward"), data=DATA, quiet=True)
    assert not (tmp_path / "none").exists()
    with pytest.raises(ValueError, match=r"^dynamics\.tilt: .*tilt = 1\.0, got none"):
        DynamicsStage(DATA, DATA, SMALL.dynamics, 0)
    equal = [
        train(SMALL, tmp_path / f"{i}", stages=stages, parallel_stages=parallel_stages, data=DATA, quiet=True)
        for i, (stages, parallel_stages) in enumerate(
            [(("rebrac", "dynamics", "reward"), 1), (("dynamics", "reward", "rebrac"), 3)]
        )
    ]
    train(SMALL, tmp_path / "2", stages=("rebrac",), data=DATA, quiet=True)
    equal.append(train(SMALL, tmp_path / "2", stages=("dynamics", "reward"), data=DATA, quiet=True))
    equal.append(
        train(
            SMALL,
            tmp_path / "3",
            stages=("dynamics",),
            data=DATA,
            quiet=True,
            policy=load_module(tmp_path / "2" / "actor.safetensors"),
        )
    )
    first, *others = ((folder / "dynamics.safetensors").read_bytes() for folder in equal)
    assert all(other == first for other in others)


def test_batched_seeds_tilt_towards_their_own_policies(tmp_path):
    folders = train_seeds(SMALL, (0, 1), tmp_path / "both", stages=("dynamics", "rebrac"), data=DATA, batched=True, quiet=True)
    for seed, folder in enumerate(folders):
        config = TrainConfig(**{**vars(SMALL), "seed": seed})
        alone = train(config, tmp_path / f"alone-{seed}", stages=("rebrac", "dynamics"), data=DATA, quiet=True)
        actual, expected = (load_module(f / "dynamics.safetensors").state_dict() for f in (folder, alone))
        for name, value in expected.items():
            torch.testing.assert_close(actual[name], value, rtol=1e-3, atol=1e-5)
