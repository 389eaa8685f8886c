"""What `Auto` takes: counts that are those of the sizes, and a choice that was right wherever it was measured."""

import json

import pytest
import torch

from jacrec import (
    Actor,
    Adjoint,
    Auto,
    Autograd,
    DiffusionDynamics,
    Forward,
    MeanFlowDynamics,
    RewardModel,
    TwinCritic,
    World,
)
from jacrec.engine.cost import RATES, Rates, Sizes, costs, ranking
from jacrec.engine.shapes import problem
from tests import ROOT
from tests.strategies import ForeignDynamics

RECORDED = sorted((ROOT / "benchmarks/results").glob("calibration_cpu*.json"))
NAMES = {
    ("forward", "plain"): "forward",
    ("adjoint", "plain"): "adjoint",
    ("forward", "fused"): "forward fused",
    ("adjoint", "fused"): "adjoint fused",
}
DIMENSIONS = {"hopper": (11, 3), "halfcheetah": (17, 6), "antmaze": (29, 8)}


def sized(M=4, H=3, K=4, policy=None, dynamics=None):
    """A problem of hopper's size."""
    dynamics = dynamics or DiffusionDynamics(11, 3, steps=K)
    world = World(dynamics, RewardModel(11, 3), TwinCritic(11, 3), 0.99)
    return problem(policy or Actor(11, 3), world, torch.zeros(11), torch.zeros(M, H, *dynamics.noise_shape))


def test_the_count_is_that_of_the_sizes():
    weights = 256 * (57 + 256 + 256 + 11)
    rows = sum(1 + min(3 * (j + 1), 14) for j in range(3))
    counted = costs(Sizes.of(sized(M=1)))
    for kernel in ("plain", "fused"):
        assert counted["forward", kernel].multiplications == 4 * rows * weights
        assert counted["adjoint", kernel].multiplications == 2 * 4 * 3 * weights
    assert costs(Sizes.of(sized(M=1, policy=torch.nn.Sequential(Actor(11, 3))))) == counted
    # a tile of 16 rows loads the weights once, a 17th row once more
    one, two = (costs(Sizes.of(sized(M=M)))["adjoint", "fused"].traffic for M in (16, 17))
    assert two == 2 * one


def test_the_choice_is_that_of_the_count():
    assert Auto().choose(sized(M=4096)) == Adjoint(kernel="fused")
    foreign = sized(dynamics=ForeignDynamics(11, 3))
    assert Auto().choose(foreign) == Autograd()
    with pytest.MonkeyPatch.context() as patch:
        ranking.cache_clear()
        # where each operation costs the same and nothing else does, the one call of a fused adjoint is the cheapest;
        # where plain operations are free, the fewest multiplications of the plain forms
        patch.setitem(RATES, ("cpu", "fused"), Rates(operation=1.0, multiplication=1.0, traffic=1.0))
        assert Auto().choose(sized(M=64)) == Adjoint()
        ranking.cache_clear()
        patch.setitem(RATES, ("cpu", "plain"), Rates(operation=1.0, multiplication=0.0, traffic=1e-9))
        assert Auto().choose(sized(M=1)) in (Forward(), Adjoint())
    ranking.cache_clear()


def test_without_imagined_steps_the_fused_adjoint_is_taken():
    """No transition is there to count, which would call the plain forms free."""
    assert Auto().choose(sized(M=1, H=0)) == Adjoint(kernel="fused")
    assert Auto().choose(sized(M=1, H=1, dynamics=MeanFlowDynamics(11, 3))) == Adjoint(kernel="fused")
    assert Auto().choose(sized(M=1, H=0, policy=torch.nn.Sequential(Actor(11, 3)))) == Adjoint()


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_auto_is_right_on_the_recorded_timings(path):
    """Within 10 % of the best form and kernel at every size that was measured: d, m, M, H, K and width vary."""
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    assert len(rows) >= 30
    assert len({(row["task"], row["K"], row["width"]) for row in rows}) >= 4
    for row in rows:
        d, m = DIMENSIONS[row["task"]]
        width = row["width"]
        embedding = 64 if row.get("model") == "meanflow" else 32
        weights = (2 * d + m + embedding + width + width + d) * width
        chosen = ranking(Sizes("cpu", weights, (width,) * 3, False, row["K"], d, m, row["M"], row["H"]))[0]
        taken = row["ms"][NAMES[chosen]]["median"]
        best = min(row["ms"][name]["median"] for name in NAMES.values())
        assert taken <= 1.1 * best, (chosen, row)


def test_there_are_recorded_timings():
    assert RECORDED
