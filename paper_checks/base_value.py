"""The last term of the imagined return with the pretrained policy's action, Q(s̃_H, π_ψ₀(s̃_H)), against Q(s̃_H, π_ψ(s̃_H)).

    python paper_checks/base_value.py RUN --seed 7 --episodes 10

The critic that ignores its action is a third-party one, so this is slow. Prints gains over the base policy on the same seeds.
"""

import argparse
import contextlib
import copy
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from jacrec import MPC, MPCConfig
from jacrec.evaluation.config import PlayConfig
from jacrec.evaluation.contestant import open_env
from jacrec.evaluation.episodes import PolicyController, play
from jacrec.training import load_run

SETTINGS = [(3, 3e-3), (3, 1e-2), (3, 3e-2), (5, 1e-2), (1, 1e-2)]
"""horizon and step size in units of mean |Q|"""


class BaseValue(nn.Module):
    """Q(s, π₀(s)), whatever the action."""

    def __init__(self, critic: nn.Module, base: nn.Module):
        super().__init__()
        self.critic, self.base = critic, base

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        """(..., d), (..., m) -> (...)."""
        return self.critic(state, self.base(state))


def main() -> None:
    """Play the settings with either term."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("run", help="a run's folder, with a recorded value scale")
    parser.add_argument("--seed", type=int, default=7, help="environment seeds from 1000 times this")
    parser.add_argument("--episodes", type=int, default=10)
    options = parser.parse_args()
    torch.set_num_threads(1)
    run, config = load_run(options.run), PlayConfig(episodes=options.episodes, seed=options.seed)
    assert isinstance(run.world.critic, nn.Module)
    base = copy.deepcopy(run.policy).requires_grad_(False)
    worlds = {"policy": run.world, "base": replace(run.world, critic=BaseValue(run.world.critic, base))}
    with contextlib.closing(open_env(run, config, threads=1)) as env:

        def returns(controller: MPC | PolicyController) -> np.ndarray:
            played = play(env, controller, config.seeds).returns
            scores = run.info.score(played)
            return np.array(played if scores is None else scores)

        reference = returns(PolicyController(run.policy))
        print(f"base policy: {reference.mean():.1f}")
        for horizon, lr in SETTINGS:
            for name, world in worlds.items():
                own = MPCConfig(horizon=horizon, particles=4, lr=lr, units="value")
                gain = returns(MPC(run.policy, world, own, batch=env.n)) - reference
                error = gain.std(ddof=1) / len(gain) ** 0.5
                print(f"H = {horizon}, lr = {lr:g}, last action of the {name}: {gain.mean():+.2f} ± {error:.2f}", flush=True)


if __name__ == "__main__":
    main()
