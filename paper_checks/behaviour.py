"""What the data made here are like, beside D4RL's: episodes and returns of every kind of Hopper, HalfCheetah and Walker2d.

    python paper_checks/behaviour.py --out paper_checks/results/behaviour.md

Sets are collected in memory (`jacrec data make ENV KIND --behaviour sac` writes the same ones). D4RL's numbers are those of its
published files; a dash where none is known to us.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from jacrec.data.behaviour.make import make_episodes
from jacrec.data.d4rl_files import KINDS, LOCOMOTION
from jacrec.data.references import reference_by_env

D4RL = {  # transitions, episodes, mean and standard deviation of the returns
    "halfcheetah-medium": (1_000_000, 1000, 4770, 356),
    "halfcheetah-medium-replay": (202_000, 202, 3093, 1681),
    "halfcheetah-expert": (1_000_000, 1000, 10656, 442),
    "hopper-medium": (999_906, 2187, 1422, 379),
    "hopper-medium-replay": (402_000, 2041, 467, 511),
    "hopper-full-replay": (1_000_000, 3515, 1160, None),
    "hopper-expert": (999_494, 1028, 3511, 329),
    "walker2d-medium": (999_995, 1191, 2852, 1095),
    "walker2d-medium-replay": (302_000, 1093, 683, 896),
    "walker2d-full-replay": (1_000_000, 1888, None, None),
    "walker2d-expert": (999_214, 1001, 4921, 136),
    "hopper-random": (1_000_000, 45_240, 18, None),
    "walker2d-random": (1_000_000, 48_908, 2, None),
}


TIME_LIMIT = 1000
"""of all three environments"""


def shown(steps: int, episodes: int, mean: float | None, std: float | None) -> str:
    """Cells of the table: returns and mean length of an episode."""
    spread = "–" if mean is None else f"{mean:.0f}" + ("" if std is None else f" ± {std:.0f}")
    return f"{spread} | {steps / episodes:.0f}"


def main() -> None:
    """Print or write the table."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--steps", type=int, default=100_000, help="transitions of each set")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a Markdown file; default: print")
    options = parser.parse_args()
    lines = [
        "# The data made here beside D4RL's",
        "",
        f"`python paper_checks/behaviour.py --steps {options.steps} --seed {options.seed}`: `jacrec data make ENV KIND --behaviour sac`,",
        "returns of whole episodes (mean ± standard deviation), mean length, and D4RL's normalised score of the mean. The behaviour comes",
        "from short trainings (100 000 to 600 000 steps of SAC; D4RL's: up to 3 000 000), so that most of these sets are weaker than D4RL's.",
        "",
        "| set | return here | length here | score here | return, D4RL | length, D4RL |",
        "|---|---|---|---|---|---|",
    ]
    for env, env_id in LOCOMOTION.items():
        reference = reference_by_env(env_id)
        assert reference is not None
        for kind in KINDS:
            behaviour = None if kind == "random" else "sac"
            episodes = make_episodes(env, kind, steps=options.steps, seed=options.seed, behaviour=behaviour)
            whole = [e for e in episodes if e.terminated or len(e) == TIME_LIMIT]  # the budget of steps cuts the others
            returns = np.array([episode.rewards.sum() for episode in whole])
            score = 100 * (returns.mean() - reference.ref_min) / (reference.ref_max - reference.ref_min)
            here = shown(sum(map(len, whole)), len(whole), float(returns.mean()), float(returns.std()))
            known = D4RL.get(f"{env}-{kind}")
            lines.append(f"| {env}-{kind} | {here} | {score:.1f} | {shown(*known) if known else '– | –'} |")
            print(lines[-1], file=sys.stderr, flush=True)
    text = "\n".join(lines) + "\n"
    if options.out is None:
        print(text, end="")
    else:
        options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
