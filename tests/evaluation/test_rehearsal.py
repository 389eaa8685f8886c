"""Rehearsals in worlds with a known winner: common noise, terminations, lost states, reproducibility."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from jacrec import Actor, DiffusionDynamics, MPCConfig, RewardModel, TwinCritic, World
from jacrec.envs.physics import make_env
from jacrec.envs.termination import termination
from jacrec.evaluation.rehearsal import BASE, ImaginedEpisodes, Rehearsal, RehearsalConfig, rehearse
from jacrec.evaluation.rehearsal_tables import choice_sentence
from tests.conftest import property_cases
from tests.strategies import shake

CONFIG = RehearsalConfig(episodes=4, steps=12)
UP = MPCConfig(horizon=0, particles=1, lr=0.05)
STARTS = np.linspace(-0.2, 0.2, 4)[:, None]


class Line(nn.Module):
    """A point on a line, moved by the action and a little noise; the data lie around 0."""

    noise_shape = (1,)

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, state, action, noise):
        return state + self.scale * action + 0.01 * noise

    def standardise(self, state):
        return state


class Constant(nn.Module):
    """A policy that is independent of the state, initially 0."""

    def __init__(self):
        super().__init__()
        self.action = nn.Parameter(torch.zeros(1))

    def forward(self, state):
        return torch.tanh(self.action).expand(*state.shape[:-1], 1)


def upwards(state, action):
    """A critic that always prefers larger actions."""
    return action.sum(-1)


def line(reward):
    return World(Line(), reward, upwards, 0.9)


def alive_and_moving(state, action):
    return 1 + 0.1 * action.sum(-1)


def test_rehearsals_are_deterministic_with_common_noise():
    torch.manual_seed(0)
    policy = Actor(3, 2, (8, 8))
    world = World(DiffusionDynamics(3, 2, (8,), steps=2), RewardModel(3, 2, (8,)), TwinCritic(3, 2, (8,)), 0.9)
    for module in (policy, world.dynamics, world.reward, world.critic):
        shake(module, 0.1)
    starts = np.random.default_rng(0).normal(size=(4, 3))
    still = {"step-0": replace(UP, lr=0.0), "no-updates": MPCConfig(horizon=2, particles=2, updates=0)}
    candidates = {**still, "moves": MPCConfig(horizon=2, particles=2, lr=1e-2)}
    config = replace(CONFIG, data_range=1e30)  # an untrained world model diverges
    first, second = (rehearse(policy, world, starts, candidates, config) for _ in range(2))
    assert first == second
    assert set(first.episodes[BASE].lengths) == {CONFIG.steps}
    for name in still:
        assert first.episodes[name] == first.episodes[BASE]
        assert first.gain(name) == (0.0, 0.0)
    assert first.gain("moves")[0] != 0
    other = rehearse(policy, world, starts, candidates, replace(config, seed=8))
    assert other.episodes[BASE].returns != first.episodes[BASE].returns
    without = rehearse(policy, world, starts, still, config)
    assert without.choice == BASE


def test_candidates_that_gain_can_act():
    rehearsal = rehearse(Constant(), line(alive_and_moving), STARTS, {"up": UP, "still": replace(UP, lr=0.0)}, CONFIG)
    assert rehearsal.choice == "up"
    assert rehearsal.confident_gain("up") > 0.02 * np.mean(rehearsal.episodes[BASE].returns) > 0
    assert rehearsal.episodes["up"].lengths == [CONFIG.steps] * 4
    least = rehearsal.confident_gain("up") / np.mean(rehearsal.episodes[BASE].returns)
    for share, choice in ((0.99 * least, "up"), (1.01 * least, BASE)):
        assert replace(rehearsal, config=replace(CONFIG, least_gain=share)).choice == choice


def test_candidates_that_fall_cannot_act():
    world = line(alive_and_moving)
    edge = lambda observation: observation[:, 0] > 1.0  # noqa: E731
    rehearsal = rehearse(Constant(), world, STARTS, {"up": UP, "still": replace(UP, lr=0.0)}, CONFIG, ended=edge)
    assert rehearsal.choice == BASE
    assert rehearsal.termination
    assert max(rehearsal.episodes["up"].lengths) < min(rehearsal.episodes[BASE].lengths) == CONFIG.steps
    assert rehearsal.gain("up")[0] < 0
    assert rehearsal.episodes["up"].lost == 0


def test_reward_of_the_terminating_step_is_counted():
    edge = lambda observation: observation[:, 0] > -1.0  # noqa: E731
    rehearsal = rehearse(Constant(), line(alive_and_moving), STARTS, {"up": UP}, CONFIG, ended=edge)
    assert rehearsal.episodes[BASE] == ImaginedEpisodes([1.0] * 4, [1] * 4, 0)


def test_candidates_that_leave_the_data_cannot_act():
    near = replace(CONFIG, data_range=1.0)
    rehearsal = rehearse(Constant(), line(lambda s, a: 1 + 100 * a.sum(-1)), STARTS, {"up": UP}, near)
    assert rehearsal.episodes["up"].lost == 4
    assert rehearsal.gain("up")[0] > 0
    assert rehearsal.confident_gain("up") == -np.inf
    assert rehearsal.choice == BASE


def test_non_finite_rewards_count_as_lost():
    nowhere = lambda s, a: torch.where(s[..., 0] > 0.5, torch.nan, 1 + 100 * a.sum(-1))  # noqa: E731
    rehearsal = rehearse(Constant(), line(nowhere), STARTS, {"up": UP}, CONFIG)
    assert rehearsal.episodes["up"].lost == 4
    assert np.isfinite(rehearsal.episodes["up"].returns).all()
    assert rehearsal.choice == BASE
    json.dumps(rehearsal.record(), allow_nan=False)


@given(
    st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9), st.floats(-9, 9)), min_size=2, max_size=5),
    st.floats(0, 3),
    st.floats(0, 3),
)
@property_cases(0.02, 20)
def test_choice_is_the_largest_confident_gain(rows, confidence, consistency):
    base, a, b = (list(map(float, x)) for x in zip(*rows, strict=True))
    n = len(base)
    config = RehearsalConfig(confidence=confidence, consistency=consistency)
    rehearsal = Rehearsal(config, {k: ImaginedEpisodes(v, [1] * n, 0) for k, v in ((BASE, base), ("a", a), ("b", b))}, False)
    sure = {}
    for name, values in (("a", a), ("b", b)):
        d = np.array(values) - np.array(base)
        sure[name] = d.mean() - max(confidence / np.sqrt(n), consistency) * d.std(ddof=1)
        assert rehearsal.confident_gain(name) == pytest.approx(sure[name])
    enough = 0.02 * abs(np.mean(base))
    assert rehearsal.choice in ("a", "b", BASE)
    if rehearsal.choice == BASE:
        assert max(sure.values()) <= enough + 1e-9
    else:
        assert sure[rehearsal.choice] >= max(*sure.values(), enough) - 1e-9
    record = rehearsal.record()
    assert record["choice"] == rehearsal.choice
    assert record["gains"]["a"]["mean"] == pytest.approx(rehearsal.gain("a")[0])


FALLING = [700.0, 350.0, 720.0, 500.0, 420.0, 680.0, 600.0, 300.0]
"""imagined returns of a base policy that falls in some episodes of the world model"""


def test_gains_in_some_imagined_episodes_only_are_declined():
    """The world model imagines falls, which the candidate avoids. More such episodes prove nothing."""
    for many in (1, 8):
        base = many * FALLING
        episodes = {BASE: base, "curing": [905.0] * len(base), "steady": [x + 10 for x in base]}
        imagined = {name: ImaginedEpisodes(own, [400] * len(own), 0) for name, own in episodes.items()}
        config = RehearsalConfig(episodes=len(base))
        rehearsal = Rehearsal(config, imagined, True)
        mean, error = rehearsal.gain("curing")
        assert mean - 2 * error > 0.02 * np.mean(base)
        assert rehearsal.choice == BASE
        told = choice_sentence(rehearsal.record())
        assert "curing gains" in told
        assert "the world model cannot tell" in told
        assert "3 standard deviations" in told
        assert replace(rehearsal, config=replace(config, least_gain=0.01)).choice == "steady"
        before = rehearsal.record()
        del before["settings"]["consistency"]  # a record of an earlier version keeps its rule
        assert Rehearsal.from_record(before).choice == "curing"
        assert "2 standard errors" in choice_sentence(before | {"choice": "curing"})


def test_a_declining_rehearsal_says_why():
    def told(base, better, lost=0, **others):
        def read(rows):
            return {name: ImaginedEpisodes(list(own), [9, 9], lost if name == "a" else 0) for name, own in rows.items()}

        there = {model: read({BASE: base, "a": own}) for model, own in others.items()}
        rehearsal = Rehearsal(RehearsalConfig(episodes=2), read({BASE: base, "a": better}), True, there)
        assert rehearsal.choice == BASE
        return choice_sentence(rehearsal.record())

    base = (100.0, 110.0)
    assert "no candidate gains enough" in told(base, (101.0, 111.0))
    assert "cannot judge a, which leaves the range of the data" in told(base, (150.0, 160.0), lost=1)
    assert "the world models disagree about a" in told(base, (150.0, 160.0), other=(90.0, 100.0))


@pytest.mark.parametrize(
    ("candidates", "starts", "message"),
    [
        ({}, STARTS, r"candidates: .*'base', got \[\]"),
        ({"base": UP}, STARTS, r"candidates: .*'base', got \['base'\]"),
        ({"up": replace(UP, deadline_ms=3.0)}, STARTS, r"candidates\.up\.deadline_ms: .*got 3\.0"),
        ({"up": UP}, STARTS[:1], r"starts: .*n >= 2, got shape \(1, 1\)"),
        ({"up": UP}, STARTS[:, 0], r"starts: .*got shape \(4,\)"),
    ],
)
def test_invalid_candidates_and_starts_are_rejected(candidates, starts, message):
    with pytest.raises(ValueError, match=message):
        rehearse(Constant(), line(alive_and_moving), starts, candidates)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"episodes": 1}, r"rehearsal\.episodes: .*>= 2, got 1"),
        ({"steps": 0}, r"rehearsal\.steps: .*>= 1, got 0"),
        ({"data_range": 0.0}, r"rehearsal\.data_range: .*got 0\.0"),
        ({"confidence": -1.0}, r"rehearsal\.confidence: .*>= 0, got -1\.0"),
        ({"consistency": -1.0}, r"rehearsal\.consistency: .*>= 0, got -1\.0"),
        ({"least_gain": float("nan")}, r"rehearsal\.least_gain: .*>= 0, got nan"),
    ],
)
def test_invalid_settings_are_rejected(changes, message):
    with pytest.raises(ValueError, match=message):
        RehearsalConfig(**changes)


ENDING = {"Hopper-v4": (0.7, 0.2), "Walker2d-v4": (0.8, 1.0), "Ant-v4": (0.2, 1.0)}


@pytest.mark.parametrize("env_id", ENDING)
def test_termination_rules_equal_the_environments(env_id):
    """For states on both sides of every bound, and for states visited by the simulator."""
    env, over = make_env(env_id), termination(env_id)
    assert over is not None
    simulator, rng = env.unwrapped, np.random.default_rng(0)
    env.reset(seed=0)
    height = 2 if env_id.startswith("Ant") else 1
    found = []
    for _ in range(300):
        qpos, qvel = simulator.init_qpos.copy(), rng.uniform(-9, 9, simulator.init_qvel.shape)
        qpos[0] = rng.uniform(-50, 50)
        qpos[height] = rng.choice([0.2, 0.7, 0.8, 1.0, 1.25, 2.0]) + rng.choice([-1e-6, 0.0, 1e-6, 0.1])
        if height == 1:
            qpos[2] = rng.choice([-1, 1]) * (rng.choice([0.0, 0.2, 1.0]) + rng.choice([-1e-6, 0.0, 1e-6]))
        simulator.set_state(qpos, qvel)
        found.append(bool(over(simulator._get_obs()[None])[0]))
        assert found[-1] != simulator.is_healthy
    assert {True, False} == set(found)
    for seed in range(3):
        env.reset(seed=seed)
        for _ in range(150):
            observation, _, terminated, _, _ = env.step(rng.uniform(-1, 1, env.action_space.shape))
            assert over(observation[None])[0] == terminated
            if terminated:
                break


def test_termination_rules_of_versions_and_unknown_tasks():
    assert termination("Hopper-v5") is termination("Hopper-v4")
    for env_id in ("HalfCheetah-v4", "jacrec/antmaze-umaze-v2", "Pendulum-v1"):
        assert termination(env_id) is None
    over = termination("Ant-v4")
    assert over is not None
    assert over(np.full((1, 27), np.nan)).all()


def test_candidates_must_gain_in_every_world_model():
    policy = Constant()
    liked, disliked = line(lambda s, a: a.sum(-1)), line(lambda s, a: -a.sum(-1))
    alone = rehearse(policy, liked, STARTS, {"up": UP}, CONFIG)
    agreeing = rehearse(policy, liked, STARTS, {"up": UP}, CONFIG, others={"same": liked})
    disagreeing = rehearse(policy, liked, STARTS, {"up": UP}, CONFIG, others={"same": liked, "other": disliked})
    assert alone.choice == agreeing.choice == "up"
    # candidates plan in their own world, whichever model they play in
    assert agreeing.others["same"] == agreeing.episodes == alone.episodes
    assert disagreeing.choice == BASE
    assert disagreeing.gain("up", "other")[0] == pytest.approx(-disagreeing.gain("up")[0])
    assert Rehearsal.from_record(json.loads(json.dumps(disagreeing.record()))) == disagreeing
