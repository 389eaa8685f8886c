"""One row of a D4RL table: train several seeds on a data set, evaluate each, and print mean ± standard deviation over the seeds.

    jacrec data get hopper-medium-replay-v2 && python examples/d4rl_row.py hopper-medium-replay-v2     # most of a day per seed
    jacrec data make halfcheetah medium-replay --steps 20000
    python examples/d4rl_row.py jacrec/halfcheetah-medium-replay-v0 --updates 5000 --batch-size 256    # minutes: no policy yet

Interrupted, the same command resumes.
"""

from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import tyro
from tyro.conf import Positional

from jacrec import MPCConfig
from jacrec.evaluation.config import EvalConfig
from jacrec.evaluation.evaluate import evaluate
from jacrec.evaluation.results import compare
from jacrec.training import TrainConfig, train


def main(
    data: Positional[str],
    seeds: tuple[int, ...] = (10, 11),
    updates: int | None = None,
    batch_size: int | None = None,
    episodes: int = 10,
    out: Path = Path("runs/row"),
) -> None:
    """Train `seeds` on `data` (ReBRAC for `updates` of `batch_size`, the models for fewer) and play `episodes` with each."""
    config = TrainConfig.for_dataset(data)
    if updates is not None:
        few = {"updates": max(1, updates // 2)}
        rebrac = replace(config.rebrac, updates=updates)
        config = replace(config, rebrac=rebrac, dynamics=replace(config.dynamics, **few), reward=replace(config.reward, **few))
    if batch_size is not None:
        config = replace(config, rebrac=replace(config.rebrac, batch_size=batch_size))
    # step size and anchor in units of the critic's values: one setting for critics of any scale
    play = EvalConfig(episodes=episodes, mpc=MPCConfig(horizon=3, particles=4, lr=0.01, units="value"))
    scores: dict[str, list[float]] = {}
    for seed in seeds:
        run = train(replace(config, seed=seed), out / f"seed-{seed}")
        for result in compare(evaluate(run, play)):
            scores.setdefault(result.name, []).append(result.value.mean)
    names = {"base": "base policy", "h0": "critic alone", "mpc": "MPC"}
    cells = [f"{mean(x):.1f} ± {stdev(x) if len(x) > 1 else 0:.1f}" for x in (scores[name] for name in names)]
    print(f"| data set | {' | '.join(names.values())} |\n|---|---|---|---|\n| {data} | {' | '.join(cells)} |")


if __name__ == "__main__":
    tyro.cli(main)
