"""Steps other than plain ones, against dense P × P algebra."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from jacrec import Autograd, linearize, policy_gradient
from jacrec.engine.diagnostics import visit
from jacrec.engine.gradient import Pi_psi
from jacrec.engine.jacobians.policy import policy_pass
from jacrec.engine.parameters import trainable
from jacrec.engine.problem import Problem
from jacrec.engine.shapes import problem
from jacrec.experimental.natural import natural_step
from tests.conftest import property_cases
from tests.oracles import well_posed
from tests.strategies import cases


def dense_step(p: Problem, damping: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(G + λ I)⁻¹ ∇Ĵ with G as P × P numbers from every visited state, and √(δᵀ (G + λ I) δ); rows of the policy."""
    single = problem(p.policy, p.world, p.state, p.noise)
    lin = linearize(p.policy, p.world, p.state, p.noise)
    J = Pi_psi(policy_pass(p.policy, lin.states.flatten(1, 2)))  # (N, M·(H+1), m, P)
    counted = trainable(p.policy)
    kept = torch.cat(
        [torch.full((g[0].numel() if p.batched else g.numel(),), k in counted) for k, g in p.policy.named_parameters()]
    )
    J = J[..., kept]
    g = policy_gradient(p.policy, p.world, p.state, p.noise, method=Autograd()).gradient
    rows = p.N if p.batched else 1
    flat = torch.cat([g[k].reshape(rows, -1) for k in counted], -1)
    if not p.batched:
        J = J.flatten(0, 1).unsqueeze(0)
    m, n = J.shape[2], J.shape[1]
    G = torch.einsum("rvap,rvaq->rpq", J, J) / n
    scale = torch.einsum("rpp->r", G) / m
    shifted = G + damping * scale[:, None, None] * torch.eye(G.shape[-1], dtype=G.dtype)
    step = torch.linalg.solve(shifted, flat)
    assert single.N == p.N
    return step, torch.einsum("rp,rpq,rq->r", step, shifted, step).sqrt()


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch's own mish, vmapped
@property_cases(0.05)
@given(case=cases(max_H=3, max_M=3), damping=st.sampled_from([1e-2, 0.3, 10.0]))
def test_the_natural_step_is_the_dense_solution(case, damping):
    policy, world, state, noise = case.build()
    assume(well_posed(policy, world, state, noise))
    if case.single:
        state, noise = state.unsqueeze(0), noise.unsqueeze(0)
    p = Problem(policy, world, state, noise, False)
    expected, length = dense_step(p, damping)
    assume(torch.isfinite(expected).all())
    found = natural_step(p, visit(p, fused=False), damping, trainable(policy))
    rows = case.N if case.batched else 1
    flat = torch.cat([found.step[k].reshape(rows, -1) for k in trainable(policy)], -1)
    size = expected.norm()
    assert (flat - expected).norm() <= 1e-8 * size + 1e-12
    torch.testing.assert_close(found.length.reshape(-1), length, rtol=1e-8, atol=1e-10)
