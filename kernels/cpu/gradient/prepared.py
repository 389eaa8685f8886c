"""A gradient's job, prepared once for a policy and a world and checked at every use.

Most of what a job says about the networks does not change from decision to decision: where the parameters lie, sizes,
offsets. It is kept for the worlds used last. At each use every module, parameter, buffer and address is compared, so a
replaced layer or a moved tensor makes a new plan; and before each gradient what was copied out of the policy is copied
again, and what was copied out of the world is compared, so weights that changed in place, by whatever hand, are seen.
"""

from itertools import pairwise
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from jacrec.engine.jacobians.policy import has_written_jacobian
from jacrec.engine.problem import Problem
from jacrec.kernels.cpu.base import layout
from jacrec.kernels.cpu.base.lru import LruStore
from jacrec.kernels.cpu.base.norms import EPS
from jacrec.kernels.cpu.base.threads import threads_for
from jacrec.kernels.cpu.gradient import copies, decision, rollout
from jacrec.kernels.cpu.gradient import transition as chains
from jacrec.kernels.cpu.gradient.plan import DTYPES, Plan, Refresher, Served, denoiser_of, describe_chain, padded
from jacrec.kernels.cpu.gradient.watch import Watch
from jacrec.models.activations import ACTIVATIONS
from jacrec.models.dynamics import ChainDynamics, EnsembleDynamics, MultiStepDynamics
from jacrec.models.networks import MLP, RewardModel, TwinCritic, has_manual_derivatives
from jacrec.models.world import BatchedPolicy, World

KEPT = 8
"""plans kept at most, those used last; their modules stay in memory as long, or until `forget()`"""
SIZES_KEPT = 64
"""jobs kept at most for one plan, by N, M, H, γ and number of threads"""
TILE = 16
"""rows that pass through all layers together: enough to use every weight loaded often, few enough to stay in the caches"""
TAPE_BYTES = 64 * 2**20
"""a tile has fewer rows where its tape would be larger"""

_plans: "LruStore[Prepared]" = LruStore(KEPT)


class Prepared:
    """What a job says about one policy and world; `job` adds sizes and fresh memory."""

    def __init__(self, policy: nn.Module, world: World, state: Tensor):
        self.dtype, self.state_dim = state.dtype, state.shape[-1]
        own, plan = self.plans = Plan(self.dtype), Plan(self.dtype)
        f, reward, critic = parts(world)
        mlp = policy_network(policy)
        self.watch, self.settings = Watch(modules(policy, world)), Settings(policy, world)
        self.policy = own.network(mlp, mlp.layers[0].weight)
        self.own_copies = copies.job(own.copies, [], own)
        self.reward = plan.network(reward.mlp, reward.mlp.layers[0].weight)[0]
        self.critics = plan.network(critic.mlp, critic.mlp.layers[0].weight)
        self.chain, self.steps, self.denoisers = describe_chain(plan, f)
        self.crewed = not (self.chain[chains.MEMBERS] or self.chain[chains.FROM_ACTIONS])
        """whether threads may share a row's layers"""
        self.scales = np.array(
            [plan.address(x) for x in (reward.state_mean, reward.state_std, reward.reward_mean, reward.reward_std)]
        )
        self.names = gradient_pieces(mlp, self.policy[0], self.dtype)
        self.parameters = list(policy.parameters())
        self.moving: dict[tuple[bool, ...], Moved] = {}
        """what an update moves, by what requires a gradient"""
        self.macs = [
            sum(layer.weight.shape[-1] * layer.weight.shape[-2] for layer in net.layers)
            for net in (mlp, reward.mlp, denoiser_of(f))
        ]
        self.addresses = {
            rollout.POLICY: plan.array(self.policy),
            rollout.REWARD: plan.array(self.reward),
            rollout.CRITIC: plan.array(self.critics),
            rollout.DENOISER: plan.array(self.denoisers),
            rollout.CHAIN: plan.array(self.chain),
            rollout.STEP_COEFFICIENTS: plan.array(self.steps),
            rollout.SCALES: plan.array(self.scales),
            rollout.OWN_COPIES: self.own_copies.ctypes.data,
        }
        self.sized: dict[tuple, SizedJob] = {}
        self.refresh = Refresher(own, plan)

    def moved(self) -> "Moved":
        """What an update moves: the parameters with requires_grad."""
        moves = tuple([x.requires_grad for x in self.parameters])
        found = self.moving.get(moves)
        if found is None:
            chosen = [i for i, moves_it in enumerate(moves) if moves_it]
            rows = [move_of(self.parameters[i], self.names[i]) for i in chosen]
            pieces = np.array(rows, dtype=np.int64).reshape(-1, decision.PIECE)
            found = self.moving[moves] = Moved(pieces, [self.parameters[i] for i in chosen])
        return found

    def job(self, p: Problem, crew: int = 1) -> tuple[np.ndarray, "SizedJob"]:
        """A new job without addresses of states, results and memory; and what goes with it, to be held until it is done."""
        key = (p.N, p.M, p.H, p.world.discount, torch.get_num_threads(), crew)
        sized = self.sized.get(key)
        if sized is None:
            if len(self.sized) >= SIZES_KEPT:
                self.sized.clear()
            sized = self.sized[key] = self._sized(p, crew)
        return sized.job.copy(), sized

    def _sized(self, p: Problem, crew: int) -> "SizedJob":
        numbers, size = DTYPES[self.dtype], self.dtype.itemsize
        d, m, N, H, K = p.state.shape[-1], int(self.policy[0, layout.OUT]), p.N, p.H, int(self.chain[chains.STEPS])
        M = p.M if H else 1  # at the real state itself all particles agree
        policy, reward, denoiser = self.macs
        work = 2.0 * (H * (reward + K * denoiser) + (H + 1) * policy)
        threads = threads_for(N * M, work)
        crew = min(crew, torch.get_num_threads()) if N * M == 1 and self.crewed else 1
        threads = max(threads, crew)
        tape = max(1, H * K * int(self.denoisers[0, layout.TAPE]) * size)
        tile = max(1, min(TILE, -(-N * M // threads), TAPE_BYTES // tape))
        discounts = p.world.discount ** np.arange(H + 1)
        weights = discounts / (M if p.batched else N * M)
        buffers = rollout.buffers.py_func(d, m, H, self.policy, self.reward, self.critics, self.chain, self.denoisers, tile)
        room = -(-int(buffers[-1]) // 1024) * 1024  # no two threads in one page
        job = np.zeros(rollout.job_length(crew), dtype=np.int64)
        job[rollout.SHARES : rollout.TILE + 1] = 1 if crew > 1 else threads, crew, d, m, H, M, N * M, p.batched, tile
        for index, address in self.addresses.items():
            job[index] = address
        job[rollout.POLICIES], job[rollout.POLICY_LENGTH] = self.policy.shape
        job[rollout.CRITICS], job[rollout.CRITIC_LENGTH] = self.critics.shape
        job[rollout.DENOISERS], job[rollout.DENOISER_LENGTH] = self.denoisers.shape
        job[rollout.REWARD_LENGTH] = len(self.reward)
        factors = np.stack([discounts, weights]).astype(numbers)
        job[rollout.DISCOUNTS], job[rollout.WEIGHTS] = factors[0].ctypes.data, factors[1].ctypes.data
        # the returns first, then each thread's share
        first = -(-N * M // 1024) * 1024
        length = int(self.policy[0, layout.GRADIENT])
        return SizedJob(job, factors, threads, int(job[rollout.SHARES]), first * size, first + threads * room, room, length)


class Moved(NamedTuple):
    """The part of ψ that an update moves."""

    pieces: np.ndarray  # as `decision` reads them, (n, PIECE)
    parameters: list[Tensor]


class SizedJob(NamedTuple):
    """A job for certain sizes."""

    job: np.ndarray
    factors: np.ndarray  # γ^j and the rows' shares, (2, H+1), which the job points to
    threads: int
    shares: int  # of the rows, each with gradients of its own
    first: int  # where the first thread's memory begins, in bytes: before it are the returns
    memory: int  # numbers of memory in all
    room: int  # and for each thread
    length: int  # of a policy's vector of gradients


def altered_reason(policy: nn.Module, world: World, state: Tensor) -> str | None:
    """Why the parts are not what their attributes say, or not all of the state's dtype on the CPU; None if they are.

    Plain torch computes with the tensors that it finds; compiled code would read past those that are smaller than said.
    """
    f, reward, critic = parts(world)
    d, m = state.shape[-1], f.action_dim
    mlp, inner = policy_network(policy), denoiser_of(f)
    extra = d + f.denoiser.times * f.denoiser.embedding_dim if isinstance(f, ChainDynamics) else 0
    if isinstance(f, MultiStepDynamics):
        extra = (f.horizon - 1) * m + f.horizon
    if isinstance(f, ChainDynamics) and any(f.sigma) and f.noises <= f.diffusion_steps:
        return f"the dynamics' noise has {f.noises} rows, not one for each of {f.diffusion_steps} steps and the base sample"
    scaled = isinstance(f, EnsembleDynamics) or (isinstance(f, MultiStepDynamics) and f.stochastic)
    outputs = 2 * d if scaled else d
    nets = (
        ("policy", mlp, d, m, policies(policy)),
        ("dynamics", inner, d + m + extra, outputs, members(f)),
        ("reward", reward.mlp, d + m, 1, ()),
        ("critic", critic.mlp, d + m, 1, (critic.critics,)),
    )
    for net in nets:
        reason = network_unfit(*net)
        if reason is not None:
            return reason
    if overlapping(mlp):
        return "parameters of the policy share memory, and a step would add to it twice"
    out = (f.horizon, d) if isinstance(f, MultiStepDynamics) else (d,)
    scales = {
        **{f"dynamics.{k}": (getattr(f, k), (d,)) for k in ("state_mean", "state_std")},
        **{f"dynamics.{k}": (getattr(f, k), out) for k in ("out_mean", "out_std")},
        **{f"reward.{k}": (getattr(reward, k), (d,)) for k in ("state_mean", "state_std")},
        **{f"reward.{k}": (getattr(reward, k), ()) for k in ("reward_mean", "reward_std")},
    }
    for name, (scale, shape) in scales.items():
        if tuple(scale.shape) != shape:
            return f"{name} is not of shape {shape}, got {tuple(scale.shape)}"
    named = [x.named_parameters() for x in modules(policy, world)]
    for name, tensor in (pair for pairs in (*named, ((k, scale) for k, (scale, _) in scales.items())) for pair in pairs):
        if tensor.dtype != state.dtype or tensor.device.type != "cpu":
            return f"{name} is not {state.dtype} on the CPU like the state, got {tensor.dtype} on {tensor.device}"
    return None


def network_unfit(name: str, net: MLP, inputs: int, outputs: int, lead: tuple[int, ...]) -> str | None:
    """Why a network's tensors, or those of a stack of `lead` networks, are not what its attributes say; None if they are."""
    if (net.in_dim, net.out_dim) != (inputs, outputs):
        return f"the {name} is not one from {inputs} to {outputs} numbers, as it says: {net.in_dim} to {net.out_dim}"
    shapes = [(*lead, b, a) for a, b in pairwise([inputs, *net.hidden, outputs])]
    if [tuple(layer.weight.shape) for layer in net.layers] != shapes:
        return f"the layers of the {name} are not {shapes}, as its hidden={net.hidden} says"
    if [tuple(layer.bias.shape) for layer in net.layers] != [shape[:-1] for shape in shapes]:
        return f"the biases of the {name} do not fit its weights"
    norms = [tuple(x.shape) for norm in net.norms for x in (norm.weight, norm.bias)]
    if norms not in ([], [shape[:-1] for shape in shapes[:-1] for _ in range(2)]):
        return f"the norms of the {name} do not fit its hidden layers {net.hidden}"
    if any(norm.eps != EPS for norm in net.norms):
        return f"the norms of the {name} do not all have eps = {EPS}"
    if net.act != ACTIVATIONS.get(net.activation):
        return f"the activation of the {name} is not the {net.activation!r} that it says"
    return None


def policies(policy: nn.Module) -> tuple[int, ...]:
    """(n,) of a `BatchedPolicy`, () of one policy."""
    return (policy.n,) if isinstance(policy, BatchedPolicy) else ()


def members(f: Served) -> tuple[int, ...]:
    """(n,) of an ensemble's networks, () of one network."""
    return (f.members,) if isinstance(f, EnsembleDynamics) else ()


def overlapping(net: MLP) -> bool:
    """Whether two elements of the parameters lie at the same address."""
    spans = []
    for x in net.parameters():
        if any(step == 0 and size > 1 for step, size in zip(x.stride(), x.shape, strict=True)):
            return True
        last = sum(step * (size - 1) for step, size in zip(x.stride(), x.shape, strict=True))
        spans.append((x.data_ptr(), x.data_ptr() + (last + 1) * x.element_size()))
    spans.sort()
    return any(end > begin for (_, end), (begin, _) in pairwise(spans))


def unsupported_reason(policy: nn.Module, world: World) -> str | None:
    """Why the kernels cannot serve such parts; None if they can."""
    f = world.dynamics
    if not has_written_jacobian(policy):
        return f"the policy is not jacrec's own Actor, as it was made, got {type(policy).__name__}"
    if not isinstance(f, Served) or not has_manual_derivatives(f):
        return f"the kernels serve jacrec's own world models, as they were made, got {type(f).__name__}"
    for name, part, kind in (("reward", world.reward, RewardModel), ("critic", world.critic, TwinCritic)):
        if type(part) is not kind or not has_manual_derivatives(part):
            return f"the {name} is not jacrec's own {kind.__name__}, as it was made, got {type(part).__name__}"
    return None


def kept(policy: nn.Module, world: World, state: Tensor) -> "Prepared | None":
    """The plan kept for a policy and world that takes such a state, where nothing has changed since it was made."""
    own = modules(policy, world)
    found = _plans.get(tuple(map(id, own)))
    if found is None or found.dtype != state.dtype or found.state_dim != state.shape[-1]:
        return None
    return found if found.watch.unchanged(own) and found.settings.unchanged() else None


def plan_or_reason(policy: nn.Module, world: World, state: Tensor) -> "Prepared | str":
    """The plan for a policy and world, a kept one or a new one, which is kept; or why there can be none."""
    found = kept(policy, world, state)
    if found is not None:
        return found
    reason = unsupported_reason(policy, world) or altered_reason(policy, world, state)
    if reason is not None:
        return reason
    made = Prepared(policy, world, state)
    _plans.put(tuple(map(id, modules(policy, world))), made)
    return made


def forget() -> None:
    """Drop all plans, and with them the modules that they point to."""
    _plans.clear()


def parts(world: World) -> tuple[Served, RewardModel, TwinCritic]:
    """The world's parts, which are jacrec's own."""
    return (cast(Served, world.dynamics), cast(RewardModel, world.reward), cast(TwinCritic, world.critic))


def modules(policy: nn.Module, world: World) -> list[nn.Module]:
    """Policy, dynamics, reward, critic."""
    return [policy, *parts(world)]


class Settings:
    """The plain attributes that a plan depends on, as they are now."""

    def __init__(self, policy: nn.Module, world: World):
        self.f, reward, self.critic = parts(world)
        # looked up once: a Watch notices where these are exchanged
        self.nets = (policy_network(policy), denoiser_of(self.f), reward.mlp, self.critic.mlp)
        self.values = self._values()

    def _values(self) -> list:
        f = self.f
        chain = [tuple(f.c_u), tuple(f.c_net), tuple(f.sigma), tuple(f.times), f.noises] if isinstance(f, ChainDynamics) else []
        own = (f.members,) if isinstance(f, EnsembleDynamics) else ()
        if isinstance(f, MultiStepDynamics):
            own = f.horizon, f.stochastic, f.sweeps
        return [*map(architecture, self.nets), getattr(f, "target", None), self.critic.critics, own, *chain]

    def unchanged(self) -> bool:
        """Whether they still are."""
        return self._values() == self.values


def architecture(net: MLP) -> tuple:
    """What a network's tensors do not say."""
    eps = [norm.eps for norm in net._modules["norms"]]  # pyright: ignore
    return net.act, net.activation, net.hidden, net.residual, net.tanh_output, eps


def policy_network(policy: nn.Module) -> MLP:
    """The network of an `Actor`, or the stack of networks of a `BatchedPolicy`."""
    return cast(MLP, policy.get_submodule("mlp"))


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


def move_of(parameter: Tensor, piece: tuple[str, int, tuple[int, ...], tuple[int, ...]]) -> list[int]:
    """A parameter as `decision` reads it; its last axes are those of `gradient_pieces`."""
    _, start, shape, strides = piece
    own, lead = parameter.stride(), parameter.dim() - len(shape)
    step = own[0] if lead else 0
    if len(shape) == 1:
        return [parameter.data_ptr(), step, 0, own[-1], start, 0, 1, shape[0]]
    (rows, columns), (to_row, to_column), (row_step, column_step) = shape, own[-2:], strides
    if column_step != 1:  # it lies transposed in the gradient
        rows, columns, to_row, to_column, row_step = columns, rows, to_column, to_row, column_step
    return [parameter.data_ptr(), step, to_row, to_column, start, row_step, rows, columns]


def named_gradients(prepared: Prepared, own: Tensor, policies: int, batched: bool) -> dict[str, Tensor]:
    """The rows of gradients (policies, length) as the policy's parameters."""
    length, result = own.shape[1], {}
    for name, start, shape, strides in prepared.names:
        lead, step = ((policies,), (length,)) if batched else ((), ())
        result[name] = own.as_strided((*lead, *shape), (*step, *strides), start).contiguous()
    return result
