"""`jacrec compile`: what it refuses, and what it compiles on a mocked GPU."""

from types import SimpleNamespace
from unittest import mock

import torch

from jacrec import Actor, DiffusionDynamics, RewardModel, TwinCritic, World, cli
from jacrec.commands import compile as verb
from jacrec.kernels import warmup
from jacrec.kernels.failures import KernelBuildError
from tests.benchmarks.mocked_gpu import mocked_gpu


def test_other_devices_are_refused(capsys):
    assert cli.main(["compile", "nowhere", "--device", "cpu"]) == 2
    assert "expected cuda or cuda:N, got cpu" in capsys.readouterr().err
    with mock.patch.object(torch.cuda, "is_available", return_value=False):
        assert cli.main(["compile", "nowhere"]) == 2
    assert "expected a CUDA GPU" in capsys.readouterr().err


def compile_on_a_mocked_gpu(**warm_up):
    """The verb's status, and its call of `warm_up`."""
    world = World(DiffusionDynamics(3, 2, (7,), steps=2), RewardModel(3, 2, (7,)), TwinCritic(3, 2, (7,)), 0.9)
    trained = SimpleNamespace(policy=Actor(3, 2, (7,)), world=world)
    with (
        mocked_gpu(),
        mock.patch.object(verb, "load_run", return_value=trained),
        mock.patch.object(warmup, "warm_up", **warm_up) as called,
    ):
        return verb.run(["run", "--horizon", "2", "3", "--particles", "1", "64", "--workers", "5"]), called.call_args


def test_every_size_is_compiled(capsys):
    status, call = compile_on_a_mocked_gpu(return_value=3.0)
    assert status == 0
    assert [(p.M, p.H) for p in call.args[0]] == [(1, 2), (64, 2), (1, 3), (64, 3)]
    assert call.kwargs == {"workers": 5}
    assert "4 sizes compiled in 3 s" in capsys.readouterr().out


def test_kernels_that_fail_are_named(capsys):
    error = KernelBuildError("warm-up: not compiled, while all others are: rollout_kernel (float32): PTXASError")
    assert compile_on_a_mocked_gpu(side_effect=error)[0] == 1
    printed = capsys.readouterr()
    assert "rollout_kernel (float32): PTXASError; Auto takes plain torch" in printed.err
    assert not printed.out
