"""The controller around Algorithm 1: its own copy of the policy, one or N environments, deadlines, a trust radius."""

import copy
from dataclasses import dataclass, replace
from time import perf_counter
from typing import overload

import numpy as np
import torch
from torch import Tensor, nn

from jacrec.ascent import TrustRegion, ascend, over_rows, trainable
from jacrec.decoupled import ascended
from jacrec.errors import expect_count, expect_one_of, expect_positive, expect_shape
from jacrec.mpc import MPCStep, Trace, check_settings
from jacrec.realtime import Best, Pace
from jacrec.rollout import noise_like
from jacrec.shapes import Problem, check_observation, check_state, plain_torch, row_mask
from jacrec.world import BatchedPolicy, World, apply_policy


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
    max_action_change: float | None = None
    """largest |a − π_ψ₀(s)| per component: an action further from the pretrained policy's is drawn back into that box"""
    carry: str = "episode"
    """what ψ does: "episode" is carried between decisions and restored by `new_episode`, "persist" is carried through
    episodes, "step" restarts from the pretrained ψ at every decision"""
    deadline_ms: float | None = None
    """answer within about this time with the best ψ so far; an update is begun only if it is expected to end in time"""
    method: str = "auto"
    """"forward", "adjoint", "autograd" or "auto\""""
    objective: str = "return"
    """what ψ ascends: "return" is Ĵ; "decoupled-critic" and "decoupled-one-step" improve each imagined action where it is
    taken, by Q_a or by r_a + γ F_aᵀ V_s, with nothing differentiated through time (`jacrec.decoupled`)"""
    objective_weights: str = "discounted"
    """of the imagined steps in a decoupled objective: "discounted" (γ^j) or "uniform\""""
    seed: int = 0
    """of the imagination's noise"""

    def __post_init__(self):
        check_settings(self.horizon, self.particles, self.updates, self.lr, self.max_grad_norm)
        expect_one_of("carry", self.carry, ("episode", "persist", "step"))
        ascended(self.objective, self.objective_weights, self.method)
        for name in ("trust_radius", "max_action_change", "deadline_ms"):
            if getattr(self, name) is not None:
                expect_positive(name, getattr(self, name))


class MPC:
    """A controller that thinks before each action: `act(observation)` runs Algorithm 1 on its own copy of the policy.

    Args:
        policy: the pretrained π_ψ; copied, never changed.
        world: the `World` it imagines in.
        config: `MPCConfig`.
        batch: N to control N environments in lock-step, each with its own ψ; None for one.
    """

    def __init__(self, policy: nn.Module, world: World, config: MPCConfig | None = None, *, batch: int | None = None):
        if not isinstance(policy, nn.Module):
            raise ValueError(f"policy: expected a torch.nn.Module state -> action, got {type(policy).__name__}")
        if not isinstance(world, World):
            raise ValueError(f"world: expected a jacrec.World(dynamics, reward, critic, discount), got {type(world).__name__}")
        if config is not None and not isinstance(config, MPCConfig):
            raise ValueError(f"config: expected MPCConfig(...) or None, got {type(config).__name__}")
        self.world, self.config = world, config or MPCConfig()
        self.policy = copy.deepcopy(policy) if batch is None else BatchedPolicy(policy, batch)
        self.policy.eval()
        self.batch = batch
        self.base = copy.deepcopy(self.policy).requires_grad_(False)
        self.pretrained = {name: p.detach() for name, p in self.base.named_parameters()}
        first = next(iter(trainable(self.policy).values()))
        self.dtype, self.device = first.dtype, first.device
        self.generator = torch.Generator(self.device).manual_seed(self.config.seed)
        self.method = ascended(self.config.objective, self.config.objective_weights, self.config.method)
        self.last: MPCStep | None = None
        """the latest decision"""
        self.pace = Pace()
        """how long updates take, for a deadline"""
        self._kept: Best | None = None

    @overload
    def act(self, observation: np.ndarray) -> np.ndarray: ...
    @overload
    def act(self, observation: Tensor) -> Tensor: ...
    @plain_torch()
    def act(self, observation):
        """The action for an observation (d,) -> (m,), or for N of them (N, d) -> (N, m); numpy in, numpy out.

        Raises:
            ValueError: an observation of the wrong shape or that is not finite.
        """
        start = perf_counter()
        state = check_observation(observation, self.batch, self.dtype, self.device)
        if self.config.carry == "step":
            self.reset()
        self.last = self._near_the_base(state, self._think(state, start))
        action = self.last.action
        answer = action.cpu().numpy() if isinstance(observation, np.ndarray) else action
        if self.config.deadline_ms is not None:
            self.pace.decided(perf_counter() - start)
        return answer

    def _think(self, state: Tensor, start: float) -> MPCStep:
        c = self.config
        state, single = check_state(self.policy, self.world, state)
        noise = noise_like(self.world, state, c.particles, c.horizon, self.generator)
        p = Problem(self.policy, self.world, state, noise, single)
        region = TrustRegion(self.pretrained, c.trust_radius)
        trace, best = Trace(p), self._best() if c.deadline_ms is not None else None
        for _ in range(c.updates):
            begun = perf_counter()
            if c.deadline_ms is not None and not self.pace.fits(begun - start, c.deadline_ms * 1e-3):
                break
            estimate = self.method.gradient(p)
            if best is not None:
                best.keep(estimate.value)
            trace.add(estimate.value, *ascend(p, estimate, c.lr, c.max_grad_norm))
            region.project(self.policy)
            if c.deadline_ms is not None:
                trace.accepted[-1].cpu()  # wait for the device: the clock has to see the whole update
                self.pace.updated(perf_counter() - begun)
        if best is not None:
            best.restore_where_worse()
        return trace.step()

    def warm_up(self, observation: np.ndarray | Tensor | None = None, *, decisions: int = 16) -> float:
        """Make some decisions to no effect, so that the first real one keeps its deadline; the seconds that this took.

        Compiled code is loaded, memory is touched, and with a deadline the time of an update at these sizes is measured. ψ,
        the noise generator and `last` stay as they are, to the last bit.

        Args:
            observation: what to think about, shaped as for `act`; zeros unless told.
            decisions: how many, of up to two updates each.

        Raises:
            ValueError: no observation for a policy that does not say its `state_dim`, or one that `act` would refuse.
        """
        begun = perf_counter()
        expect_count("decisions", decisions, 1)
        if observation is None:
            width = getattr(getattr(self.policy, "template", self.policy), "state_dim", None)
            if not isinstance(width, int):
                raise ValueError(f"observation: expected one, since {type(self.policy).__name__} does not say its state_dim")
            observation = np.zeros((width,) if self.batch is None else (self.batch, width))
        config, state, last = self.config, self.state_dict(), self.last
        patient = None if config.deadline_ms is None else 1e9
        brief = replace(config, updates=min(config.updates, 2), deadline_ms=patient)
        try:
            self.config = brief
            for i in range(decisions):
                if i == min(2, decisions - 1):  # the first ones load and compile: they say nothing about those to come
                    self.pace = Pace()
                self.act(observation)
        finally:
            self.config, self.last = config, last
            self.load_state_dict(state)
        return perf_counter() - begun

    def _best(self) -> Best:
        """Where a decision with a deadline keeps its best ψ."""
        self._kept = self._kept or Best(self.policy)
        self._kept.begin()
        return self._kept

    @torch.no_grad()
    def _near_the_base(self, state: Tensor, step: MPCStep) -> MPCStep:
        """The decision with its action within `max_action_change` of the pretrained policy's."""
        bound = self.config.max_action_change
        if bound is None:
            return step
        base = apply_policy(self.base, None, state.reshape(-1, 1, state.shape[-1])).reshape(step.action.shape)
        change = step.action - base
        # inside the box the action keeps its bits
        return replace(step, action=torch.where(change.abs() <= bound, step.action, base + change.clamp(-bound, bound)))

    @torch.no_grad()
    def reset(self, rows=None) -> None:
        """Back to the pretrained ψ, in all rows or in those given (indices or a mask over N; none is fine).

        Raises:
            ValueError: rows that this controller does not have.
        """
        if rows is not None:
            rows = row_mask(rows, self.batch, self.device)
        for name, parameter in self.policy.named_parameters():
            before = self.pretrained[name]
            parameter.copy_(before if rows is None else torch.where(over_rows(rows, parameter), before, parameter))

    def new_episode(self, rows=None) -> None:
        """An episode begins in all rows or those given: ψ is restored, unless it is to persist."""
        if self.config.carry != "persist":
            self.reset(rows)

    def drift(self) -> Tensor:
        """‖ψ − ψ₀‖, () or (N,)."""
        return TrustRegion(self.pretrained, None).distance(self.policy)

    def state_dict(self) -> dict:
        """ψ, ψ₀ and the noise generator's state: what it takes to go on with the same bits."""
        psi = {f"psi.{name}": p.detach().clone() for name, p in self.policy.named_parameters()}
        psi0 = {f"pretrained.{name}": p.clone() for name, p in self.pretrained.items()}
        return {**psi, **psi0, "generator": self.generator.get_state()}

    @torch.no_grad()
    def load_state_dict(self, state: dict) -> None:
        """Continue from `state_dict()`.

        Raises:
            ValueError: it is of another policy or number of environments; nothing has been changed then.
        """
        own = self.state_dict()
        if set(state) != set(own):
            raise ValueError(f"state_dict: expected the entries {sorted(own)}, got {sorted(state)}")
        for name, value in own.items():
            expect_shape(f"state_dict[{name!r}]", state[name], tuple(value.shape), "; same policy and batch=N?")
        for name, parameter in self.policy.named_parameters():
            parameter.copy_(state[f"psi.{name}"])
            self.pretrained[name].copy_(state[f"pretrained.{name}"])
        self.generator.set_state(state["generator"])
