"""Train soft actor-critic behaviour as D4RL's was (Fu et al. 2020, rlkit's SAC), with snapshots for `jacrec.data.behaviour.sac`.

    pip install "jacrec[behaviour]"
    python -m jacrec.data.behaviour.train_sac halfcheetah --steps 1000000 --out sac/halfcheetah
    python -m jacrec.data.behaviour.train_sac halfcheetah --out sac/halfcheetah --pack jacrec/data/behaviour/snapshots

Actor and two critics of 2×256 ReLU units, Adam 3e-4, batches of 256, γ 0.99, target rate 5e-3, automatic temperature, 1000 random
steps, then 1000 environment steps and 1000 updates in turn. The environment has the data sets' contact physics. Interrupted
trainings are resumed from the last snapshot, though not bit-identically: the environment starts anew. A training may stay in a local optimum for long; another --seed may not.
"""

import argparse
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from jacrec.data.behaviour.sac import ENVIRONMENTS, SquashedGaussian, pack_snapshots
from jacrec.envs.physics import make_env

EPOCH = 1000
EPISODES = 10
"""episodes in which a snapshot's return is measured"""
EARLY = (10_000, 25_000, 50_000, 75_000)
EVERY = 50_000


def snapshot_steps(steps: int) -> list[int]:
    """When snapshots are taken in a training of so many steps: often at first, when the policy changes fast."""
    found = {0, steps, *EARLY, *range(EVERY, steps + 1, EVERY)}
    return sorted(x for x in found if x <= steps)


def actor_arrays(parameters: dict[str, Any]) -> dict[str, np.ndarray]:
    """A flax actor's parameters by the names of `jacrec.data.behaviour.sac.WEIGHTS`, in float16."""
    layers = parameters["params"]
    names = {
        "Dense_0": ("W1", "b1"),
        "Dense_1": ("W2", "b2"),
        "Dense_2": ("W_mean", "b_mean"),
        "Dense_3": ("W_log_std", "b_log_std"),
    }
    found = {}
    for layer, (weight, bias) in names.items():
        found[weight], found[bias] = (np.asarray(layers[layer][key], np.float16) for key in ("kernel", "bias"))
    return found


def measured(env: Any, weights: dict[str, np.ndarray], seed: int) -> tuple[float, float]:
    """Mean and standard deviation of the return of the stochastic policy, with the rounded weights."""
    policy = SquashedGaussian({name: x.astype(np.float64) for name, x in weights.items()})
    rng, returns = np.random.default_rng(seed), []
    for _ in range(EPISODES):
        state, _ = env.reset(seed=int(rng.integers(2**31)))
        total, over = 0.0, False
        while not over:
            noise = rng.standard_normal((1, env.action_space.shape[0]))
            state, reward, terminated, truncated, _ = env.step(policy.sample(state[None], noise)[0])
            total, over = total + float(reward), terminated or truncated
        returns.append(total)
    return float(np.mean(returns)), float(np.std(returns))


def train(env_name: str, steps: int, seed: int, out: Path) -> None:
    """Train to `steps` environment steps, resuming from what is in `out`."""
    from sbx import SAC  # pyright: ignore[reportMissingImports]

    out.mkdir(parents=True, exist_ok=True)
    env, part = make_env(ENVIRONMENTS[env_name]), out / "part"
    kept = next((folder for folder in (out / "latest", out / "previous") if folder.is_dir()), None)
    if kept is not None:
        model = SAC.load(kept / "model.zip", env=env)
        model.load_replay_buffer(kept / "replay.pkl")
    else:
        model = SAC(
            "MlpPolicy",
            env,
            learning_rate=3e-4,
            batch_size=256,
            buffer_size=1_000_000,
            learning_starts=EPOCH,
            train_freq=EPOCH,
            gradient_steps=EPOCH,
            gamma=0.99,
            tau=0.005,
            policy_kwargs={"net_arch": [256, 256]},
            seed=seed,
        )
    for target in snapshot_steps(steps):
        file = out / f"{target:07d}.npz"
        if model.num_timesteps > target or (file.is_file() and model.num_timesteps == target):
            continue
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        if target > model.num_timesteps:
            model.learn(target - model.num_timesteps, reset_num_timesteps=False)
        weights = actor_arrays(model.policy.actor_state.params)
        returns = measured(make_env(ENVIRONMENTS[env_name]), weights, seed=target)
        np.savez(file, **weights, env_steps=target, stochastic_mean_std=np.array(returns))  # pyright: ignore[reportArgumentType]
        # the model and its buffer belong together, so that they change together: the folder of the latest is replaced
        latest, previous = out / "latest", out / "previous"
        model.save_replay_buffer(part / "replay.pkl")
        model.save(part / "model.zip")
        shutil.rmtree(previous, ignore_errors=True)
        if latest.is_dir():
            latest.rename(previous)
        part.rename(latest)
        print(f"{target} steps: return {returns[0]:.0f} ± {returns[1]:.0f}", flush=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("env", choices=ENVIRONMENTS)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder of the training and its snapshots")
    parser.add_argument("--pack", type=Path, help="instead of training: write the snapshots as one file into this folder")
    options = parser.parse_args()
    if options.pack:
        pack_snapshots(sorted(options.out.glob("[0-9]*.npz")), options.pack / f"{options.env}.npz")
    else:
        train(options.env, options.steps, options.seed, options.out)


if __name__ == "__main__":
    main()
