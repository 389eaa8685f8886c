"""The cost of a decision in transitions of the world model, for comparisons at equal budget."""

from dataclasses import replace

from jacrec.control.config import MPCConfig
from jacrec.experimental.config import experimental_of
from jacrec.planners.config import PlannerConfig
from jacrec.util.errors import expect_count

GRADIENT = 2
"""calls counted for a differentiated transition: itself and its transpose. Pulling a cotangent back through a layer is one
product with the same matrix, so the transpose takes the multiply–adds of the evaluation. Policy, reward and critic are not
counted"""


def model_calls(config: MPCConfig | PlannerConfig) -> int:
    """Transitions of the world model that one decision evaluates per environment; a differentiated one counts `GRADIENT`.

    * `MPC`: E·M·H differentiated ones. The decoupled objectives differentiate none of them ("decoupled-critic"), or
      evaluate each a second time for it ("decoupled-one-step").
    * Planners that sample: samples · M · H in each of their iterations; best-of-q none.
    * action-gradient: iterations · M · H differentiated ones, and M·H more for the policy's rollout where every decision
      begins from it (carry "step"; with "episode" only an episode's first decision makes them, which is not counted).

    Of MPC as configured: what `deadline_ms`, a gate or a step other than the plain one save or add is not counted.
    """
    if isinstance(config, MPCConfig):
        transition = {"return": GRADIENT, "decoupled-critic": 1, "decoupled-one-step": 1 + GRADIENT}[
            experimental_of(config).objective
        ]
        return transition * config.updates * config.particles * config.horizon
    rollout = config.particles * config.horizon
    if config.planner == "action-gradient":
        return rollout * (GRADIENT * config.iterations + (config.carry == "step"))
    return rollout * config.samples * config.rounds


def spent_on(planner: str) -> str:
    """The setting that a budget determines."""
    return "iterations" if planner == "action-gradient" else "samples"


def within_budget(config: PlannerConfig, budget: int) -> PlannerConfig:
    """The settings with as many samples (action-gradient: iterations) as `model_calls` of at most `budget` allow.

    Horizon, particles and the iterations of sampling planners are left unchanged. best-of-q, which evaluates the critic alone,
    gets one sample per call.

    Raises:
        ValueError: the budget is too small for the fewest samples.
    """
    expect_count("budget", budget, 1)
    rollout, name, lowest = config.particles * config.horizon, spent_on(config.planner), 2
    if config.planner == "action-gradient":
        lowest, count = 1, (budget // rollout - (config.carry == "step")) // GRADIENT
    elif config.horizon == 0:
        count = budget
    else:
        count = budget // (rollout * config.rounds)
    if config.planner == "cem":
        lowest = max(lowest, config.elites)
    if count < lowest:
        raise ValueError(
            f"budget: expected enough calls for {lowest} {name} of {config.planner} with horizon {config.horizon}, particles "
            f"{config.particles} and {config.rounds} round(s) of candidates, got {budget}; "
            "lower one of them (planner.horizon, planner.particles)"
        )
    return replace(config, **{name: count})
