"""When does the world model add to the critic? MPC against H = 0, each with its own step size, under conditions that weaken the critic.

    python paper_checks/world_model_adds.py critics RUN SHORT   # policy and critic of either run; SHORT: the same with fewer updates
    python paper_checks/world_model_adds.py shifts RUN          # weaker motors, a heavier torso; the world model refreshed or not

Step sizes are chosen on environment seeds from 7000 on, gains are reported on others from 42000 on. The world model is RUN's.
"""

import argparse
import contextlib
from collections.abc import Callable
from dataclasses import replace

import gymnasium
import numpy as np
import torch
from torch import nn

from jacrec import MPC, MPCConfig, World
from jacrec.data.transitions import Transitions
from jacrec.envs.batch import BatchedEnv
from jacrec.envs.physics import make_env, simulator
from jacrec.evaluation.episodes import PolicyController, play
from jacrec.models.networks import TwinCritic
from jacrec.models.world import value_scale
from jacrec.online.config import RefreshConfig
from jacrec.online.learn import refresh_part
from jacrec.training import Run, load_run
from jacrec.training.run import load_transitions
from jacrec.training.streams import derive_seed

H0 = [MPCConfig(horizon=0, particles=1, lr=lr, units="value") for lr in (3e-3, 1e-2, 3e-2, 1e-1)]
H3 = [MPCConfig(horizon=3, particles=4, lr=lr, units="value") for lr in (1e-2, 3e-2)]
CHOOSING, REPORTING, COLLECTING = (range(start, start + n) for start, n in ((7000, 5), (42000, 10), (8000, 4)))


class Contest:
    """Base policy, H = 0 and MPC in one environment."""

    def __init__(self, run: Run, make: Callable[[], gymnasium.Env] | str):
        self.run, self.make = run, make

    def scores(self, policy: nn.Module, world: World, own: MPCConfig | None, seeds: range) -> np.ndarray:
        """Normalised scores of the base policy (None) or a controller."""
        with contextlib.closing(BatchedEnv(self.make, len(seeds), threads=1)) as env:
            player = PolicyController(policy) if own is None else MPC(policy, world, own, batch=env.n)
            return np.array(self.run.info.score(play(env, player, list(seeds)).returns))

    def row(self, name: str, policy: nn.Module, world: World) -> None:
        """Choose either step size, and print what it gains on other seeds."""
        base, cells, gains = self.scores(policy, world, None, REPORTING), [], []
        for settings in (H0, H3):
            chosen = max(settings, key=lambda own: self.scores(policy, world, own, CHOOSING).mean())
            gains.append(self.scores(policy, world, chosen, REPORTING) - base)
            cells += [f"{chosen.lr:g}", shown(gains[-1])]
        print(f"| {name} | {base.mean():.1f} | {' | '.join(cells)} | {shown(gains[1] - gains[0])} |", flush=True)


def shown(values: np.ndarray) -> str:
    """Mean ± standard error."""
    return f"{values.mean():+.1f} ± {values.std(ddof=1) / len(values) ** 0.5:.1f}"


def critics(long: Run, short: Run) -> None:
    """Policies and critics of two lengths of training, and none."""
    contest, states = Contest(long, str(long.info.env_id)), torch.from_numpy(load_transitions(long.config).state[::10])
    for name, own in (("long", long), ("short", short)):
        for which, critic in (("long", long.world.critic), ("short", short.world.critic)):
            assert isinstance(critic, nn.Module)
            world = replace(long.world, critic=critic, value_scale=value_scale(own.policy, critic, states))
            contest.row(f"{name} | {which}", own.policy, world)
    contest.row("long | none: Q = 0", long.policy, replace(long.world, critic=nothing(long.world.critic)))


def nothing(critic: object) -> TwinCritic:
    """A critic that is 0 everywhere."""
    assert isinstance(critic, TwinCritic)
    zero = TwinCritic(**critic.config)  # pyright: ignore[reportArgumentType]
    for parameter in zero.parameters():
        nn.init.zeros_(parameter)
    return zero


def weaker() -> gymnasium.Env:
    """HalfCheetah whose motors have 60 % of their torque."""
    env = make_env("HalfCheetah-v4")
    simulator(env).model.actuator_gear[:] *= 0.6
    return env


def heavier() -> gymnasium.Env:
    """HalfCheetah whose torso weighs twice as much."""
    env = make_env("HalfCheetah-v4")
    model = simulator(env).model
    torso = model.body("torso").id
    model.body_mass[torso] *= 2
    model.body_inertia[torso] *= 2
    return env


def shifts(run: Run) -> None:
    """Changed bodies: the old world model, and one refreshed as `jacrec deploy` does after every 1000 steps of MPC."""
    for name, make in (("motors at 60 %", weaker), ("torso at 200 %", heavier)):
        contest = Contest(run, make)
        contest.row(f"{name} | old", run.policy, run.world)
        world, errors = refreshed(run, make)
        contest.row(f"{name} | refreshed ({errors})", run.policy, world)


def refreshed(run: Run, make: Callable[[], gymnasium.Env]) -> tuple[World, str]:
    """The run's world, refreshed on four episodes of MPC in the environment; and the one-step errors there."""
    data, config, online = load_transitions(run.config), run.config, RefreshConfig()
    kept, held_out = data.split(config.held_out, derive_seed(config.seed, "held out"))
    world, seen, told = run.world, [], ""
    for seed in COLLECTING:
        seen.append(collected(run, world, make, seed, data))
        arrays = {name: np.concatenate([getattr(own, name) for own in seen]) for name in ARRAYS}
        replay, parts = replace(data, **arrays, blind_ends=None), {}
        for part in ("dynamics", "reward"):
            present = getattr(world, part)
            parts[part], verdict = refresh_part(part, present, replay, config, online, seed, offline=(kept, held_out))
            if part == "dynamics":
                told = f"{told or f'{verdict.rmse[0]:.2f}'} → {verdict.rmse[1]:.2f}"
        world = replace(world, **parts)
    return world, f"one-step RMSE {told}"


ARRAYS = ("state", "action", "reward", "next_state", "next_action", "terminal", "has_next_action", "episode")


def collected(run: Run, world: World, make: Callable[[], gymnasium.Env], seed: int, like: Transitions) -> Transitions:
    """The transitions of an episode of MPC."""
    with contextlib.closing(BatchedEnv(make, 1, threads=1)) as env:
        mpc, state, rows = MPC(run.policy, world, H3[0], batch=1), env.reset([seed]), []
        mpc.new_episode()
        while not env.done.any():
            action = np.asarray(mpc.act(state))
            following, reward, *_ = env.step(action)
            rows.append((state[0], action[0], reward[0], following[0]))
            state = following
    s, a, r, s2 = (np.array(column, np.float32) for column in zip(*rows, strict=True))
    follows = np.arange(len(r)) < len(r) - 1
    return replace(
        like,
        state=s,
        action=a,
        reward=r,
        next_state=s2,
        next_action=np.roll(a, -1, 0),
        terminal=np.zeros(len(r), bool),
        has_next_action=follows,
        episode=np.full(len(r), seed),
        blind_ends=None,
    )


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("what", choices=("critics", "shifts"))
    parser.add_argument("run", help="a HalfCheetah run's folder, with a recorded value scale")
    parser.add_argument("short", nargs="?", help="the same with fewer updates")
    options = parser.parse_args()
    torch.set_num_threads(1)
    columns = "base | H = 0: α | gain | H = 3: α | gain | difference |"
    print(
        f"| {'policy | critic' if options.what == 'critics' else 'body | world model'} | {columns}\n{'|---' * 8}|", flush=True
    )
    if options.what == "critics":
        critics(load_run(options.run), load_run(options.short))
    else:
        shifts(load_run(options.run))


if __name__ == "__main__":
    main()
