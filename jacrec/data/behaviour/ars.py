"""Linear behaviour policies by augmented random search (ARS V2-t), the source of the snapshots in behaviour.yaml.

    python -m jacrec.data.behaviour.ars hopper --seconds 60 --seed 0 --out snapshots.yaml

Mania, Guy and Recht, "Simple random search provides a competitive approach to reinforcement learning" (2018),
Algorithm 2: the policy is linear in standardised states; every iteration evaluates `directions` random perturbations with
both signs, and the `top` best of them determine the step.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jacrec.data.behaviour.linear_policy import ENVIRONMENTS, LinearPolicy, Snapshot, save_snapshots
from jacrec.envs.batch import BatchedEnv


@dataclass(frozen=True)
class SearchSettings:
    """Hyperparameters of ARS, with the paper's symbols."""

    directions: int
    """N, perturbations per iteration, each evaluated with both signs"""
    top: int
    """b, number of perturbations used in the step"""
    step: float
    """alpha, step size"""
    noise: float
    """nu, standard deviation of the perturbations"""
    search_noise: float
    """standard deviation of the Gaussian action noise during the search: it makes HalfCheetah's policies robust, and prevents
    Hopper from learning to stand"""
    action_noise: float
    """standard deviation of the action noise when snapshots are evaluated and data are collected"""
    survival_reward: float = 0.0
    """the environment's reward per step for staying healthy, subtracted during the search"""
    every: int = 2
    """iterations between snapshots"""
    evaluations: int = 16
    """evaluation episodes per snapshot"""


SETTINGS = {
    "hopper": SearchSettings(
        directions=16, top=8, step=0.02, noise=0.03, search_noise=0.0, action_noise=0.1, survival_reward=1.0
    ),
    "halfcheetah": SearchSettings(directions=32, top=16, step=0.02, noise=0.03, search_noise=0.2, action_noise=0.2, every=1),
}


class RunningMoments:
    """Running mean and standard deviation over all states, (d,) each (Chan's update)."""

    def __init__(self, size: int):
        self.count, self.mean, self._m2 = 0, np.zeros(size), np.zeros(size)

    def update(self, rows: np.ndarray) -> None:
        """Add rows (n, d)."""
        n, mean = len(rows), rows.mean(0)
        total, delta = self.count + n, mean - self.mean
        self._m2 += ((rows - mean) ** 2).sum(0) + delta**2 * self.count * n / total
        self.mean = self.mean + delta * n / total
        self.count = total

    @property
    def std(self) -> np.ndarray:
        """(d,); 1 for constant coordinates and before there are two rows."""
        std = np.sqrt(self._m2 / max(self.count, 1))
        return np.where(std > 1e-8, std, 1.0)


def rollouts(
    env: BatchedEnv,
    gains: np.ndarray,
    biases: np.ndarray,
    seeds: np.ndarray,
    rng: np.random.Generator,
    *,
    action_noise: float = 0.0,
    survival_reward: float = 0.0,
    shared: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Run one episode per row of `env` under clip(clip(gains[i] s + biases[i], ±1) + action_noise n, ±1).

    gains (n, m, d), biases (n, m), seeds (n,). The noise repeats every n / `shared` rows. Returns the undiscounted returns
    (n,), less `survival_reward` per step, and the visited states (total steps, d).
    """
    state = env.reset(seeds)
    total, seen = np.zeros(env.n), []
    running = ~env.done
    while running.any():
        seen.append(state[running])
        action = np.clip(np.einsum("nmd,nd->nm", gains, state) + biases, -1.0, 1.0)
        if action_noise:
            draws = np.tile(rng.standard_normal((env.n // shared, env.action_dim)), (shared, 1))
            action = np.clip(action + action_noise * draws, -1.0, 1.0)
        state, reward, _, _ = env.step(action)
        total += reward - survival_reward * running
        running = ~env.done
    return total, np.concatenate(seen)


def search(
    env_id: str,
    settings: SearchSettings,
    *,
    seed: int,
    seconds: float = float("inf"),
    iterations: int | None = None,
    threads: int | None = None,
    report: Callable[[Snapshot], None] | None = None,
) -> list[Snapshot]:
    """Search until `seconds` or `iterations` are exhausted; evaluate a snapshot every `settings.every` iterations.

    The first snapshot is the untrained policy. The search is reproducible: the n-th snapshot depends on `seed` alone, and
    the limits determine only how many there are.

    Raises:
        ValueError: neither limit is given.
    """
    if iterations is None and seconds == float("inf"):
        raise ValueError("search: expected seconds or iterations as a limit, got neither")
    rng = np.random.default_rng(seed)
    directions = settings.directions
    env = BatchedEnv(env_id, 2 * directions, threads=threads)
    evaluation_env = BatchedEnv(env_id, settings.evaluations, threads=threads)
    weight = np.zeros((env.action_dim, env.state_dim))
    moments = RunningMoments(env.state_dim)
    snapshots: list[Snapshot] = []
    began, iteration = time.monotonic(), 0
    while True:
        if iteration % settings.every == 0:
            snapshots.append(_measure(evaluation_env, weight, moments, iteration, settings.action_noise))
            if report is not None:
                report(snapshots[-1])
        if time.monotonic() - began > seconds or iteration == iterations:
            break
        delta = rng.standard_normal((directions, *weight.shape))
        trial = weight + settings.noise * np.concatenate((delta, -delta))  # (2N, m, d)
        gains, biases = _on_raw_states(trial, moments)
        # both signs of a direction share the start state and the noise
        seeds = np.tile(rng.integers(2**31, size=directions), 2)
        options = {"action_noise": settings.search_noise, "survival_reward": settings.survival_reward, "shared": 2}
        returns, seen = rollouts(env, gains, biases, seeds, rng, **options)
        moments.update(seen)
        plus, minus = returns[:directions], returns[directions:]
        best = np.argsort(-np.maximum(plus, minus))[: settings.top]
        scale = np.concatenate((plus[best], minus[best])).std()
        if scale > 0:
            direction = np.einsum("n,nmd->md", plus[best] - minus[best], delta[best])
            weight = weight + settings.step / (settings.top * scale) * direction
        iteration += 1
    env.close()
    evaluation_env.close()
    return snapshots


def select_snapshots(snapshots: list[Snapshot], count: int) -> list[Snapshot]:
    """At most `count` of the snapshots that set a new record, evenly spaced in return from the first to the best."""
    returns = np.array([snapshot.mean_return for snapshot in snapshots])
    records = np.flatnonzero(returns >= np.maximum.accumulate(returns))
    goals = np.linspace(returns[0], returns.max(), count)
    chosen = {int(records[np.argmin(np.abs(returns[records] - goal))]) for goal in goals}
    return [snapshots[i] for i in sorted(chosen)]


def _on_raw_states(weight: np.ndarray, moments: RunningMoments) -> tuple[np.ndarray, np.ndarray]:
    """Gains and biases on raw states from weights on standardised states: W (s - mean) / std = K s + b."""
    gain = weight / moments.std
    return gain, -gain @ moments.mean


def _measure(
    evaluation_env: BatchedEnv, weight: np.ndarray, moments: RunningMoments, iteration: int, action_noise: float
) -> Snapshot:
    # rounded before evaluation, so that the stored numbers are the ones evaluated
    gain, bias = (np.round(part, 4) for part in _on_raw_states(weight, moments))
    n, rng = evaluation_env.n, np.random.default_rng(iteration)
    gains, biases, seeds = np.tile(gain, (n, 1, 1)), np.tile(bias, (n, 1)), 10_000 + np.arange(n)
    returns, _ = rollouts(evaluation_env, gains, biases, seeds, rng, action_noise=action_noise)
    return Snapshot(iteration, LinearPolicy(gain, bias), float(returns.mean()), float(returns.std()))


def main(arguments: list[str] | None = None) -> None:
    """Command line: search, print the learning curve, write the selected snapshots."""
    parser = argparse.ArgumentParser(description="find linear behaviour policies by augmented random search")
    parser.add_argument("env", choices=sorted(SETTINGS))
    parser.add_argument("--seconds", type=float, default=60.0, help="time limit (default: 60)")
    parser.add_argument("--iterations", type=int, default=None, help="iteration limit instead of a time limit (reproducible)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--snapshots", type=int, default=8, help="snapshots to keep (default: 8)")
    parser.add_argument("--threads", type=int, default=None, help="MuJoCo threads (default: all processors)")
    parser.add_argument("--out", type=Path, required=True, help="YAML file to write")
    options = parser.parse_args(arguments)
    began = time.monotonic()

    def report(snapshot: Snapshot) -> None:
        elapsed = time.monotonic() - began
        print(f"{elapsed:6.0f} s  iteration {snapshot.iteration:5d}  return {snapshot.mean_return:8.1f}", flush=True)

    env_id, settings = ENVIRONMENTS[options.env], SETTINGS[options.env]
    seconds = options.seconds if options.iterations is None else float("inf")
    limits = {"seconds": seconds, "iterations": options.iterations}
    found = search(env_id, settings, seed=options.seed, threads=options.threads, report=report, **limits)
    kept = select_snapshots(found, options.snapshots)
    last = found[-1].iteration
    command = f"python -m jacrec.data.behaviour.ars {options.env} --iterations {last} --seed {options.seed}"
    save_snapshots(options.out, options.env, kept, settings.action_noise, command)
    print(f"{options.out}: {len(kept)} of {len(found)} snapshots, best return {kept[-1].mean_return:.0f}")


if __name__ == "__main__":
    main()
