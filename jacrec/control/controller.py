"""The controller around Algorithm 1: its own copy of the policy, one or N environments, deadlines, a trust region."""

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from time import perf_counter
from typing import overload

import numpy as np
import torch
from torch import Tensor, nn

from jacrec.control.ascent import distance, project
from jacrec.control.config import Draw, MPCConfig, UpdateRule
from jacrec.control.deadline import Deadline, Pace
from jacrec.control.mpc import MPCStep, decision
from jacrec.control.update import compute_update
from jacrec.engine.action_clip import clip_action, near, warned
from jacrec.engine.admission import admit, check_parameters
from jacrec.engine.methods import METHODS
from jacrec.engine.parameters import copy_values, over_rows, trainable
from jacrec.engine.rollout import noise_like, sampled_problem
from jacrec.engine.shapes import check_depends, check_observation, check_state, plain_torch, row_mask
from jacrec.models.dynamics import MultiStepDynamics
from jacrec.models.world import Anchor, BatchedPolicy, World, architecture_of, expect_world, policy_action
from jacrec.models.wrappers import check_policy_kind, copied, unwrapped
from jacrec.util.errors import counted, expect_count, expect_shape

NEEDS_SINGLE_TRANSITION = ("forward", "adjoint", "fused-forward", "fused-adjoint")
"""methods that need a world model of one transition at a time"""


class MPC:
    """Model predictive control by Algorithm 1: `act(observation)` updates its own copy of the policy, then acts.

    Args:
        policy: the pretrained π_ψ; copied, never changed.
        world: the `World` that it imagines in.
        config: `MPCConfig`.
        batch: N to control N environments in lock-step, each with its own ψ; None for one.
        update: how ψ is updated, e.g. an object of `jacrec.experimental`; default: the plain step (4), unless `config` says otherwise.

    A controller can be pickled, and sent to a process of any start method, if its policy and world can be: ψ is copied, the
    world is sent as torch sends modules.

    Raises:
        ValueError: no module or world, settings that do not fit, or a part that is random or does not fit the others; where
            neither policy nor dynamics have an attribute `state_dim`, the first decision finds that out.
    """

    @plain_torch
    def __init__(
        self,
        policy: nn.Module,
        world: World,
        config: MPCConfig | None = None,
        *,
        batch: int | None = None,
        update: UpdateRule | None = None,
    ):
        policy = unwrapped(policy)
        check_policy_kind(policy)
        expect_world(world)
        if config is not None and not isinstance(config, MPCConfig):
            raise ValueError(f"config: expected MPCConfig(...) or None, got {type(config).__name__}")
        batch = None if batch is None else counted("batch", batch)
        self.config = config or MPCConfig()
        self.absolute_config = self.config.in_absolute_units(world.value_scale)
        """`config` with lr, anchor and max_grad_norm in units of Ĵ"""
        self.update = self.config.make_update() if update is None else check_update(update)
        if self.update is not None:
            self.update.check(self.config, world)
        check_depends(world, self.config.horizon)
        multistep = isinstance(world.dynamics, MultiStepDynamics)
        if not multistep and self.config.method in ("multistep", "fused-multistep"):
            raise ValueError(
                f"method: expected another than {self.config.method!r} for {type(world.dynamics).__name__}, got it; it serves a "
                'MultiStepDynamics alone: use "auto"'
            )
        if multistep and self.config.method in NEEDS_SINGLE_TRANSITION:
            raise ValueError(
                f'method: expected "auto", "multistep", "fused-multistep", "autograd" or "finite-difference" with '
                f"MultiStepDynamics, which has no single transition, got {self.config.method!r}; use a one-step world model for it"
            )
        self.method = METHODS[self.config.method]
        self.policy = copied(policy) if batch is None else BatchedPolicy(policy, batch)
        self.policy.eval()
        self.batch = batch
        self.base = copy.deepcopy(self.policy).requires_grad_(False)
        self.world = world
        first = next(iter(trainable(self.policy).values()))
        self.dtype, self.device = first.dtype, first.device
        self.generator = torch.Generator(self.device).manual_seed(self.config.seed)
        self.last: MPCStep | None = None
        """the latest decision"""
        self.deadline = Deadline(self.policy)
        self._share_parameters()
        check_parameters(self.policy, self.world)
        width = self._state_dim()
        if width is not None:  # otherwise the first decision finds out
            state = torch.zeros((width,) if batch is None else (batch, width), dtype=self.dtype, device=self.device)
            state, *_ = check_state(self.policy, self.world, state)
            admit(self.policy, self.world, state, self.config.horizon)
            if not policy_action(self.policy, state).isfinite().all():
                raise ValueError("policy: expected finite actions, got NaN or infinity at state 0; are its parameters finite?")

    def _state_dim(self) -> int | None:
        """d, where the policy or the dynamics say so."""
        told = (getattr(part, "state_dim", None) for part in (architecture_of(self.policy), self.world.dynamics))
        return next((d for d in told if isinstance(d, int) and d > 0), None)

    def _anchored(self, world: World) -> World:
        """The world with the pretrained policy as its anchor, if the settings have it take part."""
        c = self.absolute_config
        if not c.anchored:
            return world
        if world.anchor is not None:
            raise ValueError(
                'anchor, terminal: expected 0 and "policy" for a world that has an anchor already, got '
                f"{self.config.anchor!r} and {c.terminal!r}; use one of them"
            )
        base = self.base if not isinstance(self.base, BatchedPolicy) else copied(self.base.template)
        return replace(world, anchor=Anchor(base.requires_grad_(False).eval(), c.anchor, c.terminal == "base"))

    def _share_parameters(self) -> None:
        """ψ₀ by name, which `base` shares, and the world anchored to it."""
        self.pretrained = {name: p.detach() for name, p in self.base.named_parameters()}
        self.world = self._anchored(self.world)
        self._refill_anchor()

    @overload
    def act(self, observation: np.ndarray | list) -> np.ndarray: ...
    @overload
    def act(self, observation: Tensor) -> Tensor: ...
    def act(self, observation):
        """The action for an observation (d,) -> (m,), or for N of them (N, d) -> (N, m); numpy or a list in, numpy out.

        The action lies in [-1, 1]: that of a policy which leaves it is clipped, with a warning the first time.

        Raises:
            ValueError: an observation of the wrong shape or that is not finite.
        """
        return self._decide(observation, self.config.updates, self.config.deadline_ms)

    @plain_torch
    def _decide(self, observation: np.ndarray | Tensor | list, updates: int, deadline_ms: float | None) -> np.ndarray | Tensor:
        """Algorithm 1: observe, update ψ as often as `updates` and the deadline allow, act."""
        c, deadline = self.absolute_config, self.deadline
        deadline.begin(deadline_ms)
        state = check_observation(observation, self.batch, self.dtype, self.device)
        if c.carry == "step":
            self.reset()
        problem = sampled_problem(self.policy, self.world, state, c.particles, c.horizon, self.generator)
        results, evaluate, draw = [], policy_action, self._further_noise(problem.state)
        for _ in range(updates):  # line 3
            if not deadline.allows_update():
                break
            if self.update is None:
                step = compute_update(problem, self.method, c.lr, c.max_grad_norm)  # lines 4–15
            else:
                step = self.update.compute(problem, self.method, c, draw)
            deadline.measured(step.value)
            results.append(step.apply())  # line 16
            evaluate = step.action
            if c.trust_radius is not None:
                project(self.policy, self.pretrained, c.trust_radius)
            deadline.updated(results[-1].accepted)
        deadline.restore_best()
        action = self._clipped(evaluate(self.policy, problem.state), lambda: evaluate(self.base, problem.state))
        self.last = decision(problem, action, results)  # line 18: a = π_ψ(s)
        # a copy: the caller may write into it
        answer = self.last.action.clone() if isinstance(observation, Tensor) else self.last.action.cpu().numpy().copy()
        deadline.end()
        return answer

    def _further_noise(self, state: Tensor) -> Draw:
        """More noise for the states (N, d) of one decision, for update rules that ask for it."""
        drawn: list[Tensor] = []

        def draw(i: int) -> Tensor:
            while len(drawn) < i:
                drawn.append(noise_like(self.world, state, self.config.particles, self.config.horizon, self.generator))
            return drawn[i - 1]

        return draw

    def _clipped(self, action: Tensor, base_action: Callable[[], Tensor]) -> Tensor:
        """The actions (N, m) in [-1, 1] and within `max_action_change` of the pretrained policy's."""
        bound = self.config.max_action_change
        action = clip_action(action, self.policy)
        if bound is None:
            return action
        with torch.no_grad():
            return near(action, clip_action(base_action(), self.policy), bound)

    def warm_up(self, observation: np.ndarray | Tensor | None = None, *, decisions: int = 16) -> float:
        """Make decisions without effect, so that the first real one keeps its deadline; returns the seconds it took.

        Compiled code is loaded, memory is allocated, and with a deadline the duration of an update at these sizes is
        measured. ψ, the noise generator and `last` are restored bit-identically.

        Args:
            observation: shaped as for `act`; default: zeros.
            decisions: how many, of up to two updates each.

        Raises:
            ValueError: no observation for a policy without attribute `state_dim`, or one that `act` would refuse.
        """
        begun = perf_counter()
        expect_count("decisions", decisions, 1)
        if observation is None:
            width = self._state_dim()
            if width is None:
                raise ValueError(f"observation: expected one, since {type(self.policy).__name__} does not say its state_dim")
            observation = np.zeros((width,) if self.batch is None else (self.batch, width))
        state, last = self.state_dict(), self.last
        patient_ms = None if self.config.deadline_ms is None else 1e9
        try:
            for i in range(decisions):
                if i == min(2, decisions - 1):  # the first ones load and compile; their duration is not representative
                    self.deadline.pace = Pace()
                self._decide(observation, min(self.config.updates, 2), patient_ms)
        finally:
            self.last = last
            self.load_state_dict(state)
        return perf_counter() - begun

    @torch.no_grad()
    def reset(self, rows=None) -> None:
        """Restore the pretrained ψ, in all rows or in those given (indices or a mask over N; may be empty).

        Raises:
            ValueError: rows that this controller does not have.
        """
        if rows is not None:
            rows = row_mask(rows, self.batch, self.device)
        for name, parameter in self.policy.named_parameters():
            before = self.pretrained[name]
            copy_values(parameter, before if rows is None else torch.where(over_rows(rows, parameter), before, parameter))

    def new_episode(self, rows=None) -> None:
        """Begin an episode, in all rows or in those given: ψ is restored, unless carry is "persist"."""
        if rows is not None:
            row_mask(rows, self.batch, self.device)
        if self.config.carry != "persist":
            self.reset(rows)

    def drift(self) -> Tensor:
        """‖ψ − ψ₀‖, () or (N,)."""
        return distance(self.policy, self.pretrained)

    def state_dict(self) -> dict:
        """ψ, ψ₀ and the noise generator's state: what it takes to resume bit-identically."""
        psi = {f"psi.{name}": p.detach().clone() for name, p in self.policy.named_parameters()}
        psi0 = {f"pretrained.{name}": p.clone() for name, p in self.pretrained.items()}
        return {**psi, **psi0, "generator": self.generator.get_state()}

    @torch.no_grad()
    def load_state_dict(self, state: dict) -> None:
        """Resume from `state_dict()`.

        Raises:
            ValueError: it belongs to another policy or number of environments; nothing is changed then.
        """
        own = self.state_dict()
        if set(state) != set(own):
            raise ValueError(f"state_dict: expected the entries {sorted(own)}, got {sorted(state)}")
        for name, value in own.items():
            expect_shape(f"state_dict[{name!r}]", state[name], tuple(value.shape), "; same policy and batch=N?")
        for name, parameter in self.policy.named_parameters():
            parameter.copy_(state[f"psi.{name}"])
            self.pretrained[name].copy_(state[f"pretrained.{name}"])
        self._refill_anchor()
        self.generator.set_state(state["generator"])

    @torch.no_grad()
    def _refill_anchor(self) -> None:
        """Let the anchor be the pretrained policy as it is now; the N copies of a batch are equal."""
        if self.config.anchored and self.world.anchor is not None:
            for name, p in self.world.anchor.policy.named_parameters():
                p.copy_(self.pretrained[name] if self.batch is None else self.pretrained[name][0])

    def __getstate__(self) -> dict:
        own = {k: v for k, v in self.__dict__.items() if k not in ("policy", "base", "deadline", "pretrained")}
        # by value: torch sends tensors to processes as shared memory, in which both controllers would update the same ψ
        own["networks"] = pickle.dumps((copied(self.policy), copied(self.base)))
        if self.config.anchored:
            own["world"] = replace(self.world, anchor=None)
        own["generator"] = self.generator.get_state().numpy().tobytes()
        return own | {"pace": self.deadline.pace, "warned": self.policy in warned}

    def __setstate__(self, state: dict) -> None:
        networks, generator, pace, told = (state.pop(name) for name in ("networks", "generator", "pace", "warned"))
        self.__dict__.update(state)
        self.policy, self.base = pickle.loads(networks)
        self.generator = torch.Generator(self.device)
        self.generator.set_state(torch.frombuffer(bytearray(generator), dtype=torch.uint8))
        self.deadline = Deadline(self.policy)
        self.deadline.pace = pace
        self._share_parameters()
        if told:
            warned.add(self.policy)


def check_update(update: object) -> UpdateRule:
    """The update rule itself; ValueError for anything without `check` and `compute`."""
    if isinstance(update, type) or not all(callable(getattr(update, name, None)) for name in ("check", "compute")):
        raise ValueError(
            "update: expected None or an update rule such as jacrec.experimental.Gated(...), with methods check and compute, "
            f"got {update!r}"
        )
    return update  # pyright: ignore[reportReturnType]
