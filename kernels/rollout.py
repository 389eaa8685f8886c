"""The whole imagined rollout with its sensitivities in one launch, and the gradient from it.

All columns of the sensitivities are carried from the start (see `jacrec.kernels.imagine`), so that this is for few particles,
where a tile of rows costs the same full or empty and launches cost more than arithmetic; else see `jacrec.kernels.gradient`.
"""

from dataclasses import replace

import torch
from torch import Tensor

from jacrec.engine.gradient import Visited
from jacrec.engine.jacobians.chain import level_table
from jacrec.engine.problem import Problem
from jacrec.engine.types import PolicyGradient
from jacrec.kernels import refusals
from jacrec.kernels.imagine import rollout_kernel
from jacrec.kernels.launch import (
    DOUBLE,
    TILES,
    Plan,
    Tile,
    chain_constants,
    check_precision,
    coefficients,
    multiprocessors,
    net,
    on_device,
    parameters,
    plan,
    scales,
    start,
)
from jacrec.kernels.served import DYNAMICS_SCALES, MAX_DEPTH, MAX_WIDTH, unsupported_reason
from jacrec.models.dynamics import ChainDynamics
from jacrec.models.networks import MLP, RewardModel, TwinCritic

ROLLOUT_TILES = (TILES[16], replace(TILES[32], inner=16), TILES[64])
"""tiles to choose from, smallest first: up to 64 rows a layer's time is that of reading its weights. Chosen as `TILES`; the
largest takes 16 bytes of stack"""
ROLLOUT_WAVES = 1
"""programs per multiprocessor up to which a rollout is one launch: beyond, arithmetic counts, and the separate chains carry
fewer tangents. Not measured"""


def rollout_unsupported_reason(p: Problem) -> str | None:
    """Why a rollout cannot be one launch, what was expected and what was found; None if it can."""
    reason = unsupported_reason(p)
    if reason is not None:
        return reason
    if p.world.anchor is not None:
        return "world: expected no anchor for a rollout in one launch, got one"
    f = p.world.dynamics
    assert isinstance(f, ChainDynamics)
    d, m, like = f.state_dim, f.action_dim, p.state
    reason = (
        refusals.policy_reason(p.policy, d, m, like)
        or refusals.reward_reason(p.world.reward, d, m, like)
        or refusals.critic_reason(p.world.critic, d, m, like)
    )
    if reason is not None:
        return reason
    for name, mlp in networks(p).items():
        if max(mlp.hidden) > MAX_WIDTH or len(mlp.hidden) > MAX_DEPTH:
            return f"{name}: expected at most {MAX_DEPTH} hidden layers of at most {MAX_WIDTH}, got {mlp.hidden}"
    return None


def networks(p: Problem) -> dict[str, MLP]:
    """The four networks of a problem that `rollout_unsupported_reason` accepts."""
    modules = {"reward": p.world.reward, "critic": p.world.critic}
    found: dict[str, MLP] = {name: module.get_submodule("mlp") for name, module in modules.items()}  # pyright: ignore
    assert isinstance(p.world.dynamics, ChainDynamics)
    return {"dynamics": p.world.dynamics.denoiser.mlp, "policy": refusals.policy_network(p.policy).mlp, **found}


def rollout_plan(p: Problem, m: int, precision: str, tile: Tile | None = None) -> Plan:
    """How a problem's rollout is cut: groups of particles that share a policy, (H+1) m columns.

    By default the smallest tile of rows with which all programs run at once, one to a multiprocessor.
    """
    T, group, groups = (p.H + 1) * m, p.M if p.batched else p.N * p.M, p.N if p.batched else 1
    widest = max(max(mlp.hidden) for mlp in networks(p).values())
    device = p.state.device
    tiles = (tile,) if tile else (DOUBLE,) if p.state.dtype == torch.float64 else ROLLOUT_TILES
    for tile in tiles:
        cut = plan(tile, group, T, widest, precision, device, all_at_once=True)
        if groups * cut.programs * cut.pieces <= multiprocessors(device):
            break
    return cut


def worthwhile(p: Problem) -> bool:
    """Whether a problem that `rollout_unsupported_reason` accepts is small enough for one launch to be the faster way."""
    f = p.world.dynamics
    assert isinstance(f, ChainDynamics)
    cut = rollout_plan(p, f.action_dim, "ieee")
    groups = p.N if p.batched else 1
    return groups * cut.programs * cut.pieces <= ROLLOUT_WAVES * multiprocessors(p.state.device)


@torch.no_grad()
def rollout(p: Problem, *, precision: str | None = None, tile: Tile | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """The rollout and the weights of ∇L = Σ_i w_i Π_ψ(i), in one launch.

    Returns:
        returns (N, M), w (H+1, N, M, m), states (H+1, N, M, d).

    Raises:
        ValueError: the kernel cannot serve the problem (see `rollout_unsupported_reason`), or the precision.
    """
    reason = rollout_unsupported_reason(p)
    if reason is not None:
        raise ValueError(f"{reason}; or use jacrec.kernels.gradient, whose launches are several")
    f, reward, critic = p.world.dynamics, p.world.reward, p.world.critic
    assert isinstance(f, ChainDynamics)
    assert isinstance(reward, RewardModel)
    assert isinstance(critic, TwinCritic)
    N, M, H, d, m = p.N, p.M, p.H, f.state_dim, f.action_dim
    cut = rollout_plan(p, m, check_precision(precision, p.state.dtype), tile)
    groups = N if p.batched else 1
    returns, w, states = (p.state.new_empty(*shape) for shape in ((N, M), (N, M, H + 1, m), (H + 1, N, M, d)))
    mlps = networks(p)
    discounts = on_device(tuple(p.world.discount**j for j in range(H + 1)), p.state)
    start(
        rollout_kernel,
        cut,
        returns,
        w,
        states,
        p.state.contiguous(),
        p.noise.contiguous(),
        discounts,
        *scales(f, *DYNAMICS_SCALES),
        level_table(f),
        coefficients(f, p.state),
        *parameters(mlps["dynamics"]),
        *parameters(mlps["policy"]),
        *scales(reward, "reward_mean", "reward_std", "state_mean", "state_std"),
        *parameters(mlps["reward"]),
        *parameters(mlps["critic"]),
        cut.scratch(p.state, 3 * groups),
        groups=groups,
        H=H,
        NOISES=f.noises,
        CRITICS=critic.critics,
        PARTICLES=M,
        GROUP=N * M // groups,
        **chain_constants(f),
        POLICY=net(mlps["policy"]),
        REWARD=net(mlps["reward"]),
        CRITIC=net(mlps["critic"]),
    )
    return returns, w.permute(2, 0, 1, 3), states


@torch.no_grad()
def rollout_gradient(p: Problem, *, precision: str | None = None, tile: Tile | None = None) -> PolicyGradient:
    """∇_ψ Ĵ from one rollout launch and one product with the policy's parameter Jacobian at all visited states."""
    returns, w, states = rollout(p, precision=precision, tile=tile)
    visited = Visited(p, [p.state.unsqueeze(1), *states[1:]], returns.mean(1))
    return visited.contract(list(w))
