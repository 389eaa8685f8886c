"""What callers give: numbers of numpy and torch, seeds, and paths with `~`."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from jacrec import cli
from jacrec.control.config import MPCConfig
from jacrec.data import from_arrays, load, make_dataset
from jacrec.envs.batch import BatchedEnv
from jacrec.evaluation.config import EvalConfig, PlayConfig
from jacrec.evaluation.live import LiveConfig
from jacrec.evaluation.rehearsal import RehearsalConfig
from jacrec.experimental import FisherStep, Gated
from jacrec.experimental.config import ExperimentalConfig
from jacrec.models import io
from jacrec.models.dynamics.sampler import Sampler
from jacrec.models.networks import Actor
from jacrec.online.config import DeployConfig, RefreshConfig, ReplayConfig
from jacrec.planners import PlannerConfig
from jacrec.training.config import DynamicsConfig, ReBRACConfig, RewardConfig, TrainConfig
from jacrec.training.run import load_run, train
from jacrec.util.errors import check_fields
from jacrec.util.files import user_path
from tests.training_data import linear_system


@pytest.mark.parametrize("number", [np.float32(0.5), np.array(0.5), torch.tensor(0.5), torch.tensor(0.5, requires_grad=True)])
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (MPCConfig, "lr"),
        (MPCConfig, "max_action_change"),
        (PlannerConfig, "noise_std"),
        (LiveConfig, "speed"),
        (RehearsalConfig, "data_range"),
        (RefreshConfig, "share"),
        (ReplayConfig, "sync_seconds"),
        (DeployConfig, "step_seconds"),
        (EvalConfig, "h0_lr"),
        (ReBRACConfig, "tau"),
        (DynamicsConfig, "lr"),
        (RewardConfig, "lr"),
        (TrainConfig, "held_out"),
        (ExperimentalConfig, "damping"),
        (FisherStep, "damping"),
        (Gated, "min_signal"),
        (Sampler, "eta"),
    ],
)
def test_numbers_without_axes_are_numbers(kind, name, number):
    value = getattr(kind(**{name: number}), name)
    assert (type(value), value) == (float, 0.5)


def test_counts_and_tuples_become_pythons_own():
    config = MPCConfig(horizon=np.int64(3), particles=torch.tensor(4), updates=np.array(2), seed=np.uint8(7))
    json.dumps(asdict(config))
    assert config == MPCConfig(horizon=3, particles=4, updates=2, seed=7)
    assert json.dumps(RewardConfig(hidden=tuple(np.arange(2, 4))).hidden) == "[2, 3]"


def test_arrays_with_axes_stay_what_they_are():
    @dataclass(frozen=True)
    class Own:
        values: np.ndarray

    own = Own(np.ones(1))
    check_fields(own)
    assert own.values.shape == (1,)
    with pytest.raises(ValueError, match=r"lr: expected a number, got array\(\[0\.1\]\)"):
        MPCConfig(lr=np.array([0.1]))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (MPCConfig, "seed"),
        (PlannerConfig, "seed"),
        (PlayConfig, "seed"),
        (LiveConfig, "seed"),
        (RehearsalConfig, "rehearsal.seed"),
        (RefreshConfig, "seed"),
        (DeployConfig, "seed"),
        (TrainConfig, "seed"),
    ],
)
@pytest.mark.parametrize("seed", [-1, 2**64, 0.5, True])
def test_seeds_are_natural_numbers(kind, name, seed):
    with pytest.raises(ValueError, match=rf"^{name}: expected an integer( .*)?, got {seed}$"):
        kind(seed=seed)


def test_seeds_are_checked_wherever_they_are_given(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"^seed: expected an integer >= 0, got -1"):
        make_dataset("hopper", "random", steps=100, seed=-1)
    with pytest.raises(ValueError, match=r"^seeds: expected integers >= 0, got -1"):
        BatchedEnv("Hopper-v4", 1).reset([-1])
    with pytest.raises(ValueError, match=r"^seed: expected an integer >= 0, got -1"):
        linear_system().split(0.5, -1)


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/runs") == tmp_path / "runs"
    assert user_path("runs/~") == Path("runs/~")
    assert user_path("~nobody-of-that-name/x") == Path("~nobody-of-that-name/x")
    monkeypatch.chdir(tmp_path)
    io.save_module(Actor(3, 1, (4,)), "~/actor.safetensors")
    assert io.load_module("~/actor.safetensors").state_dim == 3
    np.savez(
        tmp_path / "mine.npz",
        observations=np.zeros((4, 2)),
        actions=np.zeros((4, 1)),
        rewards=np.zeros(4),
        terminals=np.array([0, 1, 0, 1]),
        timeouts=np.zeros(4),
    )
    assert len(load("~/mine.npz")) == 2
    train(
        TrainConfig(data="x", rebrac=ReBRACConfig(hidden=(4,), updates=1, batch_size=4)),
        "~/run",
        stages=["rebrac"],
        data=linear_system(),
        quiet=True,
    )
    assert (tmp_path / "run" / "actor.safetensors").is_file()
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "run")):
        load_run("~/run")
    assert not (tmp_path / "~").exists()


def test_a_tilde_that_the_shell_left_is_expanded(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cli.main(["eval", "~/nothing"]) == 2
    assert str(tmp_path / "nothing") in capsys.readouterr().err
    assert cli.main(["train", "x", "--settings=~/none.yaml"]) == 2
    assert str(tmp_path / "none.yaml") in capsys.readouterr().err


def test_a_single_episode_is_one_sentence(tmp_path):
    rows = np.zeros((20, 2), np.float32)
    data = from_arrays(rows, rows[:, :1], rows[:, 0], np.zeros(20, bool))
    with pytest.raises(ValueError, match=r"at least two episodes, got 1; .*ends"):
        train(TrainConfig(data="x"), tmp_path / "run", data=data, quiet=True)
    assert not (tmp_path / "run").exists()
