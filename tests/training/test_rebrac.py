"""ReBRAC's hand-written updates against a plain transcription of the algorithm with autograd."""

import copy
import math

import numpy as np
import pytest
import torch

from jacrec.training.config import ReBRACConfig
from jacrec.training.passes import fused_unsupported_reason
from jacrec.training.stages.rebrac import ReBRAC, ReBRACStage, pack
from tests.plain_rebrac import PlainReBRAC, largest_difference
from tests.training_data import linear_system

OBSTACLE = fused_unsupported_reason(torch.zeros(1))
needs_fused = pytest.mark.skipif(OBSTACLE is not None, reason=str(OBSTACLE))
FUSED = [pytest.param(False, id="plain"), pytest.param(True, id="fused", marks=needs_fused)]


@pytest.fixture
def threads():
    """Set torch's number of threads for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("fused", FUSED)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"actor_layer_norm": True, "critic_layer_norm": False},
        {"normalize_q": False, "policy_freq": 3, "critic_bc_coef": 0.0},
    ],
    ids=["reference", "other norms", "other rhythm"],
)
def test_hundred_updates_equal_the_plain_transcription(changes, fused):
    d, m, width, rows = 11, 3, 32, 24
    config = ReBRACConfig(hidden=(width,) * 3, batch_size=rows, **{"actor_bc_coef": 0.4, "critic_bc_coef": 0.3, **changes})
    learner = ReBRAC(d, m, config, seed=3, dtype=torch.float64, fused=fused)
    plain = PlainReBRAC(learner)
    start = copy.deepcopy(learner.actor.state_dict())
    g = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=g)

    for t in range(100):
        s, s2, r, noise = normal(rows, d), normal(rows, d), normal(rows), 2 * normal(rows, m)
        a, a2 = normal(rows, m).tanh(), normal(rows, m).tanh()
        done = (torch.rand(rows, generator=g) < 0.2).double()
        move = t % config.policy_freq == 0
        plain.update(s, a, r, s2, a2, done, noise, move)
        learner.update(torch.cat([s, a, s2, a2, r[:, None], 1 - done[:, None]], 1), noise, move)

    target_actor, target_critic = learner.flat_target_actor.module, learner.flat_target_critic.module
    assert largest_difference(learner.actor.mlp, plain.actor) < 1e-10
    assert largest_difference(target_actor.mlp, plain.target_actor) < 1e-10
    for head in range(2):
        assert largest_difference(learner.critic.mlp, plain.critics[head], head) < 1e-10
        assert largest_difference(target_critic.mlp, plain.target_critics[head], head) < 1e-10
    # the targets lag and the actor has moved: the agreement is not that of standing still
    moved = max((v - start[k]).abs().max().item() for k, v in learner.actor.state_dict().items())
    assert moved > 1e-3
    assert largest_difference(target_actor.mlp, plain.actor) > 1e-4


def states_after(config: ReBRACConfig, updates: int, fused: bool, dtype=torch.float64, capturable: bool = False):
    """What a learner has become after updates on random rows, and the scalars of the last one."""
    d, m, g = 5, 2, torch.Generator().manual_seed(1)
    learner = ReBRAC(d, m, config, seed=1, dtype=dtype, fused=fused, capturable=capturable)
    scalars = {}
    for t in range(updates):
        batch = torch.randn(config.batch_size, 2 * (d + m) + 2, dtype=torch.float64, generator=g).to(dtype)
        noise = torch.randn(config.batch_size, m, dtype=torch.float64, generator=g).to(dtype)
        scalars = learner.update(batch, noise, t % config.policy_freq == 0)
    return learner.state(), scalars


def test_the_masked_update_equals_the_indexed_one():
    config = ReBRACConfig(hidden=(24, 16), batch_size=33, actor_bc_coef=0.4)
    (masked, ours), (indexed, theirs) = (states_after(config, 9, False, capturable=flag) for flag in (True, False))
    for name, value in indexed.items():
        torch.testing.assert_close(masked[name], value, rtol=1e-10, atol=1e-12)
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("policy_freq", [1, 2, 3])
def test_the_capturable_stage_makes_the_same_steps(policy_freq):
    config = ReBRACConfig(hidden=(16, 16), batch_size=8, policy_freq=policy_freq)
    kinds: list[dict] = [{"capturable": True}, {"fused": False}]
    ours, plain = (ReBRACStage(linear_system(), config, 0, dtype=torch.float64, **kind) for kind in kinds)
    for t in range(7):
        scalars, expected = ours.step(t), plain.step(t)
        assert scalars.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(scalars[name], value, rtol=1e-10, atol=1e-12)
    for name, value in plain.state().items():
        torch.testing.assert_close(ours.state()[name], value, rtol=1e-10, atol=1e-12)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a CUDA graph needs a GPU")
def test_a_captured_stage_makes_the_steps_of_the_cpu():
    config = ReBRACConfig(hidden=(16, 16), batch_size=8)
    on_gpu, on_cpu = (ReBRACStage(linear_system(), config, 0, device, torch.float64) for device in ("cuda", "cpu"))
    for t in range(7):
        on_gpu.step(t)
        on_cpu.step(t)
    for name, value in on_cpu.state().items():
        torch.testing.assert_close(on_gpu.state()[name].cpu(), value, rtol=1e-9, atol=1e-11)


@needs_fused
@pytest.mark.parametrize("team", [1, 2, 3, 4])
@pytest.mark.parametrize(("hidden", "rows"), [((24, 40, 16), 37), ((9,), 1), ((48, 8), 300)])
def test_the_fused_update_equals_the_plain_one_on_every_number_of_threads(team, hidden, rows, threads):
    threads(team)
    config = ReBRACConfig(hidden=hidden, batch_size=rows, actor_bc_coef=0.4, critic_bc_coef=0.3, policy_freq=2)
    (fused, ours), (plain, theirs) = (states_after(config, 9, fused) for fused in (True, False))
    assert fused.keys() == plain.keys()
    for name, value in plain.items():
        torch.testing.assert_close(fused[name], value, rtol=1e-10, atol=1e-11)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-10, atol=1e-11)
    again, _ = states_after(config, 9, True)
    assert all(torch.equal(again[name], value) for name, value in fused.items())


@needs_fused
def test_the_fused_update_in_single_precision_errs_no_more_than_the_plain_one():
    config = ReBRACConfig(hidden=(64, 64, 64), batch_size=64)
    exact, _ = states_after(config, 5, False)

    def error(fused: bool) -> float:
        state, _ = states_after(config, 5, fused, torch.float32)
        return (state["critic.exp_avg"].double() - exact["critic.exp_avg"]).norm().item()

    assert 0 < error(True) <= 2 * error(False)


@needs_fused
def test_a_value_that_is_no_number_is_not_hidden():
    config = ReBRACConfig(hidden=(8, 8), batch_size=4)
    learner = ReBRAC(2, 1, config, fused=True)
    batch = torch.rand(4, 8)
    batch[1, 0] = math.nan
    assert learner.update(batch, torch.randn(4, 1), False)["critic_loss"].isnan()


@needs_fused
def test_a_fused_update_where_it_cannot_serve_is_refused():
    with pytest.raises(ValueError, match=r"expected True where .* got it where the networks are torch.bfloat16"):
        ReBRAC(2, 1, ReBRACConfig(hidden=(8,)), dtype=torch.bfloat16, fused=True)
    assert ReBRAC(2, 1, ReBRACConfig(hidden=(8,)), dtype=torch.bfloat16).fused is None
    learner = ReBRAC(2, 1, ReBRACConfig(hidden=(8,)), fused=True)
    with pytest.raises(ValueError, match="expected contiguous rows"):
        learner.update(torch.rand(4, 9)[:, :8], torch.randn(4, 1), False)


@pytest.mark.parametrize("fused", FUSED)
def test_the_actors_target_is_mixed_with_the_actor_from_before_its_update(fused):
    config = ReBRACConfig(hidden=(8, 8), tau=1.0)
    learner = ReBRAC(2, 1, config, seed=0, fused=fused)
    before = learner.flat_actor.value.clone()
    learner.update(torch.rand(4, 8), torch.randn(4, 1), True)
    assert torch.equal(learner.flat_target_actor.value, before)
    assert not torch.equal(learner.flat_actor.value, before)
    assert torch.equal(learner.flat_target_critic.value, learner.flat_critic.value)


def test_rows_of_td_learning():
    data = linear_system(episodes=6, steps=5)
    rows = pack(data, reward_scale=100.0)
    d, m = data.state_dim, data.action_dim
    usable = data.has_next_action | data.terminal
    assert len(rows) == usable.sum() == 6 * 4 + 2
    np.testing.assert_array_equal(rows[:, :d], data.state[usable])
    np.testing.assert_array_equal(rows[:, d : d + m], data.action[usable])
    np.testing.assert_allclose(rows[:, -2], 100 * data.reward[usable], rtol=1e-6)
    np.testing.assert_array_equal(rows[:, -1], ~data.terminal[usable])


def test_critic_learns():
    """The error of the critic falls, and it values the states near the optimum more."""
    data = linear_system(state_dim=1, action_dim=1, episodes=40, steps=30)
    config = ReBRACConfig(hidden=(32, 32), batch_size=64, updates=400, actor_bc_coef=1.0, discount=0.5, tau=0.05)
    stage = ReBRACStage(data, config, seed=0)
    losses = [stage.step(t)["critic_loss"].item() for t in range(config.updates)]
    assert np.mean(losses[-50:]) < 0.1 * np.mean(losses[:10])
    state = torch.tensor([[0.0], [1.5]])
    near, far = stage.learner.critic(state, torch.zeros(2, 1))
    assert near > far + 1.0  # −s² is best at the origin


def test_data_without_successors_is_refused():
    data = linear_system(episodes=2, steps=4)
    data = data.rows(~data.has_next_action & ~data.terminal)
    with pytest.raises(ValueError, match="expected rows with a successor, got none of 1"):
        pack(data)
