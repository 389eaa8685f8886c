"""Training steps of flow matching and MeanFlow against autograd of the models' own losses."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from jacrec.models.dynamics import FlowDynamics, MeanFlowDynamics
from jacrec.training.config import DynamicsConfig
from jacrec.training.stages.dynamics import DynamicsStage
from jacrec.training.stages.flows import ADAPTIVE_FLOOR
from jacrec.training.stages.objectives import make_dynamics
from tests.conftest import property_cases
from tests.training_data import linear_system

DATA = linear_system()


@property_cases(0.15)
@given(
    kind=st.sampled_from(["flow", "meanflow", "meanflow"]),
    prediction=st.sampled_from(["velocity", "x0"]),
    activation=st.sampled_from(["relu", "silu", "mish", "tanh", "gelu"]),
    hidden=st.sampled_from([(5,), (8, 8), (8, 8, 7)]),
    norm=st.booleans(),
    residual=st.booleans(),
    batch=st.integers(1, 17),
    ratio=st.sampled_from([0.0, 0.3, 0.75, 1.0]),
    power=st.sampled_from([0.0, 0.5, 1.0]),
    times=st.sampled_from(["logit-normal", "uniform"]),
    seed=st.integers(0, 9),
)
def test_step_equals_autograd_of_the_models_loss(
    kind, prediction, activation, hidden, norm, residual, batch, ratio, power, times, seed
):
    """Value, goal and gradient of the hand-written step, tangents included, against `torch.func.jvp` and autograd."""
    config = DynamicsConfig(
        kind=kind,
        prediction=prediction,
        activation=activation,
        hidden=hidden,
        layer_norm=norm,
        residual=residual,
        batch_size=batch,
        flow_ratio=ratio,
        adaptive_power=power,
        times=times,
        max_grad_norm=None,
    )
    stage = DynamicsStage(DATA, DATA, config, seed, dtype=torch.float64)
    model = make_dynamics(3, 2, config).double()
    model.load_state_dict(stage.model.state_dict())
    index, time, noise = stage.stream.at(0)
    loss = stage.step(0)["loss"]
    rows = DATA.rows(index.numpy())
    s, a, s2 = (torch.from_numpy(x).double() for x in (rows.state, rows.action, rows.next_state))
    if isinstance(model, MeanFlowDynamics):
        t, span = time.unbind(-1)
        assert int((span > 0).sum()) == batch - round(ratio * batch)
        own = model.loss(s, a, s2, t - span, t, noise)
        weight = (own.detach() + ADAPTIVE_FLOOR) ** -power
    else:
        assert isinstance(model, FlowDynamics)
        own, weight = model.loss(s, a, s2, time[:, 0], noise), 1.0
    (weight * own).mean().backward()
    torch.testing.assert_close(loss, own.mean().detach(), rtol=1e-12, atol=1e-12)
    for name, p in model.named_parameters():
        assert p.grad is not None
        torch.testing.assert_close(stage.regression.flat.gradient_of[name], p.grad, rtol=1e-12, atol=1e-12)
