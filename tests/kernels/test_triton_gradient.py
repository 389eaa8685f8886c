"""Whole gradients with the Triton kernels against autograd; the rollout in one launch; what a CUDA graph is known by."""

from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from jacrec import Autograd, World
from jacrec.engine.methods import policy_gradient
from jacrec.engine.problem import Problem
from jacrec.engine.shapes import problem
from jacrec.kernels import gradient, graphs, launch, rollout
from jacrec.models.activations import ACTIVATIONS
from tests.oracles import relative_error, well_posed
from tests.strategies import foreign_reward
from tests.triton_cases import COMPILED, DEVICE, few, imagine, problems


@few(8, 3)
@given(problems())
def test_gradients_are_autograds(case):
    args = imagine(*case)
    assume(well_posed(*args))
    exact = policy_gradient(*args, method=Autograd())
    p = problem(*args)
    for got in (gradient.forward_gradient(p), gradient.adjoint_gradient(p), gradient.adjoint_gradient(p, recompute=True)):
        assert relative_error(got.gradient, exact.gradient) < 1e-12
        assert torch.allclose(got.value, exact.value, rtol=1e-12, atol=1e-13)


def test_changes_in_place_and_new_inputs_are_seen():
    policy, world, state, noise = imagine(1, 2, 1, False, dict(hidden=(7,)), 0)
    for change in range(3):
        with torch.no_grad():
            for parameter in [*policy.parameters(), *world.dynamics.parameters(), *world.reward.parameters()]:
                parameter.mul_(1.0 + 0.1 * change)
        world.dynamics.state_std.mul_(1.1)
        state, noise = state + 0.1, noise.flip(1)
        exact = policy_gradient(policy, world, state, noise, method=Autograd())
        got = gradient.forward_gradient(problem(policy, world, state, noise))
        assert relative_error(got.gradient, exact.gradient) < 1e-12


@few(8, 3)
@given(problems(), st.sampled_from([None, 4, 16]), st.integers(1, 3))
def test_rollouts_in_one_launch_are_autograds(case, per_particle, critics):
    args = imagine(*case, critics=critics)
    assume(well_posed(*args))
    exact = policy_gradient(*args, method=Autograd())
    got = rollout.rollout_gradient(problem(*args), tile=launch.Tile(16, 16, 16, 4, 2, per_particle=per_particle))
    assert relative_error(got.gradient, exact.gradient) < 1e-12
    assert torch.allclose(got.value, exact.value, rtol=1e-12, atol=1e-13)


def test_critics_that_tie_share_their_gradient():
    policy, world, state, noise = imagine(1, 3, 1, False, dict(hidden=(7,), activation="silu"), 0, critics=3)
    with torch.no_grad():
        for parameter in world.critic.parameters():
            parameter[1:] = parameter[:1]
        world.critic.mlp.layers[1].weight[2].mul_(0.5)  # the third critic differs, above or below
    args = policy, world, state, noise
    exact = policy_gradient(*args, method=Autograd())
    got = rollout.rollout_gradient(problem(*args))
    assert relative_error(got.gradient, exact.gradient) < 1e-12


def test_a_critic_that_knows_nothing_is_not_passed_over():
    policy, world, state, noise = imagine(1, 2, 1, False, dict(hidden=(7,)), 0)
    for critic in range(2):
        with torch.no_grad():
            world.critic.mlp.layers[1].bias.zero_()[critic] = float("nan")
        assert rollout.rollout_gradient(problem(policy, world, state, noise)).value.isnan().all()


def test_few_particles_take_one_launch_and_strangers_the_chains():
    case = imagine(1, 2, 2, False, dict(hidden=(7,)), 0)
    p = problem(*case)
    with mock.patch.object(rollout, "multiprocessors", return_value=132):
        assert rollout.worthwhile(p)
        assert not rollout.worthwhile(problem(*imagine(1, 4096, 2, False, dict(hidden=(7,)), 0)))
        with mock.patch.object(gradient, "rollout_gradient", side_effect=rollout.rollout_gradient) as taken:
            gradient.forward_gradient(p)
            assert taken.call_count == 1
            world = World(case[1].dynamics, foreign_reward, case[1].critic, 0.9)
            stranger = problem(case[0], world, *case[2:])
            got = gradient.forward_gradient(stranger)
            assert taken.call_count == 1
    exact = policy_gradient(case[0], world, *case[2:], method=Autograd())
    assert relative_error(got.gradient, exact.gradient) < 1e-12
    assert "reward: expected an unmodified jacrec RewardModel, got function" in rollout.rollout_unsupported_reason(stranger)
    with pytest.raises(ValueError, match="got function; or use"):
        rollout.rollout(stranger)
    wide = imagine(1, 2, 1, False, dict(hidden=(7,)), 0, policy_hidden=(8,) * 7)
    with pytest.raises(ValueError, match="policy: expected at most 6 hidden layers"):
        rollout.rollout(problem(*wide))


def test_a_rollout_takes_the_smallest_tile_that_runs_at_once():
    # 10 columns: 16 rows to a particle
    for M, rows, columns, pieces in ((1, 16, 128, 1), (64, 16, 128, 1), (132, 16, 128, 1), (200, 32, 128, 1), (500, 64, 64, 1)):
        policy, world, state, noise = imagine(1, M, 4, False, dict(hidden=(200,)), 0)
        p = problem(policy.float(), world.to(torch.float32), state.float(), noise.float())
        with mock.patch.object(rollout, "multiprocessors", return_value=132):
            cut = rollout.rollout_plan(p, 2, "ieee")
            assert rollout.worthwhile(p)
        assert (cut.shape.rows, cut.shape.columns, cut.pieces) == (rows, columns, pieces)
        assert cut.programs * cut.particles >= M


@pytest.mark.parametrize(
    ("T", "rows"), [(0, {1: 16, 2112: 16, 2113: 32, 4224: 32, 4225: 64, 9000: 64}), (14, {132: 16, 133: 32})]
)
def test_chains_take_the_smallest_tile_that_runs_at_once(T, rows):
    with mock.patch.object(launch, "multiprocessors", return_value=132):
        for B, expected in rows.items():
            assert launch.choose_tile(B, T, torch.float32, torch.device("cpu")).rows == expected
        assert launch.choose_tile(64, T, torch.float64, torch.device("cpu")) == launch.DOUBLE


def test_a_recording_is_known_by_all_that_it_depends_on():
    policy, world, state, noise = imagine(2, 2, 1, True, dict(hidden=(7,)), 0)

    def key(*options, state=state, noise=noise, world=world):
        return graphs.key(Problem(policy, world, state, noise, False), *options)

    first = key("forward")
    with torch.no_grad():
        policy.get_submodule("mlp").layers[0].weight.add_(1)
    assert key("forward", state=state + 1, noise=noise + 1) == first
    assert key("forward", world=World(world.dynamics, world.reward, world.critic, 0.9)) == first
    different = [
        key("adjoint"),
        key("forward", noise=noise[:, :1]),
        key("forward", state=state[:1].repeat(2, 1), noise=noise[:, :, :0]),
    ]
    different.append(key("forward", world=World(world.dynamics, world.reward, world.critic, 0.8)))
    policy.get_submodule("mlp").layers[0].weight.data = policy.get_submodule("mlp").layers[0].weight.detach().clone()
    different.append(key("forward"))
    world.dynamics.c_u[0] *= 2
    different.append(key("forward"))
    world.critic.mlp.activation = "silu"
    different.append(key("forward"))
    world.reward.mlp.act = ACTIVATIONS["silu"]
    different.append(key("forward"))
    world.dynamics.times = (2, 1)
    different.append(key("forward"))
    world.dynamics.target = "state"
    different.append(key("forward"))
    world.critic.critics = 1
    different.append(key("forward"))
    assert len({first, *different}) == 1 + len(different)


def test_recordings_are_bounded_and_the_least_recently_used_goes():
    recordings, made = graphs.Recordings(2, 100), []

    def get(name, size=10):
        return recordings.get_or_make(name, lambda: made.append(name) or SimpleNamespace(name=name, bytes=size))

    for name in "abacb":
        assert get(name).name == name
    assert made == ["a", "b", "c", "b"]
    assert list(recordings.entries) == ["c", "b"]
    get("large", 95)
    assert list(recordings.entries) == ["large"]
    get("larger", 200)
    assert list(recordings.entries) == ["larger"]
    assert recordings.bytes == 200


def test_the_oldest_recording_goes_before_the_next_is_made():
    args = imagine(1, 2, 1, False, dict(hidden=(7,)), 0)
    made = []

    class Recording:
        bytes = 0

        def __init__(self, p):
            made.append(p.H)
            assert len(graphs._RECORDINGS) < 2  # the oldest one's memory is free by now

        def replay(self, p):
            return p.H

    graphs.forget()
    fake = mock.patch.object(graphs, "record", lambda p, compute, alive: Recording(p))
    with fake, mock.patch.object(graphs._RECORDINGS, "limit", 2):
        for H in (0, 1, 0, 2, 1):
            p = problem(*args[:3], torch.zeros(1, 2, H, *args[3].shape[3:], dtype=torch.float64, device=DEVICE))
            assert graphs.replayed(p, lambda: None) == H
    assert made == [0, 1, 2, 1]
    graphs.forget()


def test_a_vector_holds_value_and_gradient():
    for N, batched in ((1, False), (2, True), (2, False)):
        args = imagine(N, 2, 1, batched, dict(hidden=(7,)), 0)
        for p in (problem(*args), *([problem(args[0], args[1], args[2][0], args[3][0])] if N == 1 else [])):
            exact = gradient.forward_gradient(p)
            again = graphs.unflatten(graphs.flatten(exact), p, graphs.places_of(p))
            assert torch.equal(again.value, exact.value)
            assert {k: (g.shape, g.stride()) for k, g in again.gradient.items()} == {
                k: (x.shape, x.stride()) for k, x in p.policy.named_parameters()
            }
            assert relative_error(again.gradient, exact.gradient) == 0.0


@pytest.mark.skipif(not COMPILED, reason="recording needs a CUDA device")
def test_a_replay_is_the_eager_gradient_and_sees_changes():
    policy, world, state, noise = imagine(2, 3, 2, False, dict(hidden=(7,)), 0)
    for form in (gradient.forward_gradient, gradient.adjoint_gradient):
        for _ in range(3):
            p = problem(policy, world, state, noise)
            assert graphs.recordable(p)
            replayed = form(p)
            with mock.patch.object(graphs, "recordable", return_value=False):
                assert relative_error(replayed.gradient, form(p).gradient) < 1e-12
            with torch.no_grad():
                policy.mlp.layers[0].weight.mul_(1.1)
            state = state + 0.1
