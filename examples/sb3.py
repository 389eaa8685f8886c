"""Better actions from a Stable-Baselines3 SAC on Pendulum-v1, by thinking before each action.

    pip install "jacrec[sb3]" && python examples/sb3.py     # five minutes on one core; again: seconds for what is there

A SAC of 5000 steps swings most pendulums up, but not all. The same networks, with a world model trained on the transitions in its replay
buffer, plan five steps ahead. Both play the same seeds.
"""

import argparse
from pathlib import Path

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
    if not buffer.is_file():
        sac = SAC("MlpPolicy", "Pendulum-v1", learning_rate=1e-3, seed=seed).learn(steps)
        sac.save(model)
        sac.save_replay_buffer(buffer)
    sac = SAC.load(model)
    sac.load_replay_buffer(buffer)
    return sac


def main() -> None:
    """Train or load, then compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5000, help="environment steps of the SAC's training")
    parser.add_argument("--seed", type=int, default=0, help="seed of the SAC's training")
    parser.add_argument(
        "--updates", type=int, default=20_000, help="gradient steps of the world model; half as many of the reward model"
    )
    parser.add_argument("--episodes", type=int, default=50, help="episodes of base policy and MPC, on the same seeds")
    parser.add_argument("--out", type=Path, default=Path("runs/sb3"), help="folder of networks and data")
    args = parser.parse_args()

    model = trained_sac(args.steps, args.seed, args.out)
    parts = from_sb3(model)
    data = transitions_from_sb3(model, env_id="Pendulum-v1")
    config = TrainConfig(
        dynamics=DynamicsConfig(kind="deterministic", hidden=(128, 128), updates=args.updates),
        reward=RewardConfig(hidden=(128, 128), updates=args.updates // 2, batch_size=256),
    )
    world = train_world(
        data, args.out / "world", policy=parts.policy, critic=parts.critic, discount=parts.discount, config=config
    )
    mpc = MPCConfig(horizon=5, particles=1, updates=5, lr=1e-4, carry="step")
    play = EvalConfig(episodes=args.episodes, mpc=mpc)
    print(table(evaluate_policy(parts.policy, world, "Pendulum-v1", play, action_box=parts.action_box)))


if __name__ == "__main__":
    main()
