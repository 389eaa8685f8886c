"""The fused adjoint form on the CPU: twin of `jacrec.gradient.adjoint_gradient`."""

from typing import cast

import numpy as np
import torch
from torch import Tensor

from jacrec import gradient as engine
from jacrec.dynamics import DeterministicDynamics, DiffusionDynamics
from jacrec.jacobians.policy import has_written_jacobian
from jacrec.kernels.cpu import chain, layout, rollout
from jacrec.kernels.cpu import transition as chains
from jacrec.kernels.cpu.plan import DTYPES, Plan, denoiser_of, describe_chain, padded
from jacrec.kernels.cpu.threads import run, threads_for, workspace
from jacrec.networks import MLP, RewardModel, TwinCritic, written_out
from jacrec.shapes import Problem
from jacrec.types import PolicyGradient

TILE = 16
"""rows that pass through all layers together: enough to use every weight loaded often, few enough to stay in the caches"""
TAPE_BYTES = 64 * 2**20
"""a tile has fewer rows where its tape would be larger"""


def unserved(p: Problem, form: str) -> str | None:
    """Why the fused CPU kernels cannot compute this gradient's `form`, "forward" or "adjoint"; None if they can."""
    if p.state.device.type != "cpu":
        return f"the CPU kernels take tensors on the CPU, got {p.state.device}"
    f = p.world.dynamics
    if form == "forward":
        if type(f) is DiffusionDynamics and written_out(f):
            return None
        return f"the fused forward form needs jacrec's own DiffusionDynamics, got {type(f).__name__}"
    if not has_written_jacobian(p.policy):
        return f"the policy is not jacrec's own Actor, got {type(p.policy).__name__}"
    if type(f) not in (DiffusionDynamics, DeterministicDynamics) or not written_out(f):
        return f"the dynamics are not jacrec's own DiffusionDynamics or DeterministicDynamics, got {type(f).__name__}"
    for name, part, kind in (("reward", p.world.reward, RewardModel), ("critic", p.world.critic, TwinCritic)):
        if type(part) is not kind or not written_out(part):
            return f"the {name} is not jacrec's own {kind.__name__}, got {type(part).__name__}"
    return None


@torch.no_grad()
def adjoint_gradient(p: Problem, *, recompute: bool = False, precision: str | None = None) -> PolicyGradient:
    """`jacrec.gradient.adjoint_gradient` in compiled code, tile by tile; `unserved(p)` must be None.

    `recompute` changes nothing here: the memory of a tile is bounded anyway (`TAPE_BYTES`). `precision` is that of the
    tensors; anything but None and "ieee" raises ValueError.
    """
    _check_precision(precision)
    dtype = p.state.dtype
    f, reward, critic = cast(DiffusionDynamics | DeterministicDynamics, p.world.dynamics), p.world.reward, p.world.critic
    assert isinstance(reward, RewardModel)
    assert isinstance(critic, TwinCritic)
    N, H, d = p.N, p.H, p.state.shape[-1]
    M = p.M if H else 1  # at the real state itself all particles agree
    plan = Plan(dtype)
    mlp: MLP = p.policy.get_submodule("mlp")
    policy = plan.network(mlp, mlp.layers[0].weight)
    reward_net = plan.network(reward.mlp, reward.mlp.layers[0].weight)[0]
    critics = plan.network(critic.mlp, critic.mlp.layers[0].weight)
    row, steps, denoiser = describe_chain(plan, f)
    scales = np.array([plan.address(x) for x in (reward.state_mean, reward.state_std, reward.reward_mean, reward.reward_std)])
    discounts = p.world.discount ** np.arange(H + 1)
    weights = discounts / (M if p.batched else N * M)
    call = H * (macs(reward.mlp) + int(row[chains.STEPS]) * macs(denoiser_of(f))) + (H + 1) * macs(mlp)
    threads = threads_for(N * M, 2 * call)
    tile = tile_rows(N * M, threads, H * int(row[chains.STEPS]) * int(denoiser[layout.TAPE]) * dtype.itemsize)
    numbers = DTYPES[dtype]
    returns = torch.empty(N * M, dtype=dtype)
    own = torch.empty((N if p.batched else 1) + threads - 1, int(policy[0, layout.GRADIENT]), dtype=dtype)
    room = int(rollout.buffers.py_func(d, mlp.out_dim, H, policy, reward_net, critics, row, denoiser, tile)[-1])
    room = -(-room // 1024) * 1024  # no two threads in one page
    job = np.zeros(rollout.JOB, dtype=np.int64)
    job[rollout.SHARES : rollout.TILE + 1] = threads, d, mlp.out_dim, H, M, N * M, p.batched, tile
    job[rollout.POLICY : rollout.DENOISER_LENGTH + 1] = (
        plan.array(policy), *policy.shape, plan.array(reward_net), len(reward_net), plan.array(critics), *critics.shape,
        plan.array(denoiser), len(denoiser),
    )  # fmt: skip
    job[rollout.CHAIN : rollout.JOB] = (
        plan.array(row), plan.array(steps), plan.array(scales), plan.array(discounts.astype(numbers)),
        plan.array(weights.astype(numbers)), plan.address(p.state), plan.address(p.noise), returns.data_ptr(), own.data_ptr(),
        workspace(threads * room, dtype).data_ptr(), room,
    )  # fmt: skip
    gradient, total = rollout.compiled(numbers)
    run(gradient, job, threads)
    if threads > 1:
        total.ctypes(job.ctypes.data)
    value = returns.view(N, M).mean(1)
    named = named_gradients(mlp, policy[0], own[: N if p.batched else 1], p.batched)
    return PolicyGradient(value.squeeze(0) if p.single else value, {f"mlp.{k}": v for k, v in named.items()})


def forward_gradient(p: Problem, *, precision: str | None = None) -> PolicyGradient:
    """`jacrec.gradient.forward_gradient` with the fused chain, values and tangents together; the rest is plain torch."""
    _check_precision(precision)
    return engine.forward_gradient(p, chain=chain)


def _check_precision(precision: str | None) -> None:
    if precision not in (None, "ieee"):
        raise ValueError(f'precision: expected None or "ieee" on a CPU, got {precision!r}; "tf32" is a format of GPUs')


def named_gradients(mlp: MLP, row: np.ndarray, flat: Tensor, batched: bool) -> dict[str, Tensor]:
    """The vector of gradients (policies, length) as the MLP's parameters, in their order of `named_parameters`."""
    dtype, gradient = flat.dtype, {}

    def piece(start: int, rows: int, columns: int, width: int) -> Tensor:
        block = flat[:, start : start + rows * width].view(flat.shape[0], rows, width)[..., :columns]
        return block if batched else block.squeeze(0)

    for i, layer in enumerate(mlp.layers):
        here = layout.LAYERS + i * layout.LAYER
        out, fan_in = layer.weight.shape[-2:]
        if i == len(mlp.hidden):
            to_weight, to_bias = row[layout.LAST_WEIGHT_GRADIENT], row[layout.LAST_BIAS_GRADIENT]
        else:
            to_weight, to_bias = row[here + layout.WEIGHT_GRADIENT], row[here + layout.BIAS_GRADIENT]
        if i == 0:
            weight = piece(row[layout.FIRST_GRADIENT], fan_in, out, padded(out, dtype)).mT
        else:
            weight = piece(to_weight, out, fan_in, padded(fan_in, dtype))
        gradient[f"layers.{i}.weight"] = weight
        gradient[f"layers.{i}.bias"] = piece(to_bias, 1, out, padded(out, dtype)).squeeze(-2)
    for i, norm in enumerate(mlp.norms):
        here, width = layout.LAYERS + i * layout.LAYER, norm.weight.shape[-1]
        for name, index in (("weight", layout.GAIN_GRADIENT), ("bias", layout.SHIFT_GRADIENT)):
            gradient[f"norms.{i}.{name}"] = piece(row[here + index], 1, width, padded(width, dtype)).squeeze(-2)
    return {name: value.contiguous() for name, value in gradient.items()}


def macs(mlp: MLP) -> int:
    """Multiply–adds of one row through a network."""
    return sum(layer.weight.shape[-1] * layer.weight.shape[-2] for layer in mlp.layers)


def tile_rows(rows: int, threads: int, tape_bytes: int) -> int:
    """Rows per tile: `TILE`, or fewer where a thread has fewer, or the tape (bytes per row) would not fit `TAPE_BYTES`."""
    return max(1, min(TILE, -(-rows // threads), TAPE_BYTES // max(1, tape_bytes)))
