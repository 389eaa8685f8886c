"""Better actions from a Stable-Baselines3 SAC on Pendulum-v1, by thinking before each action.

    pip install "jacrec[sb3]" && python examples/sb3.py     # some five minutes on one idle core; again: a minute

A SAC of 5000 steps swings most pendulums up, but not all. The same networks, with a world model trained on the transitions in its replay
buffer, plan five steps ahead. Both play the same seeds.
"""

from pathlib import Path

import tyro
from rich import print
from stable_baselines3 import SAC

from jacrec import MPCConfig
from jacrec.adapters import from_sb3, transitions_from_sb3
from jacrec.evaluation.config import EvalConfig
from jacrec.evaluation.policies import evaluate_policy
from jacrec.evaluation.results import table
from jacrec.training import DynamicsConfig, RewardConfig, TrainConfig, train_world


def trained_sac(steps: int, seed: int, folder: Path) -> SAC:
    """The SAC and its replay buffer, from the folder if they are there."""
    model, buffer = folder / "sac.zip", folder / "replay_buffer.pkl"
    folder.mkdir(parents=True, exist_ok=True)
    if not buffer.is_file():
        sac = SAC("MlpPolicy", "Pendulum-v1", learning_rate=1e-3, seed=seed).learn(steps)
        sac.save(model)
        sac.save_replay_buffer(buffer)
    sac = SAC.load(model)
    sac.load_replay_buffer(buffer)
    return sac


def main(
    steps: int = 5000, seed: int = 0, updates: int = 20_000, episodes: int = 50, out: Path = Path("runs/sb3"), threads: int = 1
) -> None:
    """Train or load a SAC of `steps` and two models of `updates`, and compare the SAC with MPC over `episodes`."""
    model = trained_sac(steps, seed, out)
    parts, data = from_sb3(model), transitions_from_sb3(model, env_id="Pendulum-v1")
    config = TrainConfig(
        dynamics=DynamicsConfig(kind="deterministic", hidden=(128, 128), updates=updates),
        reward=RewardConfig(hidden=(128, 128), updates=updates // 2, batch_size=256),
        threads=threads,
    )
    world = train_world(data, out / "world", policy=parts.policy, critic=parts.critic, discount=parts.discount, config=config)
    mpc = MPCConfig(horizon=5, particles=1, updates=5, lr=1e-4, carry="step")
    play = EvalConfig(episodes=episodes, mpc=mpc, threads=threads)
    print(table(evaluate_policy(parts.policy, world, "Pendulum-v1", play, action_box=parts.action_box)))


if __name__ == "__main__":
    tyro.cli(main)
