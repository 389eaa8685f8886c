"""Input that is not finite, on a GPU: found there, without a wait for what it has still to do. The GPU is a CPU that is not read."""

from unittest import mock

import numpy as np
import pytest
import torch

from jacrec import Adjoint, Autograd, Forward, mpc_update, policy_gradient
from jacrec.control import ascent
from jacrec.engine import shapes
from jacrec.engine.rollout import sampled_problem
from jacrec.kernels import gradient, rollout
from tests.kernels.test_triton_graphs import Recorded, Unread, Unrecordable
from tests.oracles import relative_error
from tests.triton_cases import imagine

METHODS = [Forward(), Adjoint(), Adjoint(recompute=True), Autograd()]


@pytest.fixture
def unread():
    """Tensors of the host are taken for a GPU's."""
    with mock.patch.object(shapes, "readable", return_value=False), mock.patch.object(ascent, "readable", return_value=False):
        yield


@pytest.fixture
def case():
    return imagine(3, 2, 2, True, dict(hidden=(7,), activation="silu"), 0)


def spoiled(case, where, value):
    """The case with one entry of row 1 of the state or the noise replaced."""
    policy, world, state, noise = (*case[:2], case[2].clone(), case[3].clone())
    (state if where == "state" else noise)[1].view(-1)[-1] = value
    return policy, world, state, noise


def test_nothing_is_read_from_a_gpu(case):
    with Unread(), Recorded(), pytest.raises(Unrecordable):
        shapes.problem(*case)


@pytest.mark.parametrize("made", [shapes.problem, lambda *case: sampled_problem(*case[:3], 2, 2)])
def test_a_problem_reads_nothing(case, unread, made):
    made(*case)  # the first one tries every part
    with Unread(), Recorded():
        p = made(*case)
    assert torch.equal(p.state, case[2])


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of numpy, which interprets kernels
@pytest.mark.parametrize("where", ["state", "noise"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_value_and_gradient_of_the_row_are_nan(case, unread, where, value):
    clean = policy_gradient(*case, method=Adjoint())
    args = spoiled(case, where, value)
    fused = [rollout.rollout_gradient, gradient.adjoint_gradient, lambda p: gradient.adjoint_gradient(p, recompute=True)]
    results = [policy_gradient(*args, method=method) for method in METHODS]
    results += [compute(shapes.problem(*args)) for compute in fused]
    for got in results:
        assert got.value.isnan().tolist() == [False, True, False]
        assert any(g[1].isnan().any() for g in got.gradient.values())
        others, expected = ({name: g[[0, 2]] for name, g in x.gradient.items()} for x in (got, clean))
        assert relative_error(others, expected) < 1e-12


@pytest.mark.parametrize("where", ["state", "noise"])
def test_an_update_raises_before_it_moves_anything(case, unread, where):
    policy, world, state, noise = spoiled(case, where, float("inf"))
    before = [parameter.clone() for parameter in policy.parameters()]
    with pytest.raises(ValueError, match=rf"^{where}: expected finite values, got NaN or infinity in rows \[1\] of 3"):
        mpc_update(policy, world, state, noise=noise, method=Adjoint())
    assert all(map(torch.equal, policy.parameters(), before))


def test_a_row_rejected_for_another_reason_is_not_an_error(case, unread):
    policy, world, state, noise = case
    with torch.no_grad():
        policy.get_submodule("mlp").layers[0].weight[1, 0, 0] = float("nan")
    step = mpc_update(policy, world, state, noise=noise, method=Adjoint())
    assert step.accepted.tolist() == [[True, False, True]]


def test_one_policy_for_all_rows(case, unread):
    policy, world, state, noise = imagine(3, 2, 1, False, dict(hidden=(7,)), 0)
    args = spoiled((policy, world, state, noise), "state", float("nan"))
    assert policy_gradient(*args, method=Adjoint()).value.isnan().tolist() == [False, True, False]
    with pytest.raises(ValueError, match=r"state: .* in rows \[1\] of 3"):
        mpc_update(*args[:3], noise=args[3], method=Adjoint())


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_observations_are_checked_before_they_leave_the_host(kind):
    device = torch.device("meta")
    good = kind(np.zeros((2, 3)))
    assert shapes.check_observation(good, 2, torch.float32, device).device == device
    good[1, 0] = np.nan
    with pytest.raises(ValueError, match=r"state: expected finite values, got NaN or infinity in rows \[1\] of 2"):
        shapes.check_observation(good, 2, torch.float32, device)
    good[1, 0] = 1e300  # too large for float32
    with pytest.raises(ValueError, match=r"in rows \[1\] of 2"):
        shapes.check_observation(good, 2, torch.float32, device)
    with pytest.raises(ValueError, match=r"in rows \[0\] of 1"):
        shapes.check_observation(kind(np.array([np.inf, 0.0])), None, torch.float64, device)
