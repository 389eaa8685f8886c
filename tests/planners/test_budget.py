"""The cost of a decision in transitions of the world model, and settings within a budget of them."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jacrec import World
from jacrec.control.controller import MPC, MPCConfig
from jacrec.experimental import ExperimentalConfig, ExperimentalMPCConfig
from jacrec.planners import PLANNERS, Planner, PlannerConfig, model_calls, within_budget
from jacrec.planners.config import USES
from tests.conftest import property_cases
from tests.planners.test_planners import parts
from tests.strategies import foreign_critic, foreign_reward


class Counted:
    """A differentiable world that counts its transitions, and separately those that are pulled back."""

    noise_shape = (3,)

    def __init__(self):
        self.rows = self.pulled = 0

    def __call__(self, state, action, noise):
        self.rows += len(state)
        following = 0.9 * state + action.sum(-1, keepdim=True) * 0.1 + 0.1 * noise
        if following.requires_grad:
            following.register_hook(self._pull)
        return following

    def _pull(self, cotangent):
        self.pulled += len(cotangent)


@pytest.mark.parametrize(
    "config",
    [
        MPCConfig(horizon=3, particles=4, updates=2),
        MPCConfig(horizon=0, particles=1),
        ExperimentalMPCConfig(3, 2, 2, experimental=ExperimentalConfig(objective="decoupled-critic")),
        ExperimentalMPCConfig(3, 2, 2, experimental=ExperimentalConfig(objective="decoupled-one-step")),
        PlannerConfig(planner="mppi", horizon=3, particles=2, samples=7, iterations=2),
        PlannerConfig(planner="cem", horizon=2, particles=3, samples=5, iterations=3, carry="step"),
        PlannerConfig(planner="best-of-return", horizon=4, particles=2, samples=6, noisy_steps=2),
        PlannerConfig(planner="best-of-return", horizon=4, particles=2, samples=6, iterations=3),
        PlannerConfig(planner="best-of-q", samples=9),
        PlannerConfig(planner="action-gradient", horizon=3, particles=2, iterations=4),
        PlannerConfig(planner="action-gradient", horizon=3, particles=2, iterations=4, carry="step"),
    ],
)
def test_model_calls_are_what_a_decision_evaluates(config):
    dynamics = Counted()
    world = World(dynamics, foreign_reward, foreign_critic, 0.9)
    kind = MPC if isinstance(config, MPCConfig) else Planner
    player = kind(parts("diffusion")[0], world, config, batch=3)
    state = parts("diffusion")[2][:3]
    player.act(state)  # the first of an episode
    dynamics.rows = dynamics.pulled = 0
    player.act(state)
    assert dynamics.rows + dynamics.pulled == 3 * model_calls(config)


@property_cases(0.05, 20)
@given(
    planner=st.sampled_from(PLANNERS),
    horizon=st.integers(1, 4),
    particles=st.integers(1, 4),
    iterations=st.integers(1, 3),
    carry=st.sampled_from(["step", "episode"]),
    calls=st.integers(1, 300),
)
def test_a_budget_is_spent_as_far_as_it_goes(planner, horizon, particles, iterations, carry, calls):
    asked = {"horizon": horizon, "particles": particles, "iterations": iterations, "carry": carry}
    config = PlannerConfig(planner=planner, **{k: v for k, v in asked.items() if _settable(planner, k)})
    name = "iterations" if planner == "action-gradient" else "samples"
    fewest = {"cem": config.elites, "action-gradient": 1}.get(planner, 2)
    if calls < model_calls(replace(config, **{name: fewest})) or (planner == "best-of-q" and calls < 2):
        with pytest.raises(ValueError, match=f"for {fewest} {name} of {planner}"):
            within_budget(config, calls)
        return
    found = within_budget(config, calls)
    if planner == "best-of-q":
        assert (found.samples, model_calls(found)) == (calls, 0)
        return
    more = replace(found, **{name: getattr(found, name) + 1})
    assert model_calls(found) <= calls < model_calls(more)
    assert replace(found, **{name: getattr(config, name)}) == config


def _settable(planner, name):
    return planner != "best-of-q" and (name == "horizon" or name in USES[planner])
