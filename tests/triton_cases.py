"""What the tests of the Triton kernels share: interpreted where there is no GPU, compiled where there is one."""

import torch
from hypothesis import settings
from hypothesis import strategies as st

from jacrec import (
    Actor,
    BatchedPolicy,
    DiffusionDynamics,
    FlowDynamics,
    MeanFlowDynamics,
    RewardModel,
    TwinCritic,
    World,
)
from jacrec.models.activations import ACTIVATIONS
from tests.conftest import HAS_GPU
from tests.strategies import shake

COMPILED = HAS_GPU
DEVICE = "cuda" if COMPILED else "cpu"
CHAINS = {"diffusion": DiffusionDynamics, "flow": FlowDynamics, "meanflow": MeanFlowDynamics}


def few(interpreted: int, compiled: int = 6):
    """Hypothesis settings: compiling a case takes seconds, interpreting one about half a second."""
    return settings(max_examples=compiled if COMPILED else interpreted)


@st.composite
def problems(draw):
    """(N, M, H, batched, structure of every network, seed, kind of dynamics)."""
    activation, norm, residual = draw(st.sampled_from(sorted(ACTIVATIONS))), draw(st.booleans()), draw(st.booleans())
    network = dict(hidden=(7, 7), activation=activation, layer_norm=norm, residual=residual)
    return (
        draw(st.integers(1, 2)),
        draw(st.integers(1, 3)),
        draw(st.integers(0, 2)),
        draw(st.booleans()),
        network,
        draw(st.integers(0, 2**31 - 1)),
        draw(st.sampled_from(sorted(CHAINS))),
    )


def imagine(N, M, H, batched, network, seed, kind="diffusion", d=3, m=2, *, critics=2, policy_hidden=None):
    """policy, world, state, noise in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        own = network if policy_hidden is None else {**network, "hidden": policy_hidden}
        parts = [
            Actor(d, m, **own),
            CHAINS[kind](d, m, steps=2, **network),
            RewardModel(d, m, **network),
            TwinCritic(d, m, critics=critics, **network),
        ]
        for part in parts:
            part.double()
            shake(part)
        policy = BatchedPolicy(parts[0], N) if batched else parts[0]
        if batched:
            shake(policy, 0.05)
        state, noise = (torch.randn(*x, dtype=torch.float64) for x in ((N, d), (N, M, H, *parts[1].noise_shape)))
    world = World(*(part.to(DEVICE) for part in parts[1:]), 0.9)
    return policy.to(DEVICE), world, state.to(DEVICE), noise.to(DEVICE)
