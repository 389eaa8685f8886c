"""A gradient's job, prepared once for a policy and a world and checked at every use.

Most of what a job says about the networks does not change from decision to decision: where the parameters lie, sizes,
offsets. It is kept for the worlds used last. At each use every module, parameter, buffer and address is compared, so a
replaced layer or a moved tensor makes a new plan; and what was copied out of the parameters is copied again, so weights
that changed in place, by whatever hand, are seen.
"""

import operator
import threading
from collections import OrderedDict
from collections.abc import Collection
from itertools import chain, pairwise
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from jacrec.activations import ACTIVATIONS
from jacrec.dynamics import ChainDynamics, DeterministicDynamics
from jacrec.kernels.cpu import layout, rollout
from jacrec.kernels.cpu import transition as chains
from jacrec.kernels.cpu.plan import DTYPES, Plan, describe_chain, padded
from jacrec.kernels.cpu.threads import threads_for
from jacrec.networks import MLP, Affine, LayerNorm, RewardModel, TwinCritic
from jacrec.shapes import Problem

KEPT = 8
"""plans kept at most, those used last; their modules stay in memory as long, or until `forget()`"""
SIZES_KEPT = 64
"""jobs kept at most for one plan, by N, M, H, γ and number of threads"""
TILE = 16
"""rows that pass through all layers together: enough to use every weight loaded often, few enough to stay in the caches"""
TAPE_BYTES = 64 * 2**20
"""a tile has fewer rows where its tape would be larger"""

_plans: OrderedDict[tuple[int, ...], "Prepared"] = OrderedDict()
_lock = threading.Lock()


class Watch:
    """The parts of some modules as they are now."""

    def __init__(self, modules: list[nn.Module]):
        self.modules = modules
        self.places: list[tuple[dict, str]] = []
        """where parts hang: a module's attributes, and the name of one that is a dict of them"""
        for part in (part for module in modules for part in module.modules()):
            # a layer has no parts; what might be added to one is not used
            if type(part) not in (Affine, LayerNorm):
                self.places.append((part.__dict__, "_modules"))
            self.places += [(part.__dict__, kind) for kind in ("_parameters", "_buffers") if getattr(part, kind)]
        self.parts = self._parts()
        self.tensors = [x for x in self.parts if isinstance(x, Tensor)]
        self.as_they_lie = self._as_they_lie()

    def _parts(self) -> list[object]:
        return list(chain.from_iterable([own[kind].values() for own, kind in self.places]))

    def _as_they_lie(self) -> list[tuple]:
        return [(x.data_ptr(), x.shape, x.dtype, x.is_contiguous()) for x in self.tensors]

    def unchanged(self, modules: list[nn.Module]) -> bool:
        """Whether they still are those, with the same parts, at the same addresses."""
        return same(self.modules, modules) and same(self.parts, self._parts()) and self.as_they_lie == self._as_they_lie()


def same(these: Collection[object], those: Collection[object]) -> bool:
    """Whether two collections hold the same objects in the same order."""
    return len(these) == len(those) and all(map(operator.is_, these, those))


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
                     for net in (mlp, reward.mlp, f.denoiser.mlp if isinstance(f, ChainDynamics) else f.mlp)]  # fmt: skip
        self.addresses = {
            rollout.POLICY: plan.array(self.policy), rollout.REWARD: plan.array(self.reward),
            rollout.CRITIC: plan.array(self.critics), rollout.DENOISER: plan.array(self.denoiser),
            rollout.CHAIN: plan.array(self.chain), rollout.STEP_COEFFICIENTS: plan.array(self.steps),
            rollout.SCALES: plan.array(self.scales),
        }  # fmt: skip
        self.sized: dict[tuple, Sized] = {}

    def job(self, p: Problem, crew: int = 1) -> tuple[np.ndarray, "Sized"]:
        """A new job without addresses of states, results and memory; and what goes with it, to be held until it is done."""
        key = (p.N, p.M, p.H, p.world.discount, torch.get_num_threads(), crew)
        sized = self.sized.get(key)
        if sized is None:
            if len(self.sized) >= SIZES_KEPT:
                self.sized.clear()
            sized = self.sized[key] = self._sized(p, crew)
        return sized.job.copy(), sized

    def _sized(self, p: Problem, crew: int) -> "Sized":
        numbers, size = DTYPES[self.dtype], self.dtype.itemsize
        d, m, N, H, K = p.state.shape[-1], int(self.policy[0, layout.OUT]), p.N, p.H, int(self.chain[chains.STEPS])
        M = p.M if H else 1  # at the real state itself all particles agree
        policy, reward, denoiser = self.macs
        work = 2.0 * (H * (reward + K * denoiser) + (H + 1) * policy)
        threads = threads_for(N * M, work)
        crew = min(crew, torch.get_num_threads()) if N * M == 1 else 1
        threads = max(threads, crew)
        tape = max(1, H * K * int(self.denoiser[layout.TAPE]) * size)
        tile = max(1, min(TILE, -(-N * M // threads), TAPE_BYTES // tape))
        discounts = p.world.discount ** np.arange(H + 1)
        weights = discounts / (M if p.batched else N * M)
        buffers = rollout.buffers.py_func(d, m, H, self.policy, self.reward, self.critics, self.chain, self.denoiser, tile)
        room = -(-int(buffers[-1]) // 1024) * 1024  # no two threads in one page
        job = np.zeros(rollout.job_length(crew), dtype=np.int64)
        job[rollout.SHARES : rollout.TILE + 1] = 1 if crew > 1 else threads, crew, d, m, H, M, N * M, p.batched, tile
        for index, address in self.addresses.items():
            job[index] = address
        job[rollout.POLICIES], job[rollout.POLICY_LENGTH] = self.policy.shape
        job[rollout.CRITICS], job[rollout.CRITIC_LENGTH] = self.critics.shape
        job[rollout.REWARD_LENGTH], job[rollout.DENOISER_LENGTH] = len(self.reward), len(self.denoiser)
        factors = np.stack([discounts, weights]).astype(numbers)
        job[rollout.DISCOUNTS], job[rollout.WEIGHTS] = factors[0].ctypes.data, factors[1].ctypes.data
        return Sized(job, factors, threads, room)


class Sized(NamedTuple):
    """A job for certain sizes."""

    job: np.ndarray
    factors: np.ndarray  # γ^j and the rows' shares, (2, H+1), which the job points to
    threads: int
    room: int  # numbers of memory for each thread


def unfit(p: Problem) -> str | None:
    """Why the parts are not what their attributes say, or not all of the state's dtype on the CPU; None if they are.

    Plain torch computes with the tensors that it finds; compiled code would read past those that are smaller than said.
    """
    f, reward, critic = parts(p)
    d, m = p.state.shape[-1], f.action_dim
    mlp, inner = cast(MLP, p.policy.get_submodule("mlp")), f.denoiser.mlp if isinstance(f, ChainDynamics) else f.mlp
    extra = d + f.denoiser.times * f.denoiser.embedding_dim if isinstance(f, ChainDynamics) else 0
    if isinstance(f, ChainDynamics) and any(f.sigma) and f.noises <= f.diffusion_steps:
        return f"the dynamics' noise has {f.noises} rows, not one for each of {f.diffusion_steps} steps and the base sample"
    nets = (("policy", mlp, d, m), ("dynamics", inner, d + m + extra, d), ("reward", reward.mlp, d + m, 1),
            ("critic", critic.mlp, d + m, 1))  # fmt: skip
    for name, net, inputs, outputs in nets:
        lead = net.layers[0].weight.shape[:-2]
        widths = [inputs, *net.hidden, outputs]
        shapes = [(*lead, b, a) for a, b in pairwise(widths)]
        if [tuple(layer.weight.shape) for layer in net.layers] != shapes:
            return f"the {name}'s layers are not {shapes}, as its hidden={net.hidden} says"
        if [tuple(layer.bias.shape) for layer in net.layers] != [shape[:-1] for shape in shapes]:
            return f"the {name}'s biases do not fit its weights"
        norms = [tuple(x.shape) for norm in net.norms for x in (norm.weight, norm.bias)]
        if norms not in ([], [shape[:-1] for shape in shapes[:-1] for _ in range(2)]):
            return f"the {name}'s norms do not fit its hidden layers {net.hidden}"
        if any(norm.eps != LayerNorm.eps for norm in net.norms):
            return f"the {name}'s norms do not all have eps = {LayerNorm.eps}"
        if net.act != ACTIVATIONS.get(net.activation):
            return f"the {name}'s activation is not the {net.activation!r} that it says"
    if critic.mlp.layers[0].weight.shape[:-2] != (critic.critics,):
        return f"the critic's layers are not a stack of critics={critic.critics}"
    scales = {**{f"dynamics.{k}": (getattr(f, k), (d,)) for k in ("state_mean", "state_std", "out_mean", "out_std")},
              **{f"reward.{k}": (getattr(reward, k), (d,)) for k in ("state_mean", "state_std")},
              **{f"reward.{k}": (getattr(reward, k), ()) for k in ("reward_mean", "reward_std")}}  # fmt: skip
    for name, (scale, shape) in scales.items():
        if tuple(scale.shape) != shape:
            return f"{name} is not of shape {shape}, got {tuple(scale.shape)}"
    for named in (*(module.named_parameters() for module in modules(p)), ((k, scale) for k, (scale, _) in scales.items())):
        for name, tensor in named:
            if tensor.dtype != p.state.dtype or tensor.device.type != "cpu":
                return f"{name} is not {p.state.dtype} on the CPU like the state, got {tensor.dtype} on {tensor.device}"
    return None


def plan_or_reason(p: Problem) -> "Prepared | str":
    """The plan for a problem's policy and world, a kept one brought up to date or a new one; or why there can be none."""
    own = modules(p)
    key = tuple(id(module) for module in own)
    with _lock:
        found = _plans.get(key)
        if found is not None:
            _plans.move_to_end(key)
    if found is not None and found.dtype == p.state.dtype and found.watch.unchanged(own) and found.settings == settings(p):
        found.plan.refresh()
        return found
    reason = unfit(p)
    if reason is not None:
        return reason
    made = Prepared(p)
    # a plan that holds copies of whole weights (padded, or not contiguous) would not see them change
    if not made.plan.copied:
        with _lock:
            _plans[key] = made
            while len(_plans) > KEPT:
                _plans.popitem(last=False)
    return made


def forget() -> None:
    """Drop all plans, and with them the modules that they point to."""
    with _lock:
        _plans.clear()


def parts(p: Problem) -> tuple[ChainDynamics | DeterministicDynamics, RewardModel, TwinCritic]:
    """The world's parts, which are jacrec's own."""
    return (cast(ChainDynamics | DeterministicDynamics, p.world.dynamics), cast(RewardModel, p.world.reward),
            cast(TwinCritic, p.world.critic))  # fmt: skip


def modules(p: Problem) -> list[nn.Module]:
    """Policy, dynamics, reward, critic."""
    return [p.policy, *parts(p)]


def settings(p: Problem) -> tuple:
    """The plain attributes that the plan depends on."""
    f, reward, critic = parts(p)
    inner = f.denoiser.mlp if isinstance(f, ChainDynamics) else f.mlp
    mlps = (cast(MLP, p.policy.get_submodule("mlp")), inner, reward.mlp, critic.mlp)
    nets = [(net.act.name, net.activation, net.hidden, net.residual, net.tanh_output, *[norm.eps for norm in net.norms])
            for net in mlps]  # fmt: skip
    chain = (f.c_u, f.c_net, f.sigma, f.times, (f.noises,)) if isinstance(f, ChainDynamics) else ()
    return (*nets, f.target, critic.critics, *(tuple(c) for c in chain))


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
