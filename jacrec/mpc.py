"""Algorithm 1: improve the policy's own parameters in imagination, then act; and the controller around it."""

import copy
import time
from dataclasses import dataclass
from typing import overload

import numpy as np
import torch
from torch import Tensor, nn

from jacrec.ascent import TrustRegion, ascend
from jacrec.errors import expect_one_of
from jacrec.methods import METHODS, Auto, Method
from jacrec.rollout import noise_like
from jacrec.shapes import Problem, check_state, problem
from jacrec.world import BatchedPolicy, World


@dataclass(frozen=True)
class MPCStep:
    """What one decision did; E updates were made."""

    action: Tensor
    """π_ψ(s_t) after the updates, (m,) or (N, m)"""
    objective: Tensor
    """Ĵ(ψ) at the start of each update, (E,) or (E, N)"""
    gradient_norm: Tensor
    """‖∇_ψ Ĵ‖ before clipping, (E,); one per row of a `BatchedPolicy`, (E, N)"""
    accepted: Tensor
    """whether ψ moved, shaped as `gradient_norm`; False where a value or gradient was not finite"""


def mpc_update(
    policy: nn.Module,
    world: World,
    state: Tensor,
    *,
    horizon: int = 5,
    particles: int = 16,
    updates: int = 1,
    lr: float = 5e-5,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    method: Method = Auto(),
    max_grad_norm: float | None = None,
) -> MPCStep:
    """Algorithm 1, lines 3–18: `updates` steps of gradient ascent on Ĵ from `state`, in place on ψ, then the action.

    Args:
        policy: state -> action in [-1, 1], changed in place; a `BatchedPolicy` has one ψ per row of `state`.
        world: f_θ, r_ξ, Q_φ and γ.
        state: the observed s_t, (d,), or (N, d).
        horizon: H imagined steps; 0 ascends the critic at s_t alone.
        particles: M imagined trajectories per state.
        updates: E gradient steps; the noise stays the same over them.
        lr: step size α of (4).
        noise: (M, H, *noise_shape) or (N, M, H, *noise_shape) instead of fresh standard normal noise; decides M and H.
        generator: where fresh noise comes from; torch's global one by default.
        method: how the gradient is computed (`jacrec.methods`); the result is the same.
        max_grad_norm: scale longer gradients down to this norm, row by row.

    Returns:
        `MPCStep`. A row whose value or gradient is not finite keeps its ψ exactly, is marked in `accepted`, and acts all
        the same. With one ψ for N states the rows stand and fall together.

    Raises:
        ValueError: wrong shape, dtype, device or setting, or a state or noise that is not finite.
    """
    if noise is None:
        _at_least("horizon", horizon, 0)
        _at_least("particles", particles, 1)
        checked, single = check_state(policy, world, state)
        noise = noise_like(world, checked[0] if single else checked, particles, horizon, generator)
    _at_least("updates", updates, 0)
    p = problem(policy, world, state, noise)
    trace = Trace(p)
    for _ in range(updates):  # line 3
        estimate = method.gradient(p)  # lines 4–15
        trace.add(estimate.value, *ascend(p, estimate, lr, max_grad_norm))  # line 16
    return trace.step()  # line 18


class Trace:
    """What the updates of one decision did so far."""

    def __init__(self, p: Problem):
        self.problem = p
        self.objective: list[Tensor] = []
        self.gradient_norm: list[Tensor] = []
        self.accepted: list[Tensor] = []

    def add(self, objective: Tensor, gradient_norm: Tensor, accepted: Tensor) -> None:
        """One update's Ĵ () or (N,), norm and acceptance."""
        self.objective.append(objective)
        self.gradient_norm.append(gradient_norm)
        self.accepted.append(accepted)

    def step(self) -> MPCStep:
        """The `MPCStep`, with the action that the policy now takes."""
        p = self.problem
        row = (p.N,) if not p.single else ()
        norm_row = (p.N,) if p.batched and not p.single else ()

        def stacked(rows: list[Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
            return torch.stack(rows) if rows else torch.empty(0, *shape, dtype=dtype, device=p.state.device)

        with torch.no_grad():
            action = p.policy(p.state.unsqueeze(1)).squeeze(1)
        return MPCStep(
            action.squeeze(0) if p.single else action,
            stacked(self.objective, row, p.state.dtype),
            stacked(self.gradient_norm, norm_row, p.state.dtype),
            stacked(self.accepted, norm_row, torch.bool),
        )


@dataclass(frozen=True)
class MPCConfig:
    """Settings of the controller; the defaults are those of `mpc_update`."""

    horizon: int = 5
    """H imagined steps per trajectory; 0: ascent on the critic at the observed state, no world model (Algorithm 1)"""
    particles: int = 16
    """M imagined trajectories per decision (section 4.2)"""
    updates: int = 1
    """E gradient steps per decision (4)"""
    lr: float = 5e-5
    """step size α of (4), plain gradient ascent"""
    max_grad_norm: float | None = None
    """scale longer gradients down to this norm"""
    trust_radius: float | None = None
    """largest ‖ψ − ψ₀‖ from the pretrained parameters; ψ is projected onto the ball"""
    carry: str = "episode"
    """what ψ does: "episode" is carried between decisions and restored by `new_episode`, "persist" is carried through
    episodes, "step" restarts from the pretrained ψ at every decision"""
    deadline_ms: float | None = None
    """answer within about this time with the best ψ so far; an update is begun only if it is expected to end in time"""
    method: str = "auto"
    """"forward", "adjoint", "autograd" or "auto\""""
    seed: int = 0
    """of the imagination's noise"""

    def __post_init__(self):
        _at_least("horizon", self.horizon, 0)
        _at_least("particles", self.particles, 1)
        _at_least("updates", self.updates, 0)
        expect_one_of("carry", self.carry, ("episode", "persist", "step"))
        expect_one_of("method", self.method, METHODS)
        for name in ("max_grad_norm", "trust_radius", "deadline_ms"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name}: expected a positive number or None, got {value}")


class MPC:
    """A controller that thinks before each action: `act(observation)` runs Algorithm 1 on its own copy of the policy.

    Args:
        policy: the pretrained π_ψ; copied, never changed.
        world: the `World` it imagines in.
        config: `MPCConfig`.
        batch: N to control N environments in lock-step, each with its own ψ; None for one.
    """

    def __init__(self, policy: nn.Module, world: World, config: MPCConfig | None = None, *, batch: int | None = None):
        self.world, self.config = world, config or MPCConfig()
        self.policy = copy.deepcopy(policy) if batch is None else BatchedPolicy(policy, batch)
        self.policy.eval()
        self.batch = batch
        self.pretrained = {name: p.detach().clone() for name, p in self.policy.named_parameters()}
        first = next(iter(self.pretrained.values()), None)
        if first is None:
            raise ValueError("policy: expected a module with parameters to improve, got none")
        self.dtype, self.device = first.dtype, first.device
        self.generator = torch.Generator(self.device).manual_seed(self.config.seed)
        self.method = METHODS[self.config.method]
        self.last: MPCStep | None = None
        """the latest decision"""
        self._update_seconds = 0.0  # the longest of the recent updates

    @overload
    def act(self, observation: np.ndarray) -> np.ndarray: ...
    @overload
    def act(self, observation: Tensor) -> Tensor: ...
    def act(self, observation):
        """The action for an observation (d,) -> (m,), or for N of them (N, d) -> (N, m); numpy in, numpy out.

        Raises:
            ValueError: an observation of the wrong shape or that is not finite.
        """
        start = time.perf_counter()
        state = torch.as_tensor(observation, dtype=self.dtype, device=self.device)
        expected = 1 if self.batch is None else 2
        if state.dim() != expected or (self.batch is not None and state.shape[0] != self.batch):
            shape = "(d,)" if self.batch is None else f"({self.batch}, d)"
            raise ValueError(f"observation: expected shape {shape}, got {tuple(state.shape)}; MPC(batch=N) controls N of them")
        if self.config.carry == "step":
            self.reset()
        self.last = self._think(state, start)
        action = self.last.action
        return action.cpu().numpy() if isinstance(observation, np.ndarray) else action

    def _think(self, state: Tensor, start: float) -> MPCStep:
        c = self.config
        noise = noise_like(self.world, state, c.particles, c.horizon, self.generator)
        p = problem(self.policy, self.world, state, noise)
        region = TrustRegion(self.pretrained, c.trust_radius)
        trace, best = Trace(p), Best(p) if c.deadline_ms is not None else None
        for _ in range(c.updates):
            begun = time.perf_counter()
            if c.deadline_ms is not None and begun - start + self._update_seconds > c.deadline_ms * 1e-3:
                break
            estimate = self.method.gradient(p)
            if best is not None:
                best.keep(estimate.value)
            trace.add(estimate.value, *ascend(p, estimate, c.lr, c.max_grad_norm))
            region.project(self.policy)
            if c.deadline_ms is not None:
                trace.accepted[-1].cpu()  # wait for the device: the clock has to see the whole update
                # the longest recent update, slowly forgotten: a deadline has to hold in the slow cases
                self._update_seconds = max(time.perf_counter() - begun, 0.98 * self._update_seconds)
        if best is not None:
            best.restore_where_worse()
        return trace.step()

    def reset(self, rows=None) -> None:
        """Back to the pretrained ψ, in all rows or in those given (indices or a mask over N)."""
        with torch.no_grad():
            for name, parameter in self.policy.named_parameters():
                if rows is None:
                    parameter.copy_(self.pretrained[name])
                elif self.batch is None:
                    raise ValueError("rows: expected None for a controller of one environment; use MPC(batch=N)")
                else:
                    index = torch.as_tensor(rows, device=self.device)
                    parameter[index] = self.pretrained[name][index]

    def new_episode(self, rows=None) -> None:
        """An episode begins in all rows or those given: ψ is restored, unless it is to persist."""
        if self.config.carry != "persist":
            self.reset(rows)

    def drift(self) -> Tensor:
        """‖ψ − ψ₀‖, () or (N,)."""
        return TrustRegion(self.pretrained, None).distance(self.policy, batched=self.batch is not None)

    def state_dict(self) -> dict:
        """ψ, ψ₀ and the noise generator's state: what it takes to go on with the same bits."""
        psi = {f"psi.{name}": p.detach().clone() for name, p in self.policy.named_parameters()}
        psi0 = {f"pretrained.{name}": p.clone() for name, p in self.pretrained.items()}
        return {**psi, **psi0, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict) -> None:
        """Continue from `state_dict()`."""
        with torch.no_grad():
            for name, parameter in self.policy.named_parameters():
                parameter.copy_(state[f"psi.{name}"])
                self.pretrained[name].copy_(state[f"pretrained.{name}"])
        self.generator.set_state(state["generator"])


class Best:
    """The best ψ whose objective has been measured, row by row: an answer for when time is up."""

    def __init__(self, p: Problem):
        self.problem = p
        self.value: Tensor | None = None
        self.latest: Tensor | None = None
        self.parameters: dict[str, Tensor] = {}

    @torch.no_grad()
    def keep(self, value: Tensor) -> None:
        """Ĵ () or (N,) has just been measured at the present ψ."""
        row = value if self.problem.batched else value.mean()
        if self.value is None:
            self.value = row.clone()
            self.parameters = {k: p.detach().clone() for k, p in self.problem.policy.named_parameters()}
        else:
            better = row > self.value
            self.value = torch.where(better, row, self.value)
            for name, p in self.problem.policy.named_parameters():
                self.parameters[name] = torch.where(_rows(better, p), p, self.parameters[name])
        self.latest = row

    @torch.no_grad()
    def restore_where_worse(self) -> None:
        """Take back the rows whose latest measured objective fell below an earlier one.

        Where the latest is the best, the step made from it stands, as in Algorithm 1.
        """
        if self.value is None or self.latest is None:
            return
        worse = ~(self.latest >= self.value)
        for name, p in self.problem.policy.named_parameters():
            p.copy_(torch.where(_rows(worse, p), self.parameters[name], p))


def _rows(mask: Tensor, parameter: Tensor) -> Tensor:
    """A mask () or (N,), shaped to broadcast over a parameter (...) or (N, ...)."""
    return mask.view(-1, *(1,) * (parameter.dim() - 1)) if mask.dim() else mask


def _at_least(name: str, value: int, lowest: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < lowest:
        raise ValueError(f"{name}: expected an integer >= {lowest}, got {value!r}")
