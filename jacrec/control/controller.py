"""The controller around Algorithm 1: its own copy of the policy, one or N environments, deadlines, a trust radius."""

import copy
from dataclasses import dataclass, replace
from functools import cached_property
from time import perf_counter
from typing import overload

import numpy as np
import torch
from torch import Tensor, nn

from jacrec.control.ascent import TrustRegion
from jacrec.control.deadline import Best, Pace
from jacrec.control.mpc import MPCStep, Trace, check_settings
from jacrec.control.update import STEPS, Act, Rule, action_of, propose
from jacrec.engine.diagnostics import growth_of, own_unit, trusted_horizon
from jacrec.engine.dispatch import kept_plan
from jacrec.engine.parameters import over_rows, trainable
from jacrec.engine.problem import KernelPlan, Problem
from jacrec.engine.rollout import noise_like
from jacrec.engine.rows import put_rows, take_rows
from jacrec.engine.shapes import check_observation, check_state, plain_torch, row_mask
from jacrec.experimental.decoupled import ascended
from jacrec.experimental.schedule import Group, Turns, gathered
from jacrec.models.dynamics import MultiStepDynamics
from jacrec.models.world import BatchedPolicy, World
from jacrec.util.errors import expect_count, expect_one_of, expect_positive, expect_shape


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
    """step size α of (4), in the units of `step`"""
    step: str = "plain"
    """where α leads: "plain" is α ∇Ĵ (4); "normalised" is α times the unit gradient, whatever the critic's scale;
    "gauss-newton" is α (G + λ)⁻¹ ∇Ĵ with G the Gauss–Newton matrix of the visited actions; "fisher" is that direction with α
    the root mean squared change of the visited actions, the natural gradient of a Gaussian policy (`jacrec.experimental.natural`)"""
    damping: float = 0.1
    """λ of "gauss-newton" and "fisher", as a share of an action component's mean squared sensitivity to ψ"""
    max_grad_norm: float | None = None
    """scale longer gradients down to this norm ("plain" and "gauss-newton")"""
    trust_radius: float | None = None
    """largest ‖ψ − ψ₀‖ from the pretrained parameters; ψ is projected onto the ball"""
    max_action_change: float | None = None
    """largest |a − π_ψ₀(s)| per component: an action further from the pretrained policy's is drawn back into that box"""
    carry: str = "episode"
    """what ψ does: "episode" is carried between decisions and restored by `new_episode`, "persist" is carried through
    episodes, "step" restarts from the pretrained ψ at every decision"""
    deadline_ms: float | None = None
    """answer within about this time with the best ψ so far; an update is begun only if it is expected to end in time. Rows of
    a batch whose horizons differ (`max_growth`) take their turns shortest first, all updates of one group before the next"""
    think_every: int = 1
    """decide at every n-th call of `act` in an episode; in between the improved policy acts, at the cost of its evaluation"""
    min_signal: float | None = None
    """least signal-to-noise ratio ‖∇Ĵ‖² / E‖error‖² of a gradient that is stepped along: where it is less, twice as many
    particles are drawn, up to `max_particles`, and if that does not help ψ stays (`jacrec.engine.diagnostics`)"""
    max_particles: int | None = None
    """most particles for `min_signal`; none named: four times `particles`"""
    max_growth: float | None = None
    """imagine only as far as the mean ‖ds̃_j/ds̃_0‖₂ over particles stays within this, in units of the dynamics' state_std where
    they have one; the terminal critic then stands there"""
    growth_every: int = 10
    """decisions between measurements of that growth; each takes (1 + d) rows per particle, a gradient 2"""
    growth_particles: int = 4
    """imagined trajectories of each such measurement"""
    method: str = "auto"
    """"forward", "adjoint", "autograd" or "auto\""""
    objective: str = "return"
    """what ψ ascends: "return" is Ĵ; "decoupled-critic" and "decoupled-one-step" improve each imagined action where it is
    taken, by Q_a or by r_a + γ F_aᵀ V_s, with nothing differentiated through time (`jacrec.experimental.decoupled`)"""
    objective_weights: str = "discounted"
    """of the imagined steps in a decoupled objective: "discounted" (γ^j) or "uniform\""""
    seed: int = 0
    """of the imagination's noise"""

    def __post_init__(self):
        check_settings(self.horizon, self.particles, self.updates, self.lr, self.max_grad_norm)
        expect_one_of("carry", self.carry, ("episode", "persist", "step"))
        ascended(self.objective, self.objective_weights, self.method)
        for name in ("trust_radius", "max_action_change", "deadline_ms", "min_signal"):
            if getattr(self, name) is not None:
                expect_positive(name, getattr(self, name))
        self._check_trust()

    def _check_trust(self) -> None:
        expect_one_of("step", self.step, STEPS)
        expect_positive("damping", self.damping)
        for name in ("think_every", "growth_every", "growth_particles"):
            expect_count(name, getattr(self, name), 1)
        if self.max_growth is not None and not self.max_growth >= 1:
            raise ValueError(f"max_growth: expected at least 1, the growth over no step, got {self.max_growth!r}")
        if self.step in ("normalised", "fisher") and self.max_grad_norm is not None:
            raise ValueError(
                f"max_grad_norm: expected None with step={self.step!r}, whose length is lr whatever the gradient, "
                f"got {self.max_grad_norm}"
            )
        if self.min_signal is not None and self.particles < 2:
            raise ValueError(
                f"particles: expected at least 2 with min_signal (their scatter is the noise), got {self.particles}"
            )
        if self.max_particles is not None:
            expect_count("max_particles", self.max_particles, self.particles)
        if self.rule.in_actions and (self.method not in ("auto", "adjoint") or self.objective != "return"):
            raise ValueError(
                f'method, objective: expected "auto" or "adjoint" and "return" with step={self.step!r}, '
                f"a form of the adjoint gradient, got {self.method!r}, {self.objective!r}"
            )

    @cached_property
    def rule(self) -> Rule:
        """How ψ is stepped."""
        most = 4 * self.particles if self.max_particles is None else self.max_particles
        return Rule(self.lr, self.max_grad_norm, self.step, self.damping, self.min_signal, most)

    @property
    def trusts(self) -> bool:
        """Whether decisions are made row by row: not every time, not as far, or not on every gradient."""
        return self.think_every > 1 or self.min_signal is not None or self.max_growth is not None


def _check_multi_step(c: MPCConfig) -> None:
    """ValueError for what asks for one transition's derivatives, where the world model gives H states at once."""
    unsupported_reason = {
        "max_growth": c.max_growth is not None,
        "step": c.rule.in_actions,
        "objective": c.objective != "return",
        "method": c.method in ("forward", "adjoint"),
    }
    for name, asked in unsupported_reason.items():
        if asked:
            raise ValueError(
                f"{name}: expected its default with MultiStepDynamics, which has no single transition, got "
                f"{getattr(c, name)!r}; use a one-step world model for it"
            )


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
        if isinstance(world.dynamics, MultiStepDynamics):
            _check_multi_step(self.config)
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
        self.turns = Turns(batch or 1, self.config.horizon)
        """who thinks when, and how far"""

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
        self.last = self._near_the_base(state, *self._think(state, start))
        action = self.last.action
        answer = action.cpu().numpy() if isinstance(observation, np.ndarray) else action
        if self.config.deadline_ms is not None:
            self.pace.decided(perf_counter() - start)
        return answer

    def _think(self, state: Tensor, start: float) -> tuple[MPCStep, Act]:
        """The decision, and how its action was computed."""
        plan = kept_plan(self.policy, self.world, state)
        state, single = check_state(self.policy, self.world, state, plan)
        if self.config.trusts:
            return self._think_in_turns(state, single, plan, start)
        if self.config.carry == "step":
            self.reset()
        trace = self._improve(Problem(self.policy, self.world, state, self._noise(state), single, plan), start)
        return trace.step(), trace.act

    def _noise(self, state: Tensor, horizon: int | None = None) -> Tensor:
        """Fresh noise for states (N, d)."""
        c = self.config
        return noise_like(self.world, state, c.particles, c.horizon if horizon is None else horizon, self.generator)

    def _improve(self, p: Problem, start: float, rows: Tensor | None = None) -> Trace:
        """Algorithm 1, lines 3–17, on the parameters of `p`, which are those of all rows or of the given ones."""
        c = self.config
        centre = self.pretrained if rows is None else {name: x[rows] for name, x in self.pretrained.items()}
        region, rule = TrustRegion(centre, c.trust_radius), c.rule
        trace, best = Trace(p), self._best(p.policy) if c.deadline_ms is not None else None
        more: list[Tensor] = []

        def draw(i: int) -> Tensor:
            while len(more) < i:
                more.append(self._noise(p.state, p.H))
            return more[i - 1]

        for _ in range(c.updates):
            begun = perf_counter()
            if c.deadline_ms is not None and not self.pace.fits(begun - start, c.deadline_ms * 1e-3):
                break
            proposal = propose(p, self.method, rule, draw)
            if best is not None:
                best.keep(proposal.value)
            taken = trace.take(proposal)
            region.project(p.policy)
            if c.deadline_ms is not None:
                taken.accepted.cpu()  # wait for the device: the clock has to see the whole update
                self.pace.updated(perf_counter() - begun)
        if best is not None:
            best.restore_where_worse()
        return trace

    def _think_in_turns(self, state: Tensor, single: bool, plan: KernelPlan | None, start: float) -> tuple[MPCStep, Act]:
        """A decision in which every row has its own turn to think and its own horizon; and how its action was computed."""
        c, groups = self.config, []
        due = self.turns.due(c.think_every)
        anyone = bool(due.any())
        shape = (len(state), c.particles, c.horizon, *self.world.dynamics.noise_shape)
        noise = self._noise(state) if anyone else state.new_zeros(()).expand(shape)  # who does not think needs no noise
        whole = Problem(self.policy, self.world, state, noise, single, plan)
        act = action_of(whole, self.method)
        if anyone:
            if c.carry == "step":
                self.reset(None if self.batch is None else due)
            self._bound_horizons(whole)
            for rows, horizon in self.turns.groups(due):
                everyone = len(rows) == len(state)
                here = rows.to(self.device)
                part = whole if everyone else take_rows(whole, here)
                part = replace(part, noise=part.noise[:, :, :horizon])
                groups.append(Group(here, self._improve(part, start, None if everyone else here)))
                if not everyone:
                    put_rows(whole, here, part)
        self.turns.tick()
        return gathered(act(self.policy, state), self.turns, groups, single=single), act

    def _bound_horizons(self, p: Problem) -> None:
        """Measure the growth of the rows whose measurement is old, and look only as far as it allows."""
        c = self.config
        stale = self.turns.stale(c.think_every, c.growth_every)
        if c.max_growth is None or not len(stale):
            return
        part = p if len(stale) == p.N else take_rows(p, stale.to(self.device))
        noise = noise_like(self.world, part.state, c.growth_particles, c.horizon, self.generator)
        self.turns.horizon[stale] = trusted_horizon(growth_of(replace(part, noise=noise), own_unit(part)), c.max_growth).cpu()

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
        brief = replace(config, updates=min(config.updates, 2), think_every=1, deadline_ms=patient)
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

    def _best(self, policy: nn.Module) -> Best:
        """Where a decision with a deadline keeps its best ψ."""
        if policy is not self.policy:  # some rows, with parameters of this decision alone
            return Best(policy)
        self._kept = self._kept or Best(self.policy)
        self._kept.begin()
        return self._kept

    @torch.no_grad()
    def _near_the_base(self, state: Tensor, step: MPCStep, act: Act) -> MPCStep:
        """The decision with its action within `max_action_change` of the pretrained policy's."""
        bound = self.config.max_action_change
        if bound is None:
            return step
        base = act(self.base, state.reshape(-1, state.shape[-1])).reshape(step.action.shape)
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
        """An episode begins in all rows or those given: ψ is restored, unless it is to persist; its first decision thinks."""
        self.turns.begin(None if rows is None else row_mask(rows, self.batch, self.device))
        if self.config.carry != "persist":
            self.reset(rows)

    def drift(self) -> Tensor:
        """‖ψ − ψ₀‖, () or (N,)."""
        return TrustRegion(self.pretrained, None).distance(self.policy)

    def state_dict(self) -> dict:
        """ψ, ψ₀, the noise generator's state and whose turn it is: what it takes to go on with the same bits."""
        psi = {f"psi.{name}": p.detach().clone() for name, p in self.policy.named_parameters()}
        psi0 = {f"pretrained.{name}": p.clone() for name, p in self.pretrained.items()}
        turns = self.turns.state_dict() if self.config.trusts else {}
        return {**psi, **psi0, **turns, "generator": self.generator.get_state()}

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
        if self.config.trusts:
            self.turns.load_state_dict(state)
