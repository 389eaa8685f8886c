"""Measurements of a planner along its episodes: imagined returns of plan and policy, action change, rejections."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jacrec.engine.rollout import noise_like
from jacrec.evaluation.probes import mean_value, running_values
from jacrec.models.world import policy_action
from jacrec.planners.imagine import imagine
from jacrec.planners.planner import Planner


@dataclass
class PlannerProbe:
    """Watches a `Planner` in `play`, as `ThinkingProbe` watches an `MPC`; the summaries have the same entries.

    At every `every`-th decision the imagined return is measured on fresh noise, independent of the search: of the policy
    ("pretrained", and equally "before", since a planner carries no parameters over), and of the executed plan ("after").
    """

    planner: Planner
    every: int
    particles: int = 16
    seed: int = 1
    steps: list[list[int]] = field(default_factory=list)
    objective: dict[str, list[list[float | None]]] = field(default_factory=lambda: {"pretrained": [], "after": []})
    action_change: float = 0.0
    updates: int = 0
    rejected: int = 0
    _decisions: int = 0
    _ticks: int = 0

    def __post_init__(self):
        self.generator = torch.Generator(self.planner.device).manual_seed(self.seed)

    @torch.no_grad()
    def watch(self, observation: np.ndarray, action: np.ndarray, step: np.ndarray, running: np.ndarray) -> None:
        """Called after each decision."""
        planner = self.planner
        state = torch.as_tensor(observation, dtype=planner.dtype, device=planner.device)
        taken = torch.as_tensor(action, dtype=planner.dtype, device=planner.device)
        own = policy_action(planner.policy, state).clamp(-1.0, 1.0)
        self.action_change += float((taken - own).abs().mean(1).cpu().numpy()[running].sum())
        self._decisions += int(running.sum())
        if planner.last is not None:
            accepted = planner.last.accepted.cpu().numpy()[:, running]
            self.updates += accepted.size
            self.rejected += int((~accepted).sum())
        if self._ticks % self.every == 0 and planner.planned is not None:
            plan = torch.cat([taken.unsqueeze(1), planner.planned.actions[:, 1 : planner.config.planned_steps]], 1)
            self._measure(state, plan, step, running)
        self._ticks += 1

    def _measure(self, state: Tensor, plan: Tensor, step: np.ndarray, running: np.ndarray) -> None:
        planner = self.planner
        noise = noise_like(planner.world, state, self.particles, planner.config.horizon, self.generator)
        for name, plans in (("pretrained", plan[:, None, :0]), ("after", plan.unsqueeze(1))):
            returns = imagine(planner.policy, planner.world, state, plans, noise).returns[:, 0]
            self.objective[name].append(running_values(returns, running))
        self.steps.append(step.tolist())

    def summary(self) -> dict[str, Any]:
        """Everything, ready for JSON. Lists are (probes, rows), with None for rows that were not running."""
        objective = {**self.objective, "before": self.objective["pretrained"]}
        return {
            "probe_steps": self.steps,
            "objective": objective,
            "drift": [],
            "mean_drift": None,
            "mean_objective": {name: mean_value(rows) for name, rows in objective.items()},
            "mean_action_change": self.action_change / max(self._decisions, 1),
            "updates": self.updates,
            "rejected": self.rejected,
        }
