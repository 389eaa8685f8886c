"""Deadlines: what is begun, what a pause changes, what a warm-up leaves behind."""

import gc
from dataclasses import replace
from itertools import pairwise
from time import perf_counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jacrec import MPC, Actor, DiffusionDynamics, MPCConfig, RewardModel, TwinCritic, World
from jacrec.control.deadline import FEW, PATIENCE, RECENT, Best, Pace, expected, realtime
from jacrec.experimental import Gated
from jacrec.models.world import BatchedPolicy
from tests.strategies import ForeignDynamics

d, m = 4, 2


@pytest.fixture
def setup():
    torch.manual_seed(0)
    policy = Actor(d, m, (8, 8))
    policy.mlp.initialise()
    return policy, World(DiffusionDynamics(d, m, (8,), steps=3), RewardModel(d, m, (8,)), TwinCritic(d, m, (8,)), 0.9)


class Clock:
    """Every look takes 10 ms; one of them, if told, longer."""

    def __init__(self):
        self.now, self.looks, self.pauses = 0.0, 0, {}

    def __call__(self):
        self.looks += 1
        self.now += self.pauses.get(self.looks, 0.010)
        return self.now


@pytest.fixture
def clock(monkeypatch):
    own = Clock()
    monkeypatch.setattr("jacrec.control.deadline.perf_counter", own)
    return own


def updates_made(control):
    control.act(np.zeros(d))
    return len(control.last.objective)


def test_a_deadline_begins_no_update_that_it_does_not_expect_to_end(setup, clock):
    control = MPC(*setup, MPCConfig(horizon=0, particles=1, updates=100, lr=1e-3, deadline_ms=45))
    # since the start: begun at 10, ended at 20; begun at 30, ended at 40; looked at 50; answered at 60, which was not known
    assert updates_made(control) == 2
    # a second update would be expected to end at 40 and the answer to come at 50
    assert updates_made(control) == 1
    control.config = MPCConfig(horizon=0, particles=1, updates=100, lr=1e-3, deadline_ms=25)
    before = [p.detach().clone() for p in control.policy.parameters()]
    assert updates_made(control) == 0, "10 ms of looking, 10 of an update and 10 of the answer do not fit in 25"
    assert all(torch.equal(p, b) for p, b in zip(control.policy.parameters(), before, strict=True))


def test_a_pause_does_not_stop_the_thinking(setup, clock):
    """The first call loads compiled code: once it took longer than the deadline, and nothing was ever updated again."""
    clock.pauses = {3: 0.5}  # a decision's third look is at the end of its first update
    control = MPC(*setup, MPCConfig(horizon=0, particles=1, updates=1, lr=1e-3, deadline_ms=45))
    assert updates_made(control) == 1
    waits = PATIENCE[0] - 1
    assert [updates_made(control) for _ in range(waits)] == [0] * waits, "all that is known is a very slow update"
    assert [updates_made(control) for _ in range(50)] == [1] * 50
    clock.pauses = {clock.looks + 3: 0.5}
    assert [updates_made(control) for _ in range(50)] == [1] * 50, "a single pause among fast updates is no rule"


def decide(pace, seconds, deadline=0.008):
    """One decision with an update of so many seconds, if one is begun; whether it was, and whether the deadline was kept."""
    begun = pace.fits(0.0, deadline)
    if begun:
        pace.updated(seconds)
    elapsed = seconds * begun + 1e-4
    pace.decided(elapsed)
    return begun, elapsed <= deadline


def test_a_machine_that_is_too_slow_is_tried_less_and_less():
    pace = Pace()
    for _ in range(RECENT):
        decide(pace, 0.002)
    decisions = [decide(pace, 0.04) for _ in range(20_000)]
    tries = [i for i, (begun, _) in enumerate(decisions) if begun]
    waits = [b - a for a, b in pairwise(tries)]
    assert waits == [1, *(min(PATIENCE[1], PATIENCE[0] * 2**i) for i in range(len(waits) - 1))], "two pauses are a rule"
    assert sum(not kept for _, kept in decisions) <= 15


def test_a_machine_that_has_recovered_is_trusted_again():
    pace = Pace()
    for _ in range(2000):
        decide(pace, 0.04)
    assert pace.patience > 500
    first = next(i for i in range(PATIENCE[1] + 1) if decide(pace, 0.002)[0])
    assert first < PATIENCE[1]
    assert all(decide(pace, 0.002) == (True, True) for _ in range(1000))


def test_a_decision_that_an_error_ended_does_not_count_for_the_next(setup, monkeypatch):
    policy, world = setup
    mpc = MPC(policy, world, MPCConfig(horizon=1, particles=1, updates=2, deadline_ms=1e6))
    mpc.act(np.zeros(d))
    with monkeypatch.context() as patch:
        patch.setattr("jacrec.control.controller.decision", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            mpc.act(np.zeros(d))
    assert mpc.deadline.pace.made == 2
    mpc.deadline.begin(1e6)
    assert (mpc.deadline.pace.made, mpc.deadline.pace.looked) == (0, 0.0)


def test_what_is_refused_in_the_midst_of_a_decision_is_no_wait():
    pace = Pace()
    for _ in range(10 * PATIENCE[0]):
        assert pace.fits(0.0, 0.008)
        pace.updated(0.005)
        assert not pace.fits(0.005, 0.008)
        pace.decided(0.0051)
    assert pace.refused == 0


@given(st.lists(st.floats(0, 1), max_size=RECENT))
def test_a_single_pause_is_not_expected_again(seconds):
    if len(seconds) >= FEW:
        longest = max(seconds)
        rest = list(seconds)
        rest.remove(longest)
        assert expected(seconds) == max(rest)
    else:
        assert expected(seconds) == max([0.0, *seconds])


@pytest.mark.parametrize("batch", [None, 3])
@pytest.mark.parametrize(("more", "update"), [({}, None), ({"deadline_ms": 1e6}, None), ({"deadline_ms": 1e6}, Gated(0.1))])
def test_a_warm_up_leaves_no_trace(setup, batch, more, update):
    config = MPCConfig(horizon=1, particles=2, updates=3, lr=1e-2, **more)
    shape = (4, d) if batch is None else (4, batch, d)
    states = torch.randn(shape)
    cold, warm = (MPC(*setup, config, batch=batch, update=update) for _ in range(2))
    assert warm.warm_up() > 0
    assert warm.last is None
    assert warm.config is config
    for i, state in enumerate(states):
        if i == 2:  # in the midst of an episode, too
            last = warm.last
            warm.warm_up(state + 1, decisions=1)
            assert warm.last is last
        torch.testing.assert_close(warm.act(state), cold.act(state), rtol=0, atol=0)
    for name, value in cold.state_dict().items():
        assert torch.equal(value, warm.state_dict()[name]), name


def test_a_warm_up_measures_what_an_update_takes(setup):
    control = MPC(*setup, MPCConfig(horizon=1, particles=2, updates=10**6, deadline_ms=50))
    began = perf_counter()
    control.warm_up(decisions=6)
    assert len(control.deadline.pace.updates) == 8, "two each, without the first two decisions"
    # each of them took its part of the warm-up's own time, however loaded the machine is
    assert 0 < expected(control.deadline.pace.updates) <= sum(control.deadline.pace.updates) <= perf_counter() - began


def test_a_warm_up_says_what_it_cannot_do(setup):
    policy, world = setup
    with pytest.raises(ValueError, match="decisions: expected an integer >= 1"):
        MPC(policy, world).warm_up(decisions=0)
    stranger = torch.nn.Sequential(torch.nn.Linear(d, m), torch.nn.Tanh())
    config = MPCConfig(horizon=1, particles=2)
    MPC(stranger, world, config).warm_up(decisions=1)  # the dynamics say it
    nameless = replace(world, dynamics=ForeignDynamics(d, m))
    control = MPC(stranger, nameless, config)
    with pytest.raises(ValueError, match="Sequential does not say its state_dim"):
        control.warm_up()
    control.warm_up(np.zeros(d), decisions=1)


def test_the_best_rows_come_back_from_the_same_memory():
    """Row 0 gets better and worse, row 1 only worse, row 2 only better; one memory serves two decisions."""
    policy = BatchedPolicy(Actor(d, m, (4,)), 3)
    best = Best(policy)
    places = {name: p.data_ptr() for name, p in best.kept.items()}

    def set_to(values):
        for p in policy.parameters():
            p.data.copy_(torch.tensor(values).view(-1, *(1,) * (p.dim() - 1)).expand_as(p))

    for _ in range(2):
        best.begin()
        for at, value in (
            ([0.0, 0.0, 0.0], [1.0, 1.0, 1.0]),
            ([1.0, 1.0, 1.0], [3.0, 0.0, 2.0]),
            ([2.0] * 3, [2.0, -1.0, 3.0]),
        ):
            set_to(at)
            best.keep(torch.tensor(value))
        set_to([5.0, 5.0, 5.0])  # the step after the latest measurement
        best.restore_where_worse()
        for p in policy.parameters():
            assert [row.unique().tolist() for row in p.detach()] == [[1.0], [0.0], [5.0]]
    assert {name: p.data_ptr() for name, p in best.kept.items()} == places


def test_nothing_is_restored_before_something_is_measured():
    policy = Actor(d, m, (4,))
    before = [p.detach().clone() for p in policy.parameters()]
    Best(policy).restore_where_worse()
    assert all(torch.equal(p, b) for p, b in zip(policy.parameters(), before, strict=True))


def test_the_collector_rests_and_is_then_as_it_was():
    assert gc.isenabled()
    with realtime():
        assert not gc.isenabled()
        assert gc.get_freeze_count() > 0
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
    gc.disable()
    gc.freeze()
    try:
        with pytest.raises(RuntimeError, match="mine"), realtime():
            raise RuntimeError("mine")
        assert not gc.isenabled()
        assert gc.get_freeze_count() > 0, "somebody else's"
    finally:
        gc.enable()
        gc.unfreeze()


@pytest.mark.parametrize("batch", [None, 2])
def test_decisions_leave_no_cycles(setup, batch):
    """So that nothing piles up while the collector rests."""
    control = MPC(*setup, MPCConfig(horizon=1, particles=2, updates=3, deadline_ms=1e6), batch=batch)
    control.warm_up()
    observation = np.zeros(d if batch is None else (batch, d))
    with realtime():
        for _ in range(20):
            control.act(observation)
        assert gc.collect() == 0
