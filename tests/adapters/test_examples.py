"""The example and the guide's lines for Stable-Baselines3 run; trainings are cut to a moment here."""

import re
import subprocess
import sys
from dataclasses import replace

import pytest

import jacrec.training
from jacrec.evaluation import policies
from tests import ROOT

sb3 = pytest.importorskip("stable_baselines3", reason="needs stable-baselines3, pip install 'jacrec[sb3]'")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with sac.zip and replay_buffer.pkl."""
    folder = tmp_path_factory.mktemp("sac")
    model = sb3.SAC("MlpPolicy", "Pendulum-v1", policy_kwargs={"net_arch": [16, 16]}, seed=0, learning_starts=440).learn(450)
    model.save(folder / "sac.zip")
    model.save_replay_buffer(folder / "replay_buffer.pkl")
    return folder


def test_the_example(saved):
    brief = ["--updates", "20", "--episodes", "1", "--out", str(saved)]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(ROOT / "examples" / "sb3.py"), *brief], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "Pendulum-v1: 1 episodes" in done.stdout
    assert re.search(r"MPC +│? *-\d+", done.stdout), done.stdout


def test_the_guide(saved, tmp_path, monkeypatch, capsys):
    guide = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
    (block,) = [code for code in re.findall(r"```python\n(.*?)```", guide, re.DOTALL) if "stable_baselines3" in code]
    assert len([line for line in block.splitlines() if line.strip()]) <= 15
    train_world, evaluate_policy = jacrec.training.train_world, policies.evaluate_policy

    def train_briefly(data, out, *, config, **parts):
        short = replace(config, dynamics=replace(config.dynamics, updates=20), reward=replace(config.reward, updates=20))
        return train_world(data, tmp_path / "world", config=short, quiet=True, **parts)

    def evaluate_briefly(policy, world, env, config, **options):
        return evaluate_policy(policy, world, env, replace(config, episodes=1), **options)

    monkeypatch.chdir(saved)
    monkeypatch.setattr(jacrec.training, "train_world", train_briefly)
    monkeypatch.setattr(policies, "evaluate_policy", evaluate_briefly)
    exec(compile(block, "docs/guide.md", "exec"), {})
    assert re.search(r"MPC +│? *-\d+", capsys.readouterr().out)
