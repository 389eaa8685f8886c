"""What a gradient costs in each form, and so which form `Auto` takes.

A plain torch evaluation costs operations (each a dispatch, or a kernel launch), arithmetic, and traffic of activations.
All three are counted exactly enough from the sizes; three constants per device class turn them into seconds.
`benchmarks/grad_speed.py --fit` measures the constants.
"""

from dataclasses import dataclass

from jacrec.dynamics import DeterministicDynamics, DiffusionDynamics
from jacrec.networks import MLP, written_out
from jacrec.shapes import Problem


@dataclass(frozen=True)
class Cost:
    """A count: of torch operations, multiply–adds, and numbers read or written elementwise."""

    operations: float = 0.0
    multiplications: float = 0.0
    traffic: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.operations + other.operations,
            self.multiplications + other.multiplications,
            self.traffic + other.traffic,
        )


@dataclass(frozen=True)
class Rates:
    """Seconds per operation, per multiply–add, per number moved."""

    operation: float
    multiplication: float
    traffic: float

    def seconds(self, cost: Cost) -> float:
        """The time that a count takes."""
        return (
            cost.operations * self.operation + cost.multiplications * self.multiplication + cost.traffic * self.traffic
        )


RATES = {
    # two cores of an AMD EPYC (Zen 4) at 2.6 GHz, torch 2.13: benchmarks/results/grad_speed_cpu.json. The fit leaves nothing
    # to traffic. In plain torch Adjoint then wins at every size measured; it takes a fused kernel for Forward to pay here
    "cpu": Rates(operation=1.5e-5, multiplication=1.62e-11, traffic=0.0),
    # not fitted on a device: launch latency and an H100-class datasheet, so that the shape of the count decides
    "cuda": Rates(operation=6e-6, multiplication=3e-14, traffic=1e-12),
}


def forward_cost(mlp: MLP, rows: float, calls: int) -> Cost:
    """Value and tangents together: `calls` evaluations of `rows` rows each."""
    depth, widths = len(mlp.hidden), sum(mlp.hidden)
    norm = 9 if mlp.norms else 0
    return Cost(
        operations=calls * ((6 + norm) * depth + 8),
        multiplications=calls * rows * _weights(mlp),
        traffic=calls * rows * widths * (4 + norm),
    )


def adjoint_cost(mlp: MLP, rows: float, calls: int) -> Cost:
    """A recorded value pass and a cotangent pass: `calls` evaluations of `rows` rows each."""
    depth, widths = len(mlp.hidden), sum(mlp.hidden)
    norm = 12 if mlp.norms else 0
    return Cost(
        operations=calls * ((4 + norm) * depth + 8),
        multiplications=2 * calls * rows * _weights(mlp),
        traffic=calls * rows * widths * (6 + norm),
    )


def cheaper_form(problem: Problem) -> str:
    """Returns "forward" or "adjoint", whichever `Rates` of the device expect to be faster; or "autograd".

    A stranger's dynamics are differentiated by torch itself, whatever we do: then one graph over the whole rollout
    ("autograd") is cheaper than a graph per step with our own bookkeeping between them.
    """
    dynamics = problem.world.dynamics
    if not written_out(dynamics):
        return "autograd"
    if isinstance(dynamics, DiffusionDynamics):
        mlp, calls = dynamics.denoiser.mlp, dynamics.diffusion_steps
    elif isinstance(dynamics, DeterministicDynamics):
        mlp, calls = dynamics.mlp, 1
    else:
        return "autograd"
    forward, adjoint = dynamics_costs(mlp, calls, problem)
    rates = RATES.get(problem.state.device.type, RATES["cpu"])
    return "forward" if rates.seconds(forward) < rates.seconds(adjoint) else "adjoint"


def dynamics_costs(mlp: MLP, calls: int, problem: Problem) -> tuple[Cost, Cost]:
    """The share of the dynamics in both forms; policy, reward and critic cost both the same."""
    d = problem.state.shape[-1]
    m = problem.world.dynamics.action_dim  # pyright: ignore[reportAttributeAccessIssue] (jacrec's own dynamics have it)
    B = problem.N * problem.M
    forward = adjoint = Cost()
    for j in range(problem.H):
        forward += forward_cost(mlp, B * (1 + min((j + 1) * m, d + m)), calls)
        adjoint += adjoint_cost(mlp, B, calls)
    return forward, adjoint


def _weights(mlp: MLP) -> int:
    return sum(layer.weight.shape[-1] * layer.weight.shape[-2] for layer in mlp.layers)
