"""The fused adjoint form on the CPU: twin of `jacrec.gradient.adjoint_gradient`."""

import numpy as np
import torch
from torch import Tensor

from jacrec.dynamics import DeterministicDynamics, DiffusionDynamics
from jacrec.jacobians.chain import level_table
from jacrec.jacobians.policy import has_written_jacobian
from jacrec.kernels.cpu import chain as chains
from jacrec.kernels.cpu import layout, rollout
from jacrec.kernels.cpu.plan import DTYPES, Plan, padded
from jacrec.kernels.cpu.threads import run, threads_for, workspace
from jacrec.networks import MLP, RewardModel, TwinCritic, written_out
from jacrec.shapes import Problem
from jacrec.types import PolicyGradient

TILE = 16
"""rows that pass through all layers together: enough to use every weight loaded often, few enough to stay in the caches"""
TAPE_BYTES = 64 * 2**20
"""a tile has fewer rows where its tape would be larger"""


def unserved(p: Problem, form: str = "adjoint") -> str | None:
    """Why the fused CPU kernels cannot compute this gradient; None if they can."""
    if p.state.device.type != "cpu":
        return f"the CPU kernels take tensors on the CPU, got {p.state.device}"
    if not has_written_jacobian(p.policy):
        return f"the policy is not jacrec's own Actor, got {type(p.policy).__name__}"
    f = p.world.dynamics
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
    if precision not in (None, "ieee"):
        raise ValueError(f'precision: expected None or "ieee" on a CPU, got {precision!r}; "tf32" is a format of GPUs')
    dtype = p.state.dtype
    f, reward, critic = p.world.dynamics, p.world.reward, p.world.critic
    N, H, d = p.N, p.H, p.state.shape[-1]
    M = p.M if H else 1  # at the real state itself all particles agree
    plan = Plan(dtype)
    mlp: MLP = p.policy.get_submodule("mlp")
    policy = plan.network(mlp, mlp.layers[0].weight)
    reward_net = plan.network(reward.mlp, reward.mlp.layers[0].weight)[0]
    critics = plan.network(critic.mlp, critic.mlp.layers[0].weight)
    chain, steps, denoiser = describe_chain(plan, f)
    scales = np.array([plan.address(x) for x in (reward.state_mean, reward.state_std, reward.reward_mean, reward.reward_std)])
    discounts = p.world.discount ** np.arange(H + 1)
    weights = discounts / (M if p.batched else N * M)
    call = H * (macs(reward.mlp) + int(chain[chains.STEPS]) * macs(denoiser_of(f))) + (H + 1) * macs(mlp)
    threads = threads_for(N * M, 2 * call)
    tile = tile_rows(N * M, threads, H * int(chain[chains.STEPS]) * int(denoiser[layout.TAPE]) * dtype.itemsize)
    numbers = DTYPES[dtype]
    returns = torch.empty(N * M, dtype=dtype)
    own = torch.empty((N if p.batched else 1) + threads - 1, int(policy[0, layout.GRADIENT]), dtype=dtype)
    room = -(-int(rollout.buffers.py_func(d, mlp.out_dim, H, policy, reward_net, critics, chain, denoiser, tile)[-1]) // 1024) * 1024
    job = np.zeros(rollout.JOB, dtype=np.int64)
    job[rollout.SHARES : rollout.TILE + 1] = threads, d, mlp.out_dim, H, M, N * M, p.batched, tile
    job[rollout.POLICY : rollout.DENOISER_LENGTH + 1] = (
        plan.array(policy), *policy.shape, plan.array(reward_net), len(reward_net), plan.array(critics), *critics.shape,
        plan.array(denoiser), len(denoiser),
    )  # fmt: skip
    job[rollout.CHAIN : rollout.JOB] = (
        plan.array(chain), plan.array(steps), plan.array(scales), plan.array(discounts.astype(numbers)),
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


def describe_chain(plan: Plan, f: DiffusionDynamics | DeterministicDynamics) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The chain's row, its step coefficients (3, K), and its network's row."""
    d, m = f.state_dim, f.action_dim
    row = np.zeros(chains.CHAIN, dtype=np.int64)
    net = plan.network(denoiser_of(f))[0]
    if isinstance(f, DiffusionDynamics):
        W_u, W_sa, _, _ = f.denoiser.split()
        steps = np.array([f.c_u, f.c_net, f.sigma])
        row[chains.HAS_LATENT], row[chains.FROM_LATENT] = True, plan.transposed(W_u)
        row[chains.TABLE], row[chains.TABLE_STRIDE] = plan.address(level_table(f)), W_u.shape[0]
    else:
        W_sa, steps = f.mlp.layers[0].weight, np.array([[0.0], [1.0], [0.0]])
        row[chains.TABLE] = plan.address(f.mlp.layers[0].bias)
    row[chains.STATE_DIM], row[chains.ACTION_DIM], row[chains.STEPS] = d, m, steps.shape[1]
    row[chains.DIFFERENCE], row[chains.FROM_INPUT] = f.target == "difference", plan.transposed(W_sa)
    for index, name in ((chains.STATE_MEAN, "state_mean"), (chains.STATE_STD, "state_std"),
                        (chains.OUT_MEAN, "out_mean"), (chains.OUT_STD, "out_std")):  # fmt: skip
        row[index] = plan.address(getattr(f, name))
    return row, steps.astype(DTYPES[plan.dtype]), net


def denoiser_of(f: DiffusionDynamics | DeterministicDynamics) -> MLP:
    """The network that the dynamics call K times, or once."""
    return f.denoiser.mlp if isinstance(f, DiffusionDynamics) else f.mlp


def macs(mlp: MLP) -> int:
    """Multiply–adds of one row through a network."""
    return sum(layer.weight.shape[-1] * layer.weight.shape[-2] for layer in mlp.layers)


def tile_rows(rows: int, threads: int, tape_bytes: int) -> int:
    """Rows per tile: `TILE`, or fewer where a thread has fewer or the tape, of so many bytes a row, would not fit `TAPE_BYTES`."""
    return max(1, min(TILE, -(-rows // threads), TAPE_BYTES // max(1, tape_bytes)))
