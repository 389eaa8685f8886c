"""ReBRAC's hand-written updates against a plain transcription of the algorithm with autograd."""

import copy
import math

import numpy as np
import pytest
import torch

from jacrec.training.config import ReBRACConfig
from jacrec.training.stages.rebrac import ReBRAC, ReBRACStage, pack
from tests.plain_rebrac import FUSED, PlainReBRAC, largest_difference, needs_fused
from tests.training_data import linear_system


@pytest.mark.parametrize("fused", FUSED)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"actor_layer_norm": True, "critic_layer_norm": False},
        {"normalize_q": False, "policy_freq": 3, "critic_bc_coef": 0.0},
    ],
    ids=["reference", "other norms", "other policy_freq"],
)
def test_100_updates_equal_the_autograd_reference(changes, fused):
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
    # the agreement is not trivial: the actor has moved, and the targets lag behind
    moved = max((v - start[k]).abs().max().item() for k, v in learner.actor.state_dict().items())
    assert moved > 1e-3
    assert largest_difference(target_actor.mlp, plain.actor) > 1e-4


def train_on_random_rows(config: ReBRACConfig, updates: int, fused: bool, dtype=torch.float64, capturable: bool = False):
    """A learner's state after updates on random rows, and the scalars of the last update."""
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
    (masked, actual), (indexed, expected) = (train_on_random_rows(config, 9, False, capturable=flag) for flag in (True, False))
    for name, value in indexed.items():
        torch.testing.assert_close(masked[name], value, rtol=1e-10, atol=1e-12)
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("policy_freq", [1, 2, 3])
def test_the_capturable_stage_performs_the_same_steps(policy_freq):
    config = ReBRACConfig(hidden=(16, 16), batch_size=8, policy_freq=policy_freq)
    kinds: list[dict] = [{"capturable": True}, {"fused": False}]
    actual, plain = (ReBRACStage(linear_system(), config, 0, dtype=torch.float64, **kind) for kind in kinds)
    for t in range(7):
        scalars, expected = actual.step(t), plain.step(t)
        assert scalars.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(scalars[name], value, rtol=1e-10, atol=1e-12)
    for name, value in plain.state().items():
        torch.testing.assert_close(actual.state()[name], value, rtol=1e-10, atol=1e-12)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a CUDA graph needs a GPU")
def test_a_captured_stage_equals_the_cpu():
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
def test_the_fused_update_equals_the_plain_one_for_any_number_of_threads(team, hidden, rows, threads):
    threads(team)
    config = ReBRACConfig(hidden=hidden, batch_size=rows, actor_bc_coef=0.4, critic_bc_coef=0.3, policy_freq=2)
    (fused, actual), (plain, expected) = (train_on_random_rows(config, 9, fused) for fused in (True, False))
    assert fused.keys() == plain.keys()
    for name, value in plain.items():
        torch.testing.assert_close(fused[name], value, rtol=1e-10, atol=1e-11)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-10, atol=1e-11)
    again, _ = train_on_random_rows(config, 9, True)
    assert all(torch.equal(again[name], value) for name, value in fused.items())


@needs_fused
def test_the_fused_update_in_single_precision_is_as_accurate_as_the_plain_one():
    config = ReBRACConfig(hidden=(64, 64, 64), batch_size=64)
    exact, _ = train_on_random_rows(config, 5, False)

    def error(fused: bool) -> float:
        state, _ = train_on_random_rows(config, 5, fused, torch.float32)
        return (state["critic.exp_avg"].double() - exact["critic.exp_avg"]).norm().item()

    assert 0 < error(True) <= 2 * error(False)


@needs_fused
def test_nan_propagates_to_the_loss():
    config = ReBRACConfig(hidden=(8, 8), batch_size=4)
    learner = ReBRAC(2, 1, config, fused=True)
    batch = torch.rand(4, 8)
    batch[1, 0] = math.nan
    assert learner.update(batch, torch.randn(4, 1), False)["critic_loss"].isnan()


@needs_fused
def test_an_unsupported_fused_update_is_rejected():
    with pytest.raises(ValueError, match=r"^fused: .*got True .*torch\.bfloat16"):
        ReBRAC(2, 1, ReBRACConfig(hidden=(8,)), dtype=torch.bfloat16, fused=True)
    assert ReBRAC(2, 1, ReBRACConfig(hidden=(8,)), dtype=torch.bfloat16).fused is None
    learner = ReBRAC(2, 1, ReBRACConfig(hidden=(8,)), fused=True)
    with pytest.raises(ValueError, match="expected contiguous rows"):
        learner.update(torch.rand(4, 9)[:, :8], torch.randn(4, 1), False)


@pytest.mark.parametrize("fused", FUSED)
def test_the_actor_target_follows_the_actor_before_its_update(fused):
    config = ReBRACConfig(hidden=(8, 8), tau=1.0)
    learner = ReBRAC(2, 1, config, seed=0, fused=fused)
    before = learner.flat_actor.value.clone()
    learner.update(torch.rand(4, 8), torch.randn(4, 1), True)
    assert torch.equal(learner.flat_target_actor.value, before)
    assert not torch.equal(learner.flat_actor.value, before)
    assert torch.equal(learner.flat_target_critic.value, learner.flat_critic.value)


def test_packed_rows():
    data = linear_system(episodes=6, steps=5)
    rows = pack(data, reward_scale=100.0)
    d, m = data.state_dim, data.action_dim
    usable = data.has_next_action | data.terminal
    assert len(rows) == usable.sum() == 6 * 4 + 2
    np.testing.assert_array_equal(rows[:, :d], data.state[usable])
    np.testing.assert_array_equal(rows[:, d : d + m], data.action[usable])
    np.testing.assert_allclose(rows[:, -2], 100 * data.reward[usable], rtol=1e-6)
    np.testing.assert_array_equal(rows[:, -1], ~data.terminal[usable])


def test_the_critic_learns():
    """The critic's error decreases, and states near the optimum have higher values."""
    data = linear_system(state_dim=1, action_dim=1, episodes=40, steps=30)
    config = ReBRACConfig(hidden=(32, 32), batch_size=64, updates=400, actor_bc_coef=1.0, discount=0.5, tau=0.05)
    stage = ReBRACStage(data, config, seed=0)
    losses = [stage.step(t)["critic_loss"].item() for t in range(config.updates)]
    assert np.mean(losses[-50:]) < 0.1 * np.mean(losses[:10])
    state = torch.tensor([[0.0], [1.5]])
    near, far = stage.learner.critic(state, torch.zeros(2, 1))
    assert near > far + 1.0  # −s² is best at the origin


def test_data_without_successors_are_rejected():
    data = linear_system(episodes=2, steps=4)
    data = data.rows(~data.has_next_action & ~data.terminal)
    with pytest.raises(ValueError, match=r"^linear system: .*got none of 1"):
        pack(data)
