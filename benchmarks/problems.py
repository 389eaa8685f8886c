"""The benchmarks' problems: weights, state and noise of a given size, identical in every run."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from jacrec import (
    Actor,
    DeterministicDynamics,
    DiffusionDynamics,
    EnsembleDynamics,
    FlowDynamics,
    MeanFlowDynamics,
    MultiStepDynamics,
    RewardModel,
    TwinCritic,
    World,
)
from jacrec.engine.types import PolicyGradient
from jacrec.models.dynamics import ChainDynamics
from jacrec.models.networks import MLP

TASKS = {"hopper": (11, 3), "halfcheetah": (17, 6), "walker2d": (17, 6), "antmaze": (29, 8)}
"""(d, m) of the environments' observations and actions"""

MODELS = ("diffusion", "ddim", "flow", "meanflow", "deterministic", "ensemble", "multistep")
"""kinds of world models, with K network evaluations per transition"""
ONE_EVALUATION = ("deterministic", "ensemble", "multistep")
"""kinds with K = 1: an ensemble evaluates the network drawn by a particle, a multi-step model one row per step"""
OneStep = ChainDynamics | DeterministicDynamics | EnsembleDynamics

Gradient = dict[str, Tensor]
"""∇_ψ Ĵ by `policy.named_parameters()` names"""


class Unavailable(Exception):
    """A contestant cannot be run; the message gives the reason."""


@dataclass(frozen=True)
class Size:
    """One problem: task dimensions, particles, horizon, denoising steps, width of three hidden layers, kind of world model."""

    task: str
    M: int
    H: int
    K: int = 10
    width: int = 256
    model: str = "diffusion"

    @property
    def d(self) -> int:
        return TASKS[self.task][0]

    @property
    def m(self) -> int:
        return TASKS[self.task][1]

    def __str__(self) -> str:
        return f"{self.task} (d {self.d}, m {self.m}), {self.model}, M {self.M}, H {self.H}, K {self.K}, width {self.width}"


@dataclass(frozen=True)
class Case:
    """The input of every contestant: the arguments of `policy_gradient`."""

    size: Size
    policy: Actor
    world: World
    state: Tensor  # (d,)
    noise: Tensor  # (M, H, *noise_shape)

    @property
    def dynamics(self) -> OneStep | MultiStepDynamics:
        assert isinstance(self.world.dynamics, OneStep | MultiStepDynamics)
        return self.world.dynamics

    @property
    def network(self) -> MLP:
        """The network of a world model."""
        return self.dynamics.denoiser.mlp if isinstance(self.dynamics, ChainDynamics) else self.dynamics.mlp

    @property
    def arguments(self) -> tuple[Actor, World, Tensor, Tensor]:
        return self.policy, self.world, self.state, self.noise

    def to(self, *, dtype: torch.dtype | None = None, device: str | None = None) -> "Case":
        """A copy with another dtype or device."""
        world = copy.deepcopy(self.world).to(device=device, dtype=dtype)
        policy = copy.deepcopy(self.policy).to(device=device, dtype=dtype)
        return Case(self.size, policy, world, self.state.to(device, dtype), self.noise.to(device, dtype))


@dataclass(frozen=True)
class Entry:
    """A contestant prepared for one case."""

    gradient: Callable[[], PolicyGradient]
    """computes the gradient, asynchronously on a GPU"""
    convert: Callable[[object], Gradient] | None = None
    """converts the result of `gradient` to torch tensors (not timed); None if it already is a `PolicyGradient`"""
    peak_bytes: int | None = None
    """peak memory reported by the contestant (JAX's compiler); None: measured by the benchmark"""
    ready_seconds: float | None = None
    """seconds of compilation or of the first call"""

    def flat(self) -> Tensor:
        """The gradient as one float64 vector on the CPU."""
        answer = self.gradient()
        gradient = self.convert(answer) if self.convert else answer.gradient
        return torch.cat([g.detach().reshape(-1).to("cpu", torch.float64) for g in gradient.values()])


def make_dynamics(size: Size) -> OneStep | MultiStepDynamics:
    """The world model of a size, with ReLU; "ddim" visits K of 10 K levels without noise."""
    d, m, hidden, K = size.d, size.m, (size.width,) * 3, size.K
    if size.model == "ddim":
        return DiffusionDynamics(d, m, hidden, steps=10 * K, sampler="ddim", levels=range(10, 10 * K + 1, 10))
    if size.model == "flow":
        return FlowDynamics(d, m, hidden, steps=K)
    if size.model == "meanflow":
        return MeanFlowDynamics(d, m, hidden, steps=K, activation="relu")
    if size.model in ONE_EVALUATION and K != 1:
        raise ValueError(f"K: expected 1 for model {size.model!r}, got {K}")
    if size.model == "deterministic":
        return DeterministicDynamics(d, m, hidden, activation="relu")
    if size.model == "ensemble":
        return EnsembleDynamics(d, m, hidden, activation="relu")
    if size.model == "multistep":
        return MultiStepDynamics(d, m, hidden, horizon=max(size.H, 1), activation="relu")
    return DiffusionDynamics(d, m, hidden, steps=K)


def make(size: Size, *, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0) -> Case:
    """Actor and twin critic of 3×256; denoiser and reward model with three layers of `size.width`, as in the paper.

    All weights are drawn from U(±1/√fan_in), since ReBRAC initialises the actor's last layer near zero, which leaves no gradient to
    compare. The world's parameters do not require gradients, which saves work for autograd.
    """
    generator = torch.Generator().manual_seed(seed)
    hidden = (size.width,) * 3
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy = Actor(size.d, size.m, (min(size.width, 256),) * 3)
        policy.mlp.initialise()
        dynamics = make_dynamics(size)
        critic = TwinCritic(size.d, size.m, (min(size.width, 256),) * 3)
        world = World(dynamics, RewardModel(size.d, size.m, hidden), critic, 0.99)
    for part in (dynamics, world.reward, critic):
        assert isinstance(part, torch.nn.Module)
        part.requires_grad_(False)
    state = torch.randn(size.d, generator=generator)
    noise = torch.randn(size.M, size.H, *dynamics.noise_shape, generator=generator)
    return Case(size, policy, world, state, noise).to(dtype=dtype, device=device)
