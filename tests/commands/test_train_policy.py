"""`jacrec train --policy`: two models for a policy of another library, in a folder that is a run."""

import h5py
import numpy as np
import pytest
import torch
from torch import nn

import jacrec
from jacrec import MPC, MPCConfig, cli
from jacrec.adapters import from_cleanrl, from_corl
from jacrec.training import load_run
from tests.adapters import test_cleanrl, test_corl
from tests.commands.test_cli import TINY

D, M = 3, 1
MODELS = [*TINY[TINY.index("--dynamics.hidden") :], "--env-id", "Pendulum-v1", "--action-low", "-2", "--action-high", "2"]
PLAY = ["--episodes", "1", "--mpc.horizon", "1", "--mpc.particles", "2"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Random torques on pendulums, in D4RL's layout."""
    rng, n, path = np.random.default_rng(0), 300, tmp_path_factory.mktemp("data") / "pendulum.hdf5"
    angle = rng.uniform(-3, 3, n)
    with h5py.File(path, "w") as file:
        file["observations"] = np.stack([np.cos(angle), np.sin(angle), rng.uniform(-8, 8, n)], 1).astype(np.float32)
        file["actions"] = rng.uniform(-2, 2, (n, M)).astype(np.float32)
        file["rewards"] = -np.square(angle).astype(np.float32)
        file["terminals"], file["timeouts"] = np.zeros(n, bool), np.arange(n) % 50 == 49
    return str(path)


@pytest.fixture
def run(monkeypatch, tmp_path, data, capsys):
    """`jacrec train` on the data; its exit code and what it printed."""
    monkeypatch.chdir(tmp_path)

    def train(*args):
        code = cli.main(["train", data, *MODELS, "--out", "run", *args])
        return code, capsys.readouterr()

    return train


def cleanrl_file(path, high=2.0):
    torch.manual_seed(0)
    buffers = {"action_scale": torch.full((M,), high), "action_bias": torch.zeros(M)}
    nets = test_cleanrl.Net(D, {"fc_mu": M}, **buffers), *(test_cleanrl.Net(D + M, {"fc3": 1}) for _ in range(2))
    torch.save([net.state_dict() for net in nets], path)
    return path


def corl_file(path):
    torch.manual_seed(0)
    nets = {"actor": test_corl.Net(D, M, nn.Tanh())} | {f"critic_{i}": test_corl.Net(D + M, 1) for i in (1, 2)}
    torch.save(test_corl.checkpoint(nets), path)
    return path


def same(a, b):
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def test_the_folder_is_a_run_of_that_policy(run, capsys, tmp_path):
    file = cleanrl_file(tmp_path / "td3.cleanrl_model")
    code, printed = run("--policy", str(file), "--policy-discount", "0.98", "--log", "csv")
    assert (code, printed.err) == (0, "")
    assert "next: jacrec eval run" in printed.out
    parts, trained = from_cleanrl(file), load_run("run")
    assert same(parts.policy, trained.policy)
    assert same(parts.critic, trained.world.critic)
    assert (trained.world.discount, trained.config.rebrac.updates) == (0.98, 0)
    assert list((tmp_path / "run/tracking").rglob("*dynamics.csv"))
    assert run("--policy", str(file), "--policy-discount", "0.98")[0] == 0  # finished: as it is
    assert cli.main(["eval", "run", *PLAY, "--no-video"]) == 0
    assert cli.main(["report", "run"]) == 0
    assert "A policy that was trained elsewhere" in (tmp_path / "run/report.md").read_text()
    # a controller of it is another such file
    jacrec.save(MPC(trained.policy, trained.world, MPCConfig(horizon=1, particles=2), batch=2), "controller.safetensors")
    assert run("--policy", "controller.safetensors", "--out", "again")[0] == 0
    assert same(parts.policy, load_run("again").policy)
    assert load_run("again").world.discount == 0.98


def test_statistics_of_the_data(run, data, tmp_path, capsys):
    file = corl_file(tmp_path / "checkpoint.pt")
    with h5py.File(data) as content, h5py.File(tmp_path / "unit.hdf5", "w") as own:
        for name, values in content.items():
            own[name] = values[...] / 2 if name == "actions" else values[...]
        kept = content["observations"][...][np.arange(300) % 50 != 49].astype(np.float64)
    unit = ["train", "unit.hdf5", *MODELS[:-4], "--out", "run", "--policy", str(file)]
    assert cli.main(unit) == 2
    assert "state_mean, state_std: expected those" in capsys.readouterr().err
    assert cli.main([*unit, "--policy-statistics", "data"]) == 0
    assert same(from_corl(file, state_mean=kept.mean(0), state_std=kept.std(0) + 1e-3).policy, load_run("run").policy)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--extend"], "--extend: expected the default with --policy"),
        (["--stages", "dynamics"], "--stages: expected the default with --policy"),
        (["--rebrac.updates", "5"], "--rebrac.updates: expected a setting of a training for a policy from elsewhere"),
        (["--policy-statistics", "v.pkl"], "vec_normalize: expected none but for a model of Stable-Baselines3, got v.pkl"),
        (["--policy-statistics", "data"], "state_mean, state_std, max_action: expected none but for a checkpoint of CORL"),
        (
            ["--action-low", "-3", "--action-high", "3"],
            "actions in [-1, 1] stand for [-3, 3], as in the data, got one for [-2, 2]",
        ),
    ],
)
def test_what_it_refuses(run, tmp_path, args, message):
    code, printed = run("--policy", str(cleanrl_file(tmp_path / "td3.cleanrl_model")), *args)
    assert code == 2
    assert message in " ".join(printed.err.split())
    assert not (tmp_path / "run").exists()


def test_files_that_are_none(run, tmp_path):
    code, printed = run("--policy", "none.zip")
    assert (code, "no policy at none.zip" in printed.err) == (2, True)
    (tmp_path / "text.zip").write_text("no weights")
    assert "expected tensors that torch.save wrote" in run("--policy", "text.zip")[1].err
    torch.save(nn.Linear(1, 1), "module.pt")
    told = run("--policy", "module.pt")[1].err
    assert "module.pt: expected tensors that torch.save wrote, got something else (other objects than tensors)" in told
    assert "weights_only" not in told
    assert "--policy-discount: expected the default without --policy" in run("--policy-discount", "0.9")[1].err
