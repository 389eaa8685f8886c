"""Fused steps of regression against autograd: any network, any batch, the same for every number of threads."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jacrec.models.networks import MLP
from jacrec.training.config import DynamicsConfig, RewardConfig
from jacrec.training.passes import fused_unsupported_reason
from jacrec.training.stages.dynamics import DynamicsStage
from jacrec.training.stages.multistep import MultiStepStage
from jacrec.training.stages.reward import RewardStage
from jacrec.training.stages.supervised import Regression
from tests.training_data import linear_system

if (REASON := fused_unsupported_reason(torch.zeros(1))) is not None:
    pytest.skip(REASON, allow_module_level=True)

DATA = linear_system()


def networks(count: int, in_dim: int, hidden: tuple[int, ...], out_dim: int, dtype=torch.float64, **options) -> list[MLP]:
    """Equal networks, LayerNorms with gain and offset included."""
    torch.manual_seed(len(hidden) + in_dim)
    made = [MLP(in_dim, out_dim, hidden, **options).to(dtype) for _ in range(count)]
    made[0].initialise()
    for norm in made[0].norms:
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    for other in made[1:]:
        other.load_state_dict(made[0].state_dict())
    return made


@settings(max_examples=15, deadline=None)
@given(
    hidden=st.lists(st.integers(4, 40), min_size=1, max_size=3).map(tuple) | st.integers(4, 70).map(lambda w: (w, w, w)),
    in_dim=st.integers(1, 40),
    out_dim=st.integers(1, 18),
    rows=st.sampled_from([1, 5, 64, 65, 300]),
    activation=st.sampled_from(["relu", "silu", "mish", "tanh", "gelu"]),
    layer_norm=st.booleans(),
    residual=st.booleans(),
    clip=st.sampled_from([None, 0.05, 1e3]),
    ema=st.sampled_from([0.0, 0.9]),
)
def test_steps_equal_autograd_and_torchs_adam(hidden, in_dim, out_dim, rows, activation, layer_norm, residual, clip, ema):
    options = {"activation": activation, "layer_norm": layer_norm, "residual": residual}
    net, averaged, plain = networks(3, in_dim, hidden, out_dim, **options)
    config = RewardConfig(lr=1e-2, max_grad_norm=clip, ema=ema, updates=9)
    regression = Regression(net, averaged, net, "", config, fused=True)
    parameters, average = list(plain.parameters()), [p.detach().clone() for p in plain.parameters()]
    optimiser = torch.optim.Adam(parameters, lr=1e-2)
    g = torch.Generator().manual_seed(rows)
    for t in range(4):
        x, goal = (torch.randn(rows, n, dtype=torch.float64, generator=g) for n in (in_dim, out_dim))
        optimiser.zero_grad()
        expected = torch.nn.functional.mse_loss(plain(x), goal)
        expected.backward()
        loss = regression.update(x, goal, t)
        torch.testing.assert_close(loss, expected.detach(), rtol=1e-10, atol=1e-12)
        for name, p in plain.named_parameters():
            torch.testing.assert_close(regression.flat.gradient_of[name], p.grad, rtol=1e-8, atol=1e-10)
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(parameters, clip)
        optimiser.step()
        for a, p in zip(average, parameters, strict=True):
            a.lerp_(p.detach(), regression.schedule(t).averaging)
    for actual, p in zip(net.parameters(), parameters, strict=True):
        torch.testing.assert_close(actual, p.detach(), rtol=1e-7, atol=1e-8)
    for actual, a in zip(averaged.parameters(), average, strict=True):
        torch.testing.assert_close(actual, a if ema else actual, rtol=1e-7, atol=1e-8)


def stage_of(kind: str, dtype=torch.float64, batch: int = 70, hidden: tuple[int, ...] = (24, 24), **options):
    """A stage of a kind: "reward", or one of the world models, with their options behind a space."""
    if kind == "reward":
        return RewardStage(DATA, DATA, RewardConfig(hidden=hidden, batch_size=batch), 0, 2.0, "cpu", dtype, **options)
    kind, *prediction = kind.split()
    changes = {"prediction": prediction[0]} if prediction else {}
    if kind == "flow" and not prediction:
        changes = {"prediction": "velocity"}
    config = DynamicsConfig(kind=kind, hidden=hidden, batch_size=batch, steps=5, horizon=3, **changes)
    return (MultiStepStage if kind == "multistep" else DynamicsStage)(DATA, DATA, config, 0, "cpu", dtype, **options)


@pytest.mark.parametrize("kind", ["reward", "diffusion x0", "diffusion epsilon", "flow", "deterministic", "multistep"])
def test_a_stage_trains_as_without_compiled_code(kind):
    fused, plain = stage_of(kind, fused=True), stage_of(kind, fused=False)
    assert fused.regression.is_fused
    for t in range(5):
        torch.testing.assert_close(fused.step(t)["loss"], plain.step(t)["loss"], rtol=1e-10, atol=1e-12)
    for name, value in plain.state().items():
        torch.testing.assert_close(fused.state()[name], value, rtol=1e-8, atol=1e-10)


def test_a_step_does_not_depend_on_the_number_of_threads(threads):
    states = []
    for team in (1, 2, 3, 5):
        threads(team)
        stage = stage_of("diffusion x0", torch.float32, 333, (96, 96))
        for t in range(4):
            stage.step(t)
        assert len(stage.regression.fused.jobs) == team
        states.append(stage.state())
    for state in states[1:]:
        assert all(torch.equal(state[name], value) for name, value in states[0].items())


def test_single_precision_is_as_accurate_as_plain_torchs():
    exact = stage_of("diffusion x0", torch.float64, fused=False, hidden=(64, 64, 64))
    exact.step(0)

    def error(fused: bool) -> float:
        stage = stage_of("diffusion x0", torch.float32, fused=fused, hidden=(64, 64, 64))
        stage.step(0)
        return (stage.state()["exp_avg"].double() - exact.state()["exp_avg"]).norm().item()

    assert 0 < error(True) <= 2 * error(False)


def test_nan_reaches_the_loss_and_subnormal_moments_become_zero():
    (net,) = networks(1, 3, (8, 8), 2, torch.float32)
    regression = Regression(net, net, net, "", RewardConfig(lr=1e-3), fused=True)
    x, goal = torch.randn(5, 3), torch.randn(5, 2)
    first, second = regression.adam.moments()
    first.fill_(1e-37)
    second.fill_(1e-39)
    net.layers[1].bias.fill_(-100.0)  # all units of the last hidden layer are inactive: no gradient but that of the last bias
    regression.update(x, goal, 0)
    assert (regression.flat.gradient != 0).sum() == 2
    assert ((first != 0) == (regression.flat.gradient != 0)).all()
    assert ((second != 0) == (regression.flat.gradient != 0)).all()
    x[1, 0] = math.nan
    assert regression.update(x, goal, 1).isnan()


def test_squares_that_overflow_matter_to_clipping_alone():
    (net,) = networks(1, 3, (8,), 2, torch.float32)
    regression = Regression(net, net, net, "", RewardConfig(lr=1e-3, max_grad_norm=None), fused=True)
    regression.update(torch.full((5, 3), 1e10), torch.ones(5, 2), 0)
    assert regression.flat.gradient.norm().isinf()
    assert regression.flat.value.isfinite().all()


def test_training_is_plain_torchs_where_numba_does_not_compile(monkeypatch):
    """NUMBA_DISABLE_JIT, which debuggers and coverage tools ask for."""
    monkeypatch.setattr("numba.config.DISABLE_JIT", 1)
    stage = stage_of("reward")
    assert not stage.regression.is_fused
    assert stage.step(0)["loss"].isfinite()
    with pytest.raises(ValueError, match=r"^fused: .*NUMBA_DISABLE_JIT"):
        stage_of("reward", fused=True)


@pytest.mark.parametrize("kind", ["ensemble", "meanflow", "reward"])
def test_what_is_not_supported_is_refused_or_trained_in_torch(kind):
    options = {"capturable": True} if kind == "reward" else {}
    with pytest.raises(ValueError, match=r"^fused: .*got True although"):
        stage_of("meanflow velocity" if kind == "meanflow" else kind, fused=True, **options)
    assert not stage_of("meanflow velocity" if kind == "meanflow" else kind, **options).regression.is_fused
    regression = stage_of("reward").regression
    with pytest.raises(ValueError, match=r"^x: expected \(4, 5\) of torch.float64, got \(4, 6\)"):
        regression.update(torch.zeros(4, 6).double(), torch.zeros(4, 1).double(), 0)
