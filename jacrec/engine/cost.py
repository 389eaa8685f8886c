"""What a gradient costs in each form, and so which form `Auto` takes.

A plain torch evaluation costs operations (each a dispatch, or a kernel launch), arithmetic, and traffic of activations.
All three are counted exactly enough from the sizes; three constants per device class turn them into seconds.
`jacrec bench calibrate` measures the constants.
"""

import logging
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from jacrec.engine.dispatch import unsupported_reason
from jacrec.engine.problem import Problem
from jacrec.models.dynamics import ChainDynamics, DeterministicDynamics, EnsembleDynamics
from jacrec.models.dynamics.multistep import MultiStepDynamics
from jacrec.models.networks import has_manual_derivatives


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
        return cost.operations * self.operation + cost.multiplications * self.multiplication + cost.traffic * self.traffic


RATES = {
    # two cores of an AMD EPYC (Zen 4), torch 2.13: benchmarks/results/calibration_cpu_amd-epyc_2_cores.json. The fit leaves
    # nothing to traffic; the fused adjoint is then the fastest at every size measured
    ("cpu", "plain"): Rates(operation=1.05e-5, multiplication=1.54e-11, traffic=0.0),
    ("cpu", "fused"): Rates(operation=7.9e-4, multiplication=1.24e-11, traffic=0.0),
    # not fitted on a device: launch latency and an H100-class datasheet, so that the shape of the count decides
    ("cuda", "plain"): Rates(operation=6e-6, multiplication=3e-14, traffic=1e-12),
    ("cuda", "fused"): Rates(operation=6e-6, multiplication=3e-14, traffic=1e-12),
}
TILE = 16
"""rows that share a load of the weights in the fused kernels"""
OWN = (ChainDynamics, DeterministicDynamics, EnsembleDynamics)
"""jacrec's own dynamics; of an ensemble each row goes through one network"""
_told: set[str] = set()
_log = logging.getLogger("jacrec")


@dataclass(frozen=True)
class Sizes:
    """What a gradient's cost depends on."""

    device: str
    weights: int  # of the dynamics' network
    hidden: tuple[int, ...]
    norm: bool
    calls: int  # of the network in one transition
    d: int
    m: int
    B: int  # N·M
    H: int

    @staticmethod
    def of(problem: Problem) -> "Sizes":
        """The sizes of a problem whose dynamics are jacrec's own."""
        f = problem.world.dynamics
        assert isinstance(f, OWN)
        mlp = f.denoiser.mlp if isinstance(f, ChainDynamics) else f.mlp
        calls = f.diffusion_steps if isinstance(f, ChainDynamics) else 1
        widths = [mlp.in_dim, *mlp.hidden, mlp.out_dim]
        weights = sum(a * b for a, b in pairwise(widths))
        return Sizes(
            problem.state.device.type,
            weights,
            mlp.hidden,
            bool(mlp.norms),
            calls,
            f.state_dim,
            f.action_dim,
            problem.N * problem.M,
            problem.H,
        )

    @property
    def tangents(self) -> int:
        """Rows of tangents that `Forward` pushes, over all steps."""
        return sum(self.B * min((j + 1) * self.m, self.d + self.m) for j in range(self.H))


def costs(s: Sizes) -> dict[tuple[str, str], Cost]:
    """The share of the dynamics for every (form, kernel), most of the whole; the rates hold what policy and values cost.

    Plain: a value and tangent pass, or a recorded value pass and a cotangent pass, layer by layer; the operations of H + 1
    policies, H rewards and the critic count as those of so many more networks of the dynamics' depth, which matters where
    a transition takes one evaluation. Fused: one operation, and instead of activations the weights are moved, once for every
    tile of rows.
    """
    depth, widths, passes = len(s.hidden), sum(s.hidden), s.calls * s.H
    networks = passes + 2 * s.H + 2
    forward_rows = s.calls * (s.B * s.H + s.tangents)
    rows = passes * s.B
    norm = 9 if s.norm else 0, 12 if s.norm else 0
    loads = passes * -(-s.B // TILE) * s.weights
    tangent_loads = s.calls * -(-(s.B * s.H + s.tangents) // TILE) * s.weights
    return {
        ("forward", "plain"): Cost(
            networks * ((6 + norm[0]) * depth + 8), forward_rows * s.weights, forward_rows * widths * (4 + norm[0])
        ),
        ("adjoint", "plain"): Cost(networks * ((4 + norm[1]) * depth + 8), 2 * rows * s.weights, rows * widths * (6 + norm[1])),
        ("forward", "fused"): Cost(1 + s.H, forward_rows * s.weights, tangent_loads),
        ("adjoint", "fused"): Cost(1, 2 * rows * s.weights, 2 * loads),
    }


def cheapest(problem: Problem) -> tuple[str, str]:
    """The form ("forward", "adjoint", "autograd", "multistep") and kernel ("plain", "fused") expected to be the fastest.

    A stranger's dynamics are differentiated by torch itself, whatever we do: then one graph over the whole rollout
    ("autograd") is cheaper than a graph per step with our own bookkeeping between them. Where fused kernels cannot serve,
    the reason is logged, each reason once.
    """
    return _cheapest(problem)


def _cheapest(problem: Problem) -> tuple[str, str]:
    dynamics = problem.world.dynamics
    if type(dynamics) is MultiStepDynamics and has_manual_derivatives(dynamics):
        reason = unsupported_reason(problem, "multistep")
        if reason is not None:
            _tell("multistep form, plain kernels", reason)
        return "multistep", "plain" if reason else "fused"
    if not isinstance(dynamics, OWN) or not has_manual_derivatives(dynamics):
        return "autograd", "plain"
    reasons = []
    for form, kernel in ranking(Sizes.of(problem)):
        reason = unsupported_reason(problem, form) if kernel == "fused" else None
        if reason is None:
            if reasons:
                _tell(f"{form} form, {kernel} kernels", reasons[0])
            return form, kernel
        reasons.append(reason)
    raise AssertionError("plain torch serves every problem")


@lru_cache(maxsize=1024)
def ranking(sizes: Sizes) -> tuple[tuple[str, str], ...]:
    """All (form, kernel), the fastest first."""
    if not sizes.H:  # no transition to count: what is left is the policy and the critic, a third of the time in one operation
        return ("adjoint", "fused"), ("adjoint", "plain"), ("forward", "plain"), ("forward", "fused")
    device = sizes.device if (sizes.device, "plain") in RATES else "cpu"
    expected = {choice: RATES[device, choice[1]].seconds(cost) for choice, cost in costs(sizes).items()}
    return tuple(sorted(expected, key=lambda choice: expected[choice]))


def _tell(choice: str, reason: str) -> None:
    if reason not in _told:
        _told.add(reason)
        _log.warning("Auto takes the %s, since the fastest cannot serve: %s", choice, reason)
