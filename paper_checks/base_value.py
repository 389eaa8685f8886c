"""The last term of the imagined return with the pretrained policy's action, Q(s̃_H, π_ψ₀(s̃_H)), against Q(s̃_H, π_ψ(s̃_H)).

    python paper_checks/base_value.py RUN --seed 7 --episodes 10

Plays every setting with `terminal="policy"` and `terminal="base"` on the same environment seeds and the same imagined noise. Prints
a table of gains over the base policy, and of what the base's action adds, ± standard errors over the episodes.
"""

import argparse
import contextlib
from dataclasses import replace

import numpy as np
import torch

from jacrec import MPC, MPCConfig
from jacrec.evaluation.config import PlayConfig
from jacrec.evaluation.contestant import open_env
from jacrec.evaluation.episodes import PolicyController, play
from jacrec.training import load_run

ONE = MPCConfig(horizon=3, particles=4, lr=1e-2, units="value")
SETTINGS = [
    replace(ONE, horizon=1),
    replace(ONE, horizon=1, lr=3e-2),
    replace(ONE, horizon=1, lr=1e-1),
    replace(ONE, lr=3e-3),
    ONE,
    replace(ONE, lr=3e-2),
    replace(ONE, horizon=5),
    replace(ONE, anchor=0.03),
    replace(ONE, anchor=0.03, lr=3e-2),
    replace(ONE, particles=1),
    replace(ONE, updates=3),
    replace(ONE, particles=16),
]


def shown(values: np.ndarray) -> str:
    """Mean ± standard error."""
    return f"{values.mean():+.1f} ± {values.std(ddof=1) / len(values) ** 0.5:.1f}"


def main() -> None:
    """Play the settings with either term."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("run", help="a run's folder, with a recorded value scale")
    parser.add_argument("--seed", type=int, default=7, help="environment seeds from 1000 times this")
    parser.add_argument("--episodes", type=int, default=10)
    options = parser.parse_args()
    torch.set_num_threads(1)
    run, config = load_run(options.run), PlayConfig(episodes=options.episodes, seed=options.seed)
    with contextlib.closing(open_env(run, config, threads=1)) as env:

        def scores(controller: MPC | PolicyController) -> np.ndarray:
            played = play(env, controller, config.seeds).returns
            found = run.info.score(played)
            return np.array(played if found is None else found)

        reference = scores(PolicyController(run.policy))
        print(f"base policy: {reference.mean():.1f}\n\n| H | M | E | α | β | π_ψ's action | π_ψ₀'s action | difference |")
        print("|---" * 8 + "|", flush=True)
        for own in SETTINGS:
            gains = [
                scores(MPC(run.policy, run.world, replace(own, terminal=terminal), batch=env.n)) - reference
                for terminal in ("policy", "base")
            ]
            told = (own.horizon, own.particles, own.updates, f"{own.lr:g}", f"{own.anchor:g}")
            found = *map(shown, gains), shown(gains[1] - gains[0])
            print(f"| {' | '.join(map(str, (*told, *found)))} |", flush=True)


if __name__ == "__main__":
    main()
