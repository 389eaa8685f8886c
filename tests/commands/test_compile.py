"""`jacrec compile`: what it refuses, and what it compiles on a mocked GPU."""

from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch

from jacrec import Actor, DiffusionDynamics, RewardModel, TwinCritic, World, cli
from jacrec.commands import compile as verb
from jacrec.kernels import warmup


def test_other_devices_are_refused(capsys):
    assert cli.main(["compile", "nowhere", "--device", "cpu"]) == 2
    assert "expected cuda or cuda:N, got cpu" in capsys.readouterr().err
    with mock.patch.object(torch.cuda, "is_available", return_value=False):
        assert cli.main(["compile", "nowhere"]) == 2
    assert "expected a CUDA GPU" in capsys.readouterr().err


def test_every_size_is_compiled(capsys):
    world = World(DiffusionDynamics(3, 2, (7,), steps=2), RewardModel(3, 2, (7,)), TwinCritic(3, 2, (7,)), 0.9)
    trained = SimpleNamespace(policy=Actor(3, 2, (7,)), world=world)
    asked = verb.Compile(Path("run"), "cpu", (2, 3), (1, 64))
    # a GPU whose tensors are the CPU's
    with (
        mock.patch.object(verb.tyro, "cli", return_value=asked),
        mock.patch.object(verb.torch, "device", return_value=SimpleNamespace(type="cuda")),
        mock.patch.object(torch.cuda, "is_available", return_value=True),
        mock.patch.object(verb, "load_run", return_value=trained),
        mock.patch.object(verb, "unsupported_reason", return_value=None),
        mock.patch.object(warmup, "warm_up", return_value=3.0) as warm_up,
    ):
        assert verb.run([]) == 0
    assert [(p.M, p.H) for p in warm_up.call_args.args[0]] == [(1, 2), (64, 2), (1, 3), (64, 3)]
    assert "4 sizes compiled in 3 s" in capsys.readouterr().out
