"""The method that `Auto` takes: an order of preference, and the plain methods where the kernels cannot serve."""

import json
import math

import pytest
import torch
from torch import nn

from jacrec import (
    Actor,
    Adjoint,
    Auto,
    Autograd,
    BatchedPolicy,
    DeterministicDynamics,
    DiffusionDynamics,
    EnsembleDynamics,
    MeanFlowDynamics,
    MultiStep,
    MultiStepDynamics,
    RewardModel,
    TwinCritic,
    World,
)
from jacrec.engine import choice
from jacrec.engine.methods import METHODS, check_method
from jacrec.engine.shapes import problem
from tests import ROOT
from tests.strategies import ForeignDynamics

d, m = 4, 2
FORMS = sorted((ROOT / "benchmarks/results").glob("form_speed_cpu*.json"))
RECORDED = sorted((ROOT / "benchmarks/results").glob("fallback_speed_cpu*.json"))


def sized(dynamics=None, policy=None, *, M=2, H=2, reward=None):
    """A problem of one state."""
    dynamics = dynamics or DiffusionDynamics(d, m, (8,), steps=4)
    world = World(dynamics, reward or RewardModel(d, m, (8,)), TwinCritic(d, m, (8,)), 0.99)
    return problem(policy or Actor(d, m, (8,)), world, torch.zeros(d), torch.zeros(M, H, *dynamics.noise_shape))


def own_policy():
    return nn.Sequential(nn.Linear(d, m), nn.Tanh())


def known_policy():
    return nn.Sequential(nn.Linear(d, 8), nn.SiLU(), nn.Linear(8, m), nn.Tanh())


@pytest.mark.parametrize("dynamics", [None, MeanFlowDynamics(d, m, (8,)), EnsembleDynamics(d, m, (8,))])
@pytest.mark.parametrize("batched", [False, True])
def test_a_policy_of_known_layers_is_served_as_an_actor(dynamics, batched):
    policy = BatchedPolicy(known_policy(), 1) if batched else known_policy()
    assert Auto().choose(sized(dynamics, policy)) == Adjoint(kernel="fused")


@pytest.mark.parametrize("M", [1, 64])
@pytest.mark.parametrize("H", [0, 1, 3])
@pytest.mark.parametrize(
    "dynamics", [None, MeanFlowDynamics(d, m, (8,)), DeterministicDynamics(d, m, (8,)), EnsembleDynamics(d, m, (8,))]
)
def test_the_fused_adjoint_is_preferred(dynamics, H, M):
    assert Auto().choose(sized(dynamics, M=M, H=H)) == Adjoint(kernel="fused")


def test_a_multi_step_model_has_its_own():
    assert Auto().choose(sized(MultiStepDynamics(d, m, (8,), horizon=3))) == MultiStep(kernel="fused")
    assert Auto().choose(sized(MultiStepDynamics(d, m, (8,), horizon=3), own_policy())) == MultiStep()


@pytest.mark.parametrize(
    ("dynamics", "policy", "reward", "expected"),
    [
        (None, own_policy(), None, Adjoint()),
        (MeanFlowDynamics(d, m, (8,)), own_policy(), None, Autograd()),
        (DeterministicDynamics(d, m, (8,)), own_policy(), None, Autograd()),
        (MeanFlowDynamics(d, m, (8,)), None, lambda s, a: s.sum(-1), Adjoint(kernel="fused")),
        (None, None, lambda s, a: s.sum(-1), Adjoint(kernel="fused")),
        (None, own_policy(), lambda s, a: s.sum(-1), Adjoint()),
        (ForeignDynamics(d, m), None, None, Autograd()),
    ],
)
def test_where_the_kernels_cannot_serve(dynamics, policy, reward, expected):
    assert Auto().choose(sized(dynamics, policy, reward=reward)) == expected


def test_a_subclass_may_compute_something_else():
    class Other(DiffusionDynamics):
        def forward(self, state, action, noise):
            return super().forward(state, action, noise) + 1

    class OtherMultiStep(MultiStepDynamics):
        pass

    assert Auto().choose(sized(Other(d, m, (8,), steps=2))) == Autograd()
    assert Auto().choose(sized(OtherMultiStep(d, m, (8,), horizon=3))) == Autograd()


def test_a_reason_is_logged_once(caplog, monkeypatch):
    monkeypatch.setattr(choice, "_logged", set())
    for _ in range(2):
        Auto().choose(sized(policy=own_policy()))
    assert ["'adjoint'" in record.message for record in caplog.records] == [True]
    Auto().choose(sized(ForeignDynamics(d, m)))
    assert len(caplog.records) == 1, "autograd is what third-party dynamics are for"


def test_without_kernels(monkeypatch):
    monkeypatch.setattr(choice, "unsupported_reason", lambda p, form: f"no {form} kernels")
    assert Auto().choose(sized()) == Adjoint()
    assert Auto().choose(sized(policy=BatchedPolicy(Actor(d, m, (8,)), 1))) == Adjoint()
    assert Auto().choose(sized(MeanFlowDynamics(d, m, (8,)))) == Adjoint()
    assert Auto().choose(sized(MultiStepDynamics(d, m, (8,), horizon=3))) == MultiStep()


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_the_choice_is_the_faster_one_where_it_was_measured(path):
    """By case and number of network evaluations K, over all other sizes."""
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    ratios: dict[tuple[str, int], list[float]] = {}
    for row in rows:
        ms = row["ms"]
        ratios.setdefault((row["case"], row["K"]), []).append(ms["adjoint"]["median"] / ms["autograd"]["median"])
    assert len(ratios) >= 9
    for (case, K), found in ratios.items():
        mean = math.exp(sum(map(math.log, found)) / len(found))
        autograd = case == "own policy" and K <= choice.FEW
        assert mean > 1.0 if autograd else mean < 1.01, (case, K, mean)


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_the_adjoint_is_nearly_the_faster_form_everywhere(path):
    """Over all K and widths: by a twentieth at most the slower one, with one particle and H = 1."""
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    for case in {(row["task"], row["H"], row["M"]) for row in rows}:
        found = [row["ms"] for row in rows if (row["task"], row["H"], row["M"]) == case]
        mean = math.exp(sum(math.log(ms["forward"] / ms["adjoint"]) for ms in found) / len(found))
        assert mean > (0.95 if case[1:] == (1, 1) else 1.0), (case, mean)


def test_there_are_recorded_timings():
    assert RECORDED
    assert FORMS


def test_what_is_no_method_is_told_all_methods():
    names = {type(method).__name__ for method in METHODS.values()}
    assert names >= {"Auto", "Forward", "Adjoint", "MultiStep", "Autograd", "FiniteDifference"}
    for wrong in ("adjoint", Adjoint, None):
        with pytest.raises(ValueError, match="method: expected one of") as error:
            check_method(wrong)
        assert all(f"{name}()" in str(error.value) for name in names)
