"""Planners that optimise actions in the policy's world model: what optimising the policy's parameters is compared with.

PlannerConfig(planner="mppi", ...)                    settings, as frozen as `MPCConfig`
Planner(policy, world, config, batch=N)               .act(observation) .new_episode(rows), as `MPC` has them
model_calls(config) -> int                            transitions of the world model per decision, for MPC too
within_budget(config, budget)                         the settings that spend at most so many
"""

from jacrec.planners.budget import model_calls, within_budget
from jacrec.planners.config import PLANNERS, PlannerConfig
from jacrec.planners.planner import Planner

__all__ = ["PLANNERS", "Planner", "PlannerConfig", "model_calls", "within_budget"]
