"""Planners over actions in the policy's world model, for comparison with updates of the policy's parameters.

PlannerConfig(planner="mppi", ...)                    settings, a frozen dataclass like `MPCConfig`
Planner(policy, world, config, batch=N)               .act(observation) .new_episode(rows), like `MPC`
model_calls(config) -> int                            transitions of the world model per decision, also of MPC
within_budget(config, budget)                         the settings that spend at most `budget` of them
"""

from jacrec.planners.budget import model_calls, within_budget
from jacrec.planners.config import PLANNERS, PlannerConfig
from jacrec.planners.planner import Planner

__all__ = ["PLANNERS", "Planner", "PlannerConfig", "model_calls", "within_budget"]
