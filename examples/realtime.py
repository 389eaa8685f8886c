"""A control loop against the clock: one decision per period, as many updates as fit before the deadline.

    python examples/realtime.py                        # networks with random weights: the time is the same
    python examples/realtime.py --run runs/hopper      # a trained run

Use one thread on a machine that does other work.
"""

import time
from pathlib import Path

import gymnasium
import numpy as np
import torch
import tyro

from jacrec import MPC, Actor, DiffusionDynamics, MPCConfig, RewardModel, TwinCritic, World
from jacrec.training import load_run


def hopper(run: Path | None) -> tuple[Actor, World]:
    """Policy and world of a run on Hopper, or with random weights."""
    if run is not None:
        trained = load_run(run)
        return trained.policy, trained.world
    sizes = 11, 3
    return Actor(*sizes), World(DiffusionDynamics(*sizes, steps=5), RewardModel(*sizes), TwinCritic(*sizes), discount=0.99)


def main(run: Path | None = None, seconds: float = 5, deadline_ms: float = 7, updates: int = 100) -> None:
    """Play Hopper for `seconds` at its own rate of 125 actions per second."""
    torch.set_num_threads(1)
    policy, world = hopper(run)
    config = MPCConfig(horizon=3, particles=4, updates=updates, lr=1e-6, carry="step", deadline_ms=deadline_ms)
    mpc, env, made, took, late = MPC(policy, world, config), gymnasium.make("Hopper-v5"), [], [], 0
    mpc.warm_up()  # compiled code is loaded and timed before the first decision
    period, (observation, _) = env.unwrapped.dt, env.reset(seed=0)  # pyright: ignore[reportAttributeAccessIssue]
    due = time.perf_counter()
    for _ in range(int(seconds / period)):
        due += period
        begun = time.perf_counter()
        action = mpc.act(observation)
        took.append(1e3 * (time.perf_counter() - begun))
        made.append(len(mpc.last.objective) if mpc.last else 0)
        late += time.perf_counter() > due
        time.sleep(max(0.0, due - time.perf_counter()))
        observation, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            observation, _ = env.reset()
            mpc.new_episode()
    print(f"{len(took)} decisions, {late} late; median {np.median(took):.2f} ms, 99 % within {np.quantile(took, 0.99):.2f} ms")
    print(f"updates per decision: {np.mean(made):.1f}")


if __name__ == "__main__":
    tyro.cli(main)
