"""Which method to take where the fused kernels cannot serve: plain `Adjoint` and `Forward` against `Autograd` on one thread.

The networks outside jacrec's own are a policy, a reward and a critic with a forward of their own, which calls an
`nn.Sequential`. The order of preference in `jacrec.engine.choice` is taken from this table. Writes benchmarks/results/fallback_speed_<device>_<machine>.json.

    python benchmarks/fallback_speed.py
    python benchmarks/fallback_speed.py --cases "own policy" --particles 4 --json /tmp/fallback.json
"""

import argparse
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from harness import as_usual, environment, slug, timed, use_threads, write
from torch import Tensor, nn

from jacrec import Actor, Adjoint, Autograd, DiffusionDynamics, Forward, PolicyGradient, RewardModel, TwinCritic, World
from jacrec.engine.methods import Method
from jacrec.engine.rollout import noise_like
from jacrec.engine.shapes import problem

METHODS: dict[str, Method] = {"adjoint": Adjoint(), "forward": Forward(), "autograd": Autograd()}
D, M_ACTION = 17, 6
"""state and action dimension of halfcheetah"""


def mlp(inputs: int, hidden: Sequence[int], outputs: int, *last: nn.Module) -> nn.Sequential:
    """ReLU layers in plain torch."""
    widths = [inputs, *hidden]
    layers = [x for a, b in itertools.pairwise(widths) for x in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(widths[-1], outputs), *last)


class Value(nn.Module):
    """A reward or a critic of one's own, (state, action) -> (...)."""

    def __init__(self, inputs: int, hidden: Sequence[int]):
        super().__init__()
        self.net = mlp(inputs, hidden, 1)

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        return self.net(torch.cat([state, action], -1)).squeeze(-1)


class Policy(nn.Module):
    """A policy of one's own, whose layers are not read since its forward is another one."""

    def __init__(self, hidden: Sequence[int]):
        super().__init__()
        self.net = mlp(D, hidden, M_ACTION, nn.Tanh())

    def forward(self, state: Tensor) -> Tensor:
        return self.net(state)


def own_policy(hidden: Sequence[int], K: int) -> tuple[nn.Module, World]:
    """An own policy in jacrec's world."""
    return Policy(hidden), ours(hidden, K)[1]


def own_values(hidden: Sequence[int], K: int) -> tuple[nn.Module, World]:
    """jacrec's policy and dynamics with an own reward and critic."""
    policy, world = ours(hidden, K)
    return policy, World(world.dynamics, Value(D + M_ACTION, hidden), Value(D + M_ACTION, hidden), 0.99)


def ours(hidden: Sequence[int], K: int) -> tuple[nn.Module, World]:
    """All networks jacrec's own, as where Numba is missing."""
    policy = Actor(D, M_ACTION, hidden)
    policy.mlp.initialise()
    dynamics = DiffusionDynamics(D, M_ACTION, hidden, steps=K)
    return policy, World(dynamics, RewardModel(D, M_ACTION, hidden), TwinCritic(D, M_ACTION, hidden), 0.99)


CASES = {"own policy": own_policy, "own reward and critic": own_values, "without kernels": ours}


def measure(case: str, hidden: Sequence[int], K: int, H: int, M: int, budget: float) -> dict:
    """Milliseconds of each method on one problem."""
    torch.manual_seed(0)
    policy, world = CASES[case](hidden, K)
    for part in (world.dynamics, world.reward, world.critic):
        assert isinstance(part, nn.Module)
        part.requires_grad_(False)
    state = torch.randn(D)
    p = problem(policy, world, state, noise_like(world, state, M, H))

    def call(method: Method) -> Callable[[], PolicyGradient]:
        return lambda: method.gradient(p)

    ms = timed({name: call(method) for name, method in METHODS.items()}, 9, turns=3, settle=1, warm=1, budget=budget)
    return {"case": case, "hidden": list(hidden), "K": K, "H": H, "M": M, "ms": ms}


def main(arguments: list[str] | None = None) -> None:
    """Time, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--particles", nargs="+", type=int, default=[1, 8, 16, 64], help="M")
    parser.add_argument("--horizon", nargs="+", type=int, default=[1, 3, 5], help="H")
    parser.add_argument("--steps", nargs="+", type=int, default=[1, 2, 3, 5, 10], help="K")
    parser.add_argument("--layers", nargs="+", type=int, default=[2, 3], help="hidden layers of 256")
    parser.add_argument("--budget", type=float, default=0.15, help="seconds a method and size")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="where the results go")
    options = parser.parse_args(arguments)
    use_threads(options.threads)
    sizes = itertools.product(options.cases, options.layers, options.steps, options.horizon, options.particles)
    rows = []
    print(f"{'milliseconds, median':44s}" + "".join(f"{name:>10s}" for name in METHODS) + "   adjoint / autograd")
    for case, layers, K, H, M in sizes:
        row = measure(case, (256,) * layers, K, H, M, options.budget)
        rows.append(row)
        median = {name: row["ms"][name]["median"] for name in METHODS}
        times = "".join(f"{median[name]:10.2f}" for name in METHODS)
        print(
            f"{case:24s}{layers}x256 K {K:2d} H {H} M {M:3d}{times}{median['adjoint'] / median['autograd']:12.2f}", flush=True
        )
    if not options.json and not as_usual(parser, options):
        print("other sizes or threads than the default: nothing was written; --json PATH keeps the results")
        return
    print(f"written: {write(f'fallback_speed_{slug()}', {'environment': environment(), 'rows': rows}, options.json)}")


if __name__ == "__main__":
    main()
