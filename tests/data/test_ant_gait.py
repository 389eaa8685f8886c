"""The ant's gait: symmetries, walking, and the search for its parameters."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jacrec.data.behaviour import ant_gait_search
from jacrec.data.behaviour.ant_gait import ANKLE_SIGN, Gait, joints, load_gait, yaw
from jacrec.data.behaviour.ant_gait_search import INITIAL_PARAMETERS, FlatGround, search, simulate_walk, upright
from jacrec.data.behaviour.antmaze import ACTION_NOISE

SEEDS = st.integers(0, 2**31 - 1)
ACTUATOR_LEG, ACTUATOR_JOINT = np.repeat([3, 0, 1, 2], 2), np.tile([0, 1], 4)


def random_states(seed: int, n: int = 6) -> np.ndarray:
    rng = np.random.default_rng(seed)
    state = rng.standard_normal((n, 29))
    state[:, 3:7] /= np.linalg.norm(state[:, 3:7], axis=1, keepdims=True)
    return state


def rotate(state: np.ndarray, angle: float) -> np.ndarray:
    """The same ants rotated about the vertical axis: only position, quaternion and velocity of the torso change."""
    w, x, y, z = state[:, 3:7].T
    c, s = np.cos(angle / 2), np.sin(angle / 2)
    found = state.copy()
    found[:, 3:7] = np.stack((c * w - s * z, c * x - s * y, c * y + s * x, c * z + s * w), axis=1)
    return found


def actions_by_leg(action: np.ndarray) -> np.ndarray:
    """Actions (n, 2, 4) of hips, and of ankles with equal signs, for legs 1 to 4."""
    found = np.empty((len(action), 2, 4))
    found[:, ACTUATOR_JOINT, ACTUATOR_LEG] = action
    found[:, 1] *= ANKLE_SIGN
    return found


def with_joints(state: np.ndarray, angles: np.ndarray, speeds: np.ndarray) -> np.ndarray:
    found = state.copy()
    for values, begin in ((angles, 7), (speeds, 21)):
        values = values.copy()
        values[:, 1] *= ANKLE_SIGN
        found[:, begin : begin + 8] = values.transpose(0, 2, 1).reshape(-1, 8)
    return found


@given(SEEDS, st.floats(-3, 3), st.floats(-3, 3))
def test_the_gait_is_rotation_invariant(seed, heading, angle):
    state, gait = random_states(seed), load_gait()
    heading = np.full(len(state), heading)
    there = rotate(state, angle)
    assert np.exp(1j * yaw(there)) == pytest.approx(np.exp(1j * (yaw(state) + angle)), abs=1e-9)
    assert gait(there, heading + angle) == pytest.approx(gait(state, heading), abs=1e-6)
    assert gait.act_with_clock(there, heading + angle, 0.7) == pytest.approx(gait.act_with_clock(state, heading, 0.7), abs=1e-6)


@given(SEEDS, st.floats(-3, 3))
def test_the_gait_has_quarter_turn_symmetry(seed, heading):
    """Shifting the legs by one and rotating the heading by a quarter turn shifts the actions by one."""
    state, gait = random_states(seed), load_gait()
    heading = np.full(len(state), heading)
    angles, speeds = joints(state)
    assert np.array_equal(with_joints(state, angles, speeds), state)
    shifted = with_joints(state, np.roll(angles, 1, axis=2), np.roll(speeds, 1, axis=2))
    assert actions_by_leg(gait(shifted, heading + np.pi / 2)) == pytest.approx(
        np.roll(actions_by_leg(gait(state, heading)), 1, 2), abs=1e-6
    )


@given(st.lists(st.floats(-2, 2), min_size=20, max_size=20), SEEDS)
def test_parameters_round_trip_and_actions_are_bounded(numbers, seed):
    gait = Gait.from_parameters(np.array([1.0, *numbers[1:19], 1.0]))
    assert gait.parameters().tolist() == [1.0, *numbers[1:19], 1.0]
    action = gait(random_states(seed), np.zeros(6))
    assert action.shape == (6, 8)
    assert np.abs(action).max() <= 1.0
    with pytest.raises(ValueError, match=r"^gait: .*20 .*got 19"):
        Gait.from_parameters(np.zeros(19))


def test_the_gait_walks_with_and_without_a_clock():
    plain = FlatGround(16)
    for clock in (True, False):
        found = simulate_walk([load_gait()], plain, np.random.default_rng(0), steps=80, clock=clock, noise=ACTION_NOISE)
        assert found.speed[0] > 0.9
        assert found.drift[0] < 0.15
        assert found.fallen[0] == 0


def test_the_search_reduces_the_cost(capsys):
    plain = FlatGround(16)

    def cost(gait):
        return simulate_walk([gait], plain, np.random.default_rng(3), steps=60, clock=False, noise=ACTION_NOISE).cost[0]

    found = search(seed=0, generations=4, population=8, ants=2, steps=40)
    assert cost(found) < cost(Gait.from_parameters(INITIAL_PARAMETERS))
    assert np.array_equal(found.parameters(), np.round(found.parameters(), 4))
    assert np.array_equal(
        search(seed=0, generations=1, population=4, ants=1, steps=5, quiet=True).parameters(),
        search(seed=0, generations=1, population=4, ants=1, steps=5, quiet=True).parameters(),
    )


def test_all_gaits_share_states_and_noise():
    gait = load_gait()
    found = simulate_walk([gait, gait, gait], FlatGround(9), np.random.default_rng(0), steps=20, clock=True, noise=0.3)
    assert len(set(found.cost.tolist())) == 1
    assert upright(np.eye(29)[3:6]).tolist() == [1.0, -1.0, -1.0]  # quaternions 1, i, j


def test_the_command_line(monkeypatch, capsys):
    monkeypatch.setattr(ant_gait_search, "search", lambda **options: load_gait())
    monkeypatch.setattr(ant_gait_search, "FlatGround", lambda n, threads: FlatGround(4, threads))
    monkeypatch.setattr(ant_gait_search, "evaluate_gait", lambda gait, task, **options: (1.0, 100.0, 0.0))
    ant_gait_search.main(["--seed", "3"])
    out = capsys.readouterr().out
    assert "m/s" in out
    assert str(load_gait().parameters().tolist()) in out
