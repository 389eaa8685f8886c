"""A continuation factor in the imagined return, V_j = r_j + γ c(s̃_{j+1}) V_{j+1}, against the plain return, after which a fall goes on.

    python paper_checks/continuation.py RUN --seed 7 --episodes 10

c is the task's own termination made smooth: for every limit of a healthy state, σ(distance to it / width), the width in standard
deviations of a step of that coordinate. log Π c is one more state of the world model, so that jacrec's engine needs no change; policy,
reward and critic are third-party modules then, which is slow. Prints gains over the base policy on the same seeds.
"""

import argparse
import contextlib
import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from jacrec import MPC, MPCConfig
from jacrec.evaluation.config import PlayConfig
from jacrec.evaluation.contestant import open_env
from jacrec.evaluation.episodes import PolicyController, play
from jacrec.models.dynamics import ChainDynamics
from jacrec.training import load_run

LIMITS = {"Hopper": ((0, 0.7, math.inf), (1, -0.2, 0.2)), "Walker2d": ((0, 0.8, 2.0), (1, -1.0, 1.0))}
"""coordinate, lowest and highest healthy value: height and angle of the torso"""
SETTINGS = [(3, 1e-2, "policy"), (5, 1e-2, "policy"), (3, 1e-2, "base"), (5, 1e-2, "base"), (5, 3e-2, "base")]
"""horizon, step size in units of mean |Q|, whose action the last term takes"""


class First(nn.Module):
    """A policy that sees the first d states."""

    def __init__(self, policy: nn.Module, d: int):
        super().__init__()
        self.policy, self.d = policy, d

    def forward(self, state: Tensor) -> Tensor:
        """(..., d + 1) -> (..., m)."""
        return self.policy(state[..., : self.d])


class Surviving(nn.Module):
    """Dynamics with log Π c as the last state."""

    def __init__(self, dynamics: ChainDynamics, limits: tuple[tuple[int, float, float], ...], width: float):
        super().__init__()
        self.dynamics, self.limits, self.width, self.d = dynamics, limits, width, dynamics.state_dim
        self.noise_shape = dynamics.noise_shape

    def forward(self, state: Tensor, action: Tensor, noise: Tensor) -> Tensor:
        """(..., d + 1), (..., m), noise -> (..., d + 1)."""
        following, total = self.dynamics(state[..., : self.d], action, noise), state[..., self.d]
        for i, low, high in self.limits:
            x, scale = following[..., i], self.width * self.dynamics.out_std[i]
            total = total + logsigmoid((x - low) / scale) + logsigmoid((high - x) / scale)
        return torch.cat([following, total.unsqueeze(-1)], -1)


class Weighted(nn.Module):
    """A reward or critic times Π c."""

    def __init__(self, value: nn.Module, d: int):
        super().__init__()
        self.value, self.d = value, d

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        """(..., d + 1), (..., m) -> (...)."""
        return torch.exp(state[..., self.d]) * self.value(state[..., : self.d], action)


class Padded:
    """A controller of d + 1 states, the last of which is observed as 0."""

    def __init__(self, mpc: MPC):
        self.mpc, self.new_episode = mpc, mpc.new_episode

    def act(self, observation: np.ndarray) -> np.ndarray:
        """(N, d) -> (N, m)."""
        return self.mpc.act(np.pad(observation, ((0, 0), (0, 1))))


def main() -> None:
    """Play the settings with and without the factor."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("run", help="a run's folder, of Hopper or Walker2d, with a recorded value scale")
    parser.add_argument("--seed", type=int, default=7, help="environment seeds from 1000 times this")
    parser.add_argument("--episodes", type=int, default=10)
    parser.add_argument("--widths", type=float, nargs="*", default=[1.0, 2.0, 4.0])
    options = parser.parse_args()
    torch.set_num_threads(1)
    run, config = load_run(options.run), PlayConfig(episodes=options.episodes, seed=options.seed)
    f, reward, critic = run.world.dynamics, run.world.reward, run.world.critic
    assert isinstance(f, ChainDynamics)
    assert isinstance(reward, nn.Module)
    assert isinstance(critic, nn.Module)
    d = f.state_dim
    with contextlib.closing(open_env(run, config, threads=1)) as env:
        limits = LIMITS[env.env_id.partition("-")[0]]

        def scores(controller: MPC | Padded | PolicyController) -> tuple[np.ndarray, float]:
            played = play(env, controller, config.seeds)
            found = run.info.score(played.returns)
            return np.array(played.returns if found is None else found), float(np.mean(played.lengths))

        reference, steps = scores(PolicyController(run.policy))
        print(f"base policy: {reference.mean():.1f}, {steps:.0f} steps", flush=True)
        for horizon, lr, terminal in SETTINGS:
            own = MPCConfig(horizon=horizon, particles=4, lr=lr, units="value", terminal=terminal)
            for width in (None, *options.widths):
                if width is None:
                    controller = MPC(run.policy, run.world, own, batch=env.n)
                else:
                    world = replace(
                        run.world,
                        dynamics=Surviving(f, limits, width),
                        reward=Weighted(reward, d),
                        critic=Weighted(critic, d),
                    )
                    controller = Padded(MPC(First(run.policy, d), world, own, batch=env.n))
                found, steps = scores(controller)
                gain, name = found - reference, "none" if width is None else f"width {width:g}"
                error = gain.std(ddof=1) / len(gain) ** 0.5
                told = f"H = {horizon}, α = {lr:g}, last action of the {terminal}, c: {name}"
                print(f"{told}: {gain.mean():+.1f} ± {error:.1f}, {steps:.0f} steps", flush=True)


if __name__ == "__main__":
    main()
