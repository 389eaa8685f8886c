"""A gradient's job, prepared once for a policy and a world and checked at every use.

Most of what a job says about the networks does not change from decision to decision: where the parameters lie, sizes,
offsets. It is kept for the worlds used last. At each use every module, parameter, buffer and address is compared, so a
replaced layer or a moved tensor makes a new plan; and what was copied out of the parameters is copied again, so weights
that changed in place, by whatever hand, are seen.
"""

import threading
import weakref
from collections import OrderedDict
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from jacrec.dynamics import DeterministicDynamics, DiffusionDynamics
from jacrec.kernels.cpu import layout, rollout
from jacrec.kernels.cpu import transition as chains
from jacrec.kernels.cpu.plan import DTYPES, Plan, describe_chain, padded
from jacrec.kernels.cpu.threads import threads_for
from jacrec.networks import MLP, RewardModel, TwinCritic
from jacrec.shapes import Problem

KEPT = 8
"""plans kept at most, those used last; the parameters that they point to stay in memory as long"""
TILE = 16
"""rows that pass through all layers together: enough to use every weight loaded often, few enough to stay in the caches"""
TAPE_BYTES = 64 * 2**20
"""a tile has fewer rows where its tape would be larger"""

_plans: OrderedDict[tuple[int, ...], "Prepared"] = OrderedDict()
_lock = threading.Lock()


class Watch:
    """The parts of some modules as they are now."""

    def __init__(self, modules: list[nn.Module]):
        self.owners = [weakref.ref(module) for module in modules]
        self.parts, self.tensors = [], []
        for module in modules:
            for part in module.modules():
                self.parts += [(held, *item) for held in (part._parameters, part._buffers) for item in held.items()]
                self.parts += [(part._modules, k, weakref.ref(v)) for k, v in part._modules.items() if v is not None]
                tensors = [*part._parameters.values(), *part._buffers.values()]
                self.tensors += [(t, t.data_ptr(), t.is_contiguous()) for t in tensors if t is not None]

    def unchanged(self, modules: list[nn.Module]) -> bool:
        """Whether they still are those, with the same parts, at the same addresses."""
        if any(owner() is not module for owner, module in zip(self.owners, modules, strict=True)):
            return False
        for held, name, value in self.parts:
            now = held.get(name)
            if now is not value and not (type(value) is weakref.ref and value() is now):
                return False
        return all(t.data_ptr() == address and t.is_contiguous() == dense for t, address, dense in self.tensors)


class Prepared:
    """What a job says about one policy and world; `job` adds sizes and fresh memory."""

    def __init__(self, p: Problem):
        self.dtype = p.state.dtype
        plan = self.plan = Plan(self.dtype)
        f, reward, critic = parts(p)
        mlp = cast(MLP, p.policy.get_submodule("mlp"))
        self.watch, self.settings = Watch(modules(p)), settings(p)
        self.policy = plan.network(mlp, mlp.layers[0].weight)
        self.reward = plan.network(reward.mlp, reward.mlp.layers[0].weight)[0]
        self.critics = plan.network(critic.mlp, critic.mlp.layers[0].weight)
        self.chain, self.steps, self.denoiser = describe_chain(plan, f)
        self.scales = np.array(
            [plan.address(x) for x in (reward.state_mean, reward.state_std, reward.reward_mean, reward.reward_std)]
        )
        self.pieces = gradient_pieces(mlp, self.policy[0], self.dtype)
        self.macs = [sum(layer.weight.shape[-1] * layer.weight.shape[-2] for layer in net.layers)
                     for net in (mlp, reward.mlp, f.denoiser.mlp if isinstance(f, DiffusionDynamics) else f.mlp)]  # fmt: skip
        self.sized: dict[tuple, tuple[np.ndarray, int, int]] = {}

    def job(self, p: Problem) -> tuple[np.ndarray, int, int]:
        """A new job without addresses of states, results and memory; the threads it is for; numbers of memory for each."""
        threads_now = torch.get_num_threads()
        key = (p.N, p.M, p.H, p.world.discount, threads_now)
        if key not in self.sized:
            if len(self.sized) > 64:
                self.sized.clear()
            self.sized[key] = self._sized(p)
        template, threads, room = self.sized[key]
        return template.copy(), threads, room

    def _sized(self, p: Problem) -> tuple[np.ndarray, int, int]:
        plan, numbers, size = self.plan, DTYPES[self.dtype], self.dtype.itemsize
        d, m, N, H, K = p.state.shape[-1], int(self.policy[0, layout.OUT]), p.N, p.H, int(self.chain[chains.STEPS])
        M = p.M if H else 1  # at the real state itself all particles agree
        policy, reward, denoiser = self.macs
        threads = threads_for(N * M, 2 * (H * (reward + K * denoiser) + (H + 1) * policy))
        tape = max(1, H * K * int(self.denoiser[layout.TAPE]) * size)
        tile = max(1, min(TILE, -(-N * M // threads), TAPE_BYTES // tape))
        discounts = p.world.discount ** np.arange(H + 1)
        weights = discounts / (M if p.batched else N * M)
        buffers = rollout.buffers.py_func(d, m, H, self.policy, self.reward, self.critics, self.chain, self.denoiser, tile)
        room = -(-int(buffers[-1]) // 1024) * 1024  # no two threads in one page
        job = np.zeros(rollout.JOB, dtype=np.int64)
        job[rollout.SHARES : rollout.TILE + 1] = threads, d, m, H, M, N * M, p.batched, tile
        job[rollout.POLICY : rollout.DENOISER_LENGTH + 1] = (
            plan.array(self.policy), *self.policy.shape, plan.array(self.reward), len(self.reward), plan.array(self.critics),
            *self.critics.shape, plan.array(self.denoiser), len(self.denoiser),
        )  # fmt: skip
        job[rollout.CHAIN : rollout.STATE] = (
            plan.array(self.chain), plan.array(self.steps), plan.array(self.scales), plan.array(discounts.astype(numbers)),
            plan.array(weights.astype(numbers)),
        )  # fmt: skip
        return job, threads, room


def prepared(p: Problem) -> Prepared:
    """The plan for a problem's policy and world: a kept one, brought up to date, or a new one."""
    own = modules(p)
    key = tuple(id(module) for module in own)
    with _lock:
        found = _plans.get(key)
        if found is not None:
            _plans.move_to_end(key)
    if found is not None and found.dtype == p.state.dtype and found.watch.unchanged(own) and found.settings == settings(p):
        found.plan.refresh()
        return found
    made = Prepared(p)
    # a plan that holds copies of whole weights (padded, or not contiguous) would not see them change
    if not made.plan.copied:
        with _lock:
            _plans[key] = made
            while len(_plans) > KEPT:
                _plans.popitem(last=False)
    return made


def parts(p: Problem) -> tuple[DiffusionDynamics | DeterministicDynamics, RewardModel, TwinCritic]:
    """The world's parts, which are jacrec's own."""
    return (cast(DiffusionDynamics | DeterministicDynamics, p.world.dynamics), cast(RewardModel, p.world.reward),
            cast(TwinCritic, p.world.critic))  # fmt: skip


def modules(p: Problem) -> list[nn.Module]:
    """Policy, dynamics, reward, critic."""
    return [p.policy, *parts(p)]


def settings(p: Problem) -> tuple:
    """The plain attributes that the plan depends on."""
    f, reward, critic = parts(p)
    inner = f.denoiser.mlp if isinstance(f, DiffusionDynamics) else f.mlp
    mlps = (cast(MLP, p.policy.get_submodule("mlp")), inner, reward.mlp, critic.mlp)
    nets = [(net.act.name, net.residual, net.tanh_output) for net in mlps]
    chain = (f.c_u, f.c_net, f.sigma) if isinstance(f, DiffusionDynamics) else ()
    return (*nets, f.target, *(tuple(c) for c in chain))


def gradient_pieces(mlp: MLP, row: np.ndarray, dtype: torch.dtype) -> list[tuple[str, int, tuple[int, ...], tuple[int, ...]]]:
    """Where each parameter's gradient lies in a policy's vector: name, start, shape, strides; in `named_parameters` order."""
    pieces = {}
    for i, layer in enumerate(mlp.layers):
        here = layout.LAYERS + i * layout.LAYER
        out, fan_in = layer.weight.shape[-2:]
        if i == len(mlp.hidden):
            to_weight, to_bias = row[layout.LAST_WEIGHT_GRADIENT], row[layout.LAST_BIAS_GRADIENT]
        else:
            to_weight, to_bias = row[here + layout.WEIGHT_GRADIENT], row[here + layout.BIAS_GRADIENT]
        if i == 0:
            pieces["layers.0.weight"] = int(row[layout.FIRST_GRADIENT]), (out, fan_in), (1, padded(out, dtype))
        else:
            pieces[f"layers.{i}.weight"] = int(to_weight), (out, fan_in), (padded(fan_in, dtype), 1)
        pieces[f"layers.{i}.bias"] = int(to_bias), (out,), (1,)
    for i, norm in enumerate(mlp.norms):
        here, width = layout.LAYERS + i * layout.LAYER, norm.weight.shape[-1]
        pieces[f"norms.{i}.weight"] = int(row[here + layout.GAIN_GRADIENT]), (width,), (1,)
        pieces[f"norms.{i}.bias"] = int(row[here + layout.SHIFT_GRADIENT]), (width,), (1,)
    return [(f"mlp.{name}", *pieces[name]) for name, _ in mlp.named_parameters()]


def named_gradients(prepared: Prepared, own: Tensor, policies: int, batched: bool) -> dict[str, Tensor]:
    """The rows of gradients (policies, length) as the policy's parameters."""
    length, result = own.shape[1], {}
    for name, start, shape, strides in prepared.pieces:
        lead, step = ((policies,), (length,)) if batched else ((), ())
        result[name] = own.as_strided((*lead, *shape), (*step, *strides), start).contiguous()
    return result
