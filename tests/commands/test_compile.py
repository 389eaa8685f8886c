"""`jacrec compile`: what it refuses, and what it compiles on a mocked GPU."""

from types import SimpleNamespace
from unittest import mock

import torch

from jacrec import MPC, Actor, DiffusionDynamics, MPCConfig, RewardModel, TwinCritic, World, cli
from jacrec.commands import compile as verb
from jacrec.kernels import warmup
from jacrec.kernels.cpu.base import host
from jacrec.kernels.cpu.gradient import plans
from jacrec.kernels.failures import KernelBuildError
from jacrec.training.run import load_run
from tests.benchmarks.mocked_gpu import mocked_gpu


def test_other_devices_are_refused(capsys):
    assert cli.main(["compile", "nowhere", "--device", "mps"]) == 2
    assert "expected cpu, cuda or cuda:N, got mps" in capsys.readouterr().err
    with mock.patch.object(torch.cuda, "is_available", return_value=False):
        assert cli.main(["compile", "nowhere", "--device", "cuda"]) == 2
    assert "expected one that torch can use here, got 'cuda'" in capsys.readouterr().err


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


def test_a_process_after_it_compiles_nothing_of_a_run_that_ships(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["compile", "pretrained/halfcheetah-medium-expert", "--device", "cpu"]) == 0
    assert "compiled in" in capsys.readouterr().out
    for keep in (host.entry, plans.forget):
        getattr(keep, "cache_clear", keep)()
    monkeypatch.setattr(host._Compiled, "_compile_uncached", mock.Mock(side_effect=AssertionError("compiled")))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    run = load_run("pretrained/halfcheetah-medium-expert")
    MPC(run.policy, run.world, MPCConfig(horizon=5, particles=16, updates=2)).act(torch.zeros(17))


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
