"""The controller around a planner: one or N environments, and the plan carried between decisions."""

from dataclasses import dataclass
from typing import overload

import numpy as np
import torch
from torch import Tensor, nn

from jacrec.engine.action_clip import clip_action, near
from jacrec.engine.admission import admit, check_parameters
from jacrec.engine.parameters import over_rows
from jacrec.engine.shapes import check_observation, check_state, plain_torch, row_mask
from jacrec.models.dynamics import MultiStepDynamics
from jacrec.models.world import BatchedPolicy, World, expect_world, policy_action
from jacrec.models.wrappers import check_policy_kind, copied, unwrapped
from jacrec.planners.config import PlannerConfig
from jacrec.planners.search import Decision, Draws, Planned, search
from jacrec.util.errors import counted


@dataclass(frozen=True)
class PlannerStep:
    """What one decision did."""

    action: Tensor
    """the action taken, (m,) or (N, m)"""
    objective: Tensor
    """imagined return of the best candidate of each iteration, or of the plan before each gradient step, (E,) or (E, N)"""
    accepted: Tensor
    """False where no candidate was finite, shaped as `objective`; a row without any True takes the policy's action"""


class Planner:
    """A controller that searches over actions before each one: `act(observation)`, like `MPC`; nothing is learned.

    Args:
        policy: the pretrained π: plans start from its rollout, and it acts after their last step. Copied, never changed.
        world: the `World` that it imagines in, never changed.
        config: `PlannerConfig`.
        batch: N to control N environments in lock-step; None for one.
    """

    def __init__(self, policy: nn.Module, world: World, config: PlannerConfig | None = None, *, batch: int | None = None):
        policy = unwrapped(policy)
        if not isinstance(policy, nn.Module) or isinstance(policy, BatchedPolicy):
            raise ValueError(f"policy: expected one torch.nn.Module state -> action, got {type(policy).__name__}")
        check_policy_kind(policy)
        expect_world(world)
        if world.anchor is not None:
            raise ValueError("world: expected one without anchor, which is for updates of the policy, got one")
        if config is not None and not isinstance(config, PlannerConfig):
            raise ValueError(f"config: expected PlannerConfig(...) or None, got {type(config).__name__}; MPCConfig is of MPC")
        if isinstance(world.dynamics, MultiStepDynamics) and (config or PlannerConfig()).planner != "best-of-q":
            raise ValueError(
                "world: expected dynamics that take one step at a time, got MultiStepDynamics, which predicts all states at "
                "once from the policy's own actions; only planner 'best-of-q' needs no transition"
            )
        batch = None if batch is None else counted("batch", batch)
        self.policy = copied(policy).eval().requires_grad_(False)
        self.world, self.config, self.batch = world, config or PlannerConfig(), batch
        check_parameters(self.policy, world)
        first = next(self.policy.parameters(), torch.zeros(()))
        self.dtype, self.device = first.dtype, first.device
        self.generator = torch.Generator(self.device).manual_seed(self.config.seed)
        self.last: PlannerStep | None = None
        """the latest decision"""
        self.planned: Planned | None = None
        """the latest plan, a_0 … a_H"""
        self._fresh = torch.ones(batch or 1, dtype=torch.bool, device=self.device)  # rows without a carried plan

    @overload
    def act(self, observation: np.ndarray | list) -> np.ndarray: ...
    @overload
    def act(self, observation: Tensor) -> Tensor: ...
    @plain_torch
    @torch.no_grad()
    def act(self, observation):
        """The action for an observation (d,) -> (m,), or for N of them (N, d) -> (N, m); numpy or a list in, numpy out.

        The action lies in [-1, 1]: that of a policy which leaves it is clipped, with a warning the first time.

        Raises:
            ValueError: an observation of the wrong shape or that is not finite.
        """
        state = check_observation(observation, self.batch, self.dtype, self.device)
        state, single, plan = check_state(self.policy, self.world, state)
        if plan is None:
            admit(self.policy, self.world, state, self.config.horizon)
        own = clip_action(policy_action(self.policy, state), self.policy)
        draws = Draws.of(self.config, self.world, state, own.shape[-1], self.generator)
        action = self._decide(state, own, draws)
        assert self.planned is not None
        rows = [action, self.planned.objective, self.planned.accepted]
        if single:
            rows = [action.squeeze(0), *(x.squeeze(1) for x in rows[1:])]
        self.last = PlannerStep(*rows)
        return self.last.action if isinstance(observation, Tensor) else self.last.action.cpu().numpy()

    def _decide(self, state: Tensor, own: Tensor, draws: Draws) -> Tensor:
        """The actions (N, m), given the policy's own; stores the plan."""
        c, H = self.config, self.config.horizon
        before = self.planned.actions[:, 1:] if self.planned is not None else own.new_zeros(len(own), H, own.shape[-1])
        warm = ~self._fresh & torch.isfinite(before).flatten(1).all(1) & (c.carry == "episode")
        carried = torch.where(over_rows(warm, before), before, 0.0)
        self.planned = search(Decision(self.policy, self.world, c, state, draws, carried, warm))
        self._fresh = ~self.planned.accepted.any(0)
        action = torch.where(over_rows(self._fresh, own), own, self.planned.actions[:, 0])
        return near(action, own, c.max_action_change)

    def new_episode(self, rows=None) -> None:
        """Begin an episode, in all rows or in those given (indices or a mask over N; may be empty): drop their plans.

        Raises:
            ValueError: rows that this controller does not have.
        """
        if rows is None:
            self._fresh.fill_(True)
        else:
            self._fresh |= row_mask(rows, self.batch, self.device)
