"""Imagined returns and gains of runs against the real ones: can their world models judge a controller?

    python paper_checks/rehearsal_judgement.py RUN … --out FOLDER     # measure runs: FOLDER/RUN.json
    python paper_checks/rehearsal_choices.py FOLDER                   # what follows from them

Measured are (a) held-out episodes of the data, whose actions are replayed in the world model from their first states, (b) the base
policy's imagined and real returns, (c) the imagined and real paired gains of candidates, without a tuning.
"""

import argparse
import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jacrec import MPC, MPCConfig
from jacrec.envs.batch import BatchedEnv
from jacrec.envs.termination import termination
from jacrec.evaluation import rehearsal
from jacrec.evaluation.config import PlayConfig
from jacrec.evaluation.contestant import open_env
from jacrec.evaluation.episodes import Controller, PolicyController, play
from jacrec.evaluation.rehearsal import RehearsalConfig, rehearse
from jacrec.training import Run, load_run
from jacrec.training.run import load_transitions
from jacrec.training.streams import derive_seed

CANDIDATES = {"h0": MPCConfig(horizon=0, particles=1, units="value", lr=1e-2), **rehearsal.CANDIDATES}
LENGTHS = (10, 30, 100, 300, 1000)


class RewardedEnv:
    """An environment that keeps the rewards of every step."""

    def __init__(self, env: BatchedEnv):
        self.env, self.rewards = env, []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.env, name)

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, ...]:
        """A step of the environment."""
        result = self.env.step(actions)
        self.rewards.append(result[1])
        return result


def real_rewards(env: BatchedEnv, controller: Controller, seeds: list[int]) -> np.ndarray:
    """(n, T): rewards of the episodes of these seeds, 0 after their ends."""
    rewarded = RewardedEnv(env)
    play(rewarded, controller, seeds)  # pyright: ignore[reportArgumentType]
    rewards = np.stack(rewarded.rewards, 1)
    return np.pad(rewards, ((0, 0), (0, (env.max_episode_steps or 0) - rewards.shape[1])))


@torch.no_grad()
def replayed(run: Run) -> dict[str, Any]:
    """Returns of held-out episodes and of their actions in the world model, by truncated length."""
    data = load_transitions(run.config)
    _, held_out = data.split(run.config.held_out, derive_seed(run.config.seed, "held out"))
    episodes = [held_out.rows(held_out.episode == i) for i in np.unique(held_out.episode)]
    state = torch.from_numpy(np.stack([own.state[0] for own in episodes]))
    steps = max(map(len, episodes))
    imagined, real = np.zeros((2, len(episodes), steps))
    noise = torch.Generator().manual_seed(7)
    for t in range(steps):
        rows = [i for i, own in enumerate(episodes) if len(own) > t]
        action = torch.from_numpy(np.stack([episodes[i].action[t] for i in rows]))
        imagined[rows, t] = run.world.reward(state[rows], action).numpy()
        real[rows, t] = [episodes[i].reward[t] for i in rows]
        drawn = torch.randn((len(rows), *run.world.dynamics.noise_shape), generator=noise)
        state[rows] = run.world.dynamics(state[rows], action, drawn)
    long = {steps: [i for i, own in enumerate(episodes) if len(own) >= steps] for steps in LENGTHS}
    return {
        str(steps): {"imagined": imagined[rows, :steps].sum(1).tolist(), "real": real[rows, :steps].sum(1).tolist()}
        for steps, rows in long.items()
        if len(rows) >= 5
    }


def measure(path: str, imagined: int, real: int, steps: int) -> dict[str, Any]:
    """Everything about one run, ready for JSON."""
    run, settings = load_run(path), RehearsalConfig(steps=steps)
    seeds = [1000 * settings.seed + i for i in range(max(imagined, real))]
    ended = termination(str(run.info.env_id))
    with contextlib.closing(open_env(run, PlayConfig(episodes=imagined), threads=1)) as env:
        starts = env.reset(seeds[:imagined])
    found = rehearse(run.policy, run.world, starts, CANDIDATES, settings, ended=ended)
    played = {}
    with contextlib.closing(open_env(run, PlayConfig(episodes=real), threads=1)) as env:
        for name, own in {"base": None, **CANDIDATES}.items():
            player = PolicyController(run.policy) if own is None else MPC(run.policy, run.world, own, batch=env.n)
            rewards = real_rewards(env, player, seeds[:real])
            played[name] = {"returns": rewards.sum(1).tolist(), "truncated": rewards[:, :steps].sum(1).tolist()}
    first = torch.as_tensor(starts, dtype=torch.float32)
    with torch.no_grad():
        value = run.world.critic(first, run.policy(first)).mean().item()
    assert run.info.ref_min is not None
    assert run.info.ref_max is not None
    return {
        "run": Path(path).name,
        "data": run.info.name,
        "seed": run.config.seed,
        "point": (run.info.ref_max - run.info.ref_min) / 100,
        "value": value,
        "replay": replayed(run),
        "rehearsal": found.record(),
        "real": played,
    }


def main() -> None:
    """Measure the runs."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("runs", nargs="+", help="folders of runs with a recorded value scale")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--imagined", type=int, default=8, help="imagined episodes")
    parser.add_argument("--steps", type=int, default=400, help="their length")
    parser.add_argument("--real", type=int, default=4, help="real episodes, on environment seeds from 7000")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    for path in options.runs:
        record = measure(path, options.imagined, options.real, options.steps)
        (options.out / f"{record['run']}.json").write_text(json.dumps(record))


if __name__ == "__main__":
    main()
