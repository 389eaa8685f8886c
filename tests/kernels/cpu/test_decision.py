"""A decision in compiled code against the same decision in plain torch: the step, what refuses it, and the action."""

import copy

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from jacrec import MPC, Actor, Adjoint, Auto, BatchedPolicy, MPCConfig, PolicyGradient, mpc_update, policy_gradient
from jacrec.control.update import compute_update
from jacrec.engine.dispatch import kept_plan
from jacrec.engine.shapes import problem as check
from jacrec.kernels.cpu.base import threads
from jacrec.kernels.cpu.gradient import plans
from jacrec.kernels.cpu.gradient.action import action
from jacrec.kernels.cpu.gradient.gradient import FusedUpdate
from jacrec.models.networks import LayerNorm
from jacrec.models.world import apply_policy
from tests.conftest import property_cases
from tests.cpu_cases import FORWARD, FUSED, decide, problem_of, same_decision, team_of
from tests.oracles import well_posed
from tests.strategies import cases

PLAIN = Adjoint()


@pytest.fixture(autouse=True)
def _fresh():
    plans.forget()


UPDATES, LONGEST, FROZEN = st.integers(0, 3), st.none() | st.floats(0.01, 10.0), st.integers(0, 3)


@pytest.fixture
def threads_asked(monkeypatch):
    """Let the kernels take as many threads as they are told to, whatever the work."""
    monkeypatch.setattr(threads, "LEAST_WORK", 1.0)
    return lambda count: monkeypatch.setattr(torch, "get_num_threads", lambda: count)


@property_cases(0.08)
@given(
    case=cases(foreign=False), updates=UPDATES, longest=LONGEST, frozen=FROZEN, count=st.integers(1, 3), forward=st.booleans()
)
def test_a_decision_is_that_of_plain_torch(case, updates, longest, frozen, count, forward):
    problem = case.build()
    method = FORWARD if forward and case.dynamics[0] != "ensemble" else FUSED
    assume(well_posed(*problem))
    for i, parameter in enumerate(problem[0].parameters()):
        parameter.requires_grad_(frozen == 0 or i % 3 != frozen - 1)
    assume(any(p.requires_grad for p in problem[0].parameters()))
    options = dict(updates=updates, lr=1e-3, max_grad_norm=longest)
    plain, own = decide(problem, PLAIN, **options), copy.deepcopy(problem[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threads, "LEAST_WORK", 1.0)
        patch.setattr(torch, "get_num_threads", lambda: count)
        # the second time through the plan that was kept of the first
        for _ in range(2):
            own.load_state_dict(problem[0].state_dict())
            fused = decide(problem, method, policy=own, **options)
            same_decision(fused[0], plain[0], fused[1], plain[1])
        assert not updates or kept_plan(own, *problem[1:3]) is not None


@pytest.mark.parametrize("updates", [1, 2])
@pytest.mark.parametrize("batched", [False, True])
def test_threads_share_the_step(threads_asked, batched, updates):
    problem = problem_of(N=3, M=4, hidden=(64, 48, 64), batched=batched, layer_norm=True)
    results = []
    for count in (1, 2, 3):
        threads_asked(count)
        plans.forget()
        one, again = (decide(problem, FUSED, updates=updates, lr=1e-2) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(one[1].parameters(), again[1].parameters(), strict=True))
        results.append(one)
    for step, policy in results[1:]:
        same_decision(step, results[0][0], policy, results[0][1])
    same_decision(
        *(x for pair in zip(results[-1], decide(problem, PLAIN, updates=updates, lr=1e-2), strict=True) for x in pair)
    )


@pytest.mark.parametrize("method", [FUSED, FORWARD, Auto()])
def test_the_compiled_step_is_the_one_taken(method):
    """Else all of these tests would compare plain torch with itself."""
    problem = check(*problem_of())
    assert isinstance(compute_update(problem, method, 1e-3), FusedUpdate)
    assert not isinstance(compute_update(problem, PLAIN, 1e-3), FusedUpdate)


def test_options_of_the_method_count_in_a_decision(threads_asked, pool):
    threads_asked(2)
    problem = problem_of(N=1, M=1)
    for team in (1, 2):
        update = compute_update(check(*problem), Adjoint(kernel="fused", team=team), 1e-2)
        assert team_of(update.job.row) == team
    with pytest.raises(ValueError, match="a format of GPUs"):
        decide(problem, Adjoint(kernel="fused", precision="tf32"))
    together, alone = (decide(problem, Adjoint(kernel="fused", team=team), lr=1e-2) for team in (2, 1))
    same_decision(together[0], alone[0], together[1], alone[1])


def test_what_is_derived_from_a_method_is_asked_itself():
    class Backwards(Auto):
        def gradient(self, problem):
            found = super().gradient(problem)
            return PolicyGradient(found.value, {name: -g for name, g in found.gradient.items()})

    problem = problem_of()
    up, down = decide(problem, Auto(), lr=1e-3), decide(problem, Backwards(), lr=1e-3)
    for before, a, b in zip(problem[0].parameters(), up[1].parameters(), down[1].parameters(), strict=True):
        torch.testing.assert_close(a - before, before - b)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("batched", [False, True])
def test_what_is_not_finite_moves_nothing(threads_asked, batched, poison, count):
    threads_asked(count)
    policy, world, state, noise = problem_of(N=3, batched=batched)
    noise[1, 0, 0, -1] = poison
    # the checks refuse such noise from a caller: here it stands for a model that fails on a state
    p = check(policy, world, state, torch.zeros_like(noise))
    before = {k: v.clone() for k, v in policy.named_parameters()}
    object.__setattr__(p, "noise", noise)
    taken = compute_update(p, FUSED, 1e-2).apply()
    assert taken.accepted.tolist() == ([True, False, True] if batched else False)
    for name, parameter in policy.named_parameters():
        if batched:
            assert torch.equal(parameter[1], before[name][1])
            assert torch.isfinite(parameter).all()
            assert not torch.equal(parameter[0], before[name][0]) or not parameter[0].any()
        else:
            assert torch.equal(parameter, before[name])


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("method", [FUSED, PLAIN])
def test_a_step_too_long_to_be_a_number_is_refused(threads_asked, method, count):
    threads_asked(count)
    policy, world, state, noise = problem_of(dtype=torch.float32, M=8)
    world.reward.reward_std.mul_(1e4)
    before = [p.clone() for p in policy.parameters()]
    step = mpc_update(policy, world, state, noise=noise, method=method, lr=3e38)
    assert 2 < float(step.gradient_norm) < float("inf")
    assert not step.accepted.any()
    assert all(torch.equal(a, b) for a, b in zip(before, policy.parameters(), strict=True))


def test_parameters_that_are_not_contiguous_are_moved_where_they_lie():
    problem = problem_of(hidden=(16, 24))
    for p in problem[0].parameters():
        wide = p.detach().new_zeros(*p.shape[:-1], 2 * p.shape[-1])
        wide[..., ::2] = p.detach()
        p.data = wide[..., ::2]
    plain = decide(problem, PLAIN, policy=copy.deepcopy(problem[0]), lr=1e-2, updates=2)
    before = {k: v.clone() for k, v in problem[0].named_parameters()}
    fused = decide(problem, FUSED, policy=problem[0], lr=1e-2, updates=2)
    assert not next(problem[0].parameters()).is_contiguous()
    same_decision(fused[0], plain[0], fused[1], plain[1])
    assert all(not torch.equal(before[k], v) for k, v in problem[0].named_parameters())


def test_autograd_notices_that_the_parameters_have_changed():
    policy, world, state, noise = problem_of()
    loss = policy(state).square().sum()
    mpc_update(policy, world, state, noise=noise, method=FUSED)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_autograd_goes_on_where_nothing_has_changed():
    policy, world, state, noise = problem_of()
    world.reward.reward_std.fill_(torch.nan)
    loss = policy(state).square().sum()
    assert not mpc_update(policy, world, state, noise=noise, method=FUSED).accepted.any()
    loss.backward()
    policy, world, state, noise = problem_of()
    policy.mlp.layers[1].requires_grad_(False)
    inputs = torch.randn_like(state).requires_grad_()
    middle = policy.mlp.layers[1](policy.mlp.layers[0](inputs).detach().requires_grad_()).sum()
    mpc_update(policy, world, state, noise=noise, method=FUSED)
    middle.backward()  # through the frozen layer alone


def test_a_step_is_taken_once():
    update = compute_update(check(*problem_of()), FUSED, 1e-2)
    update.apply()
    with pytest.raises(RuntimeError, match="expected one call, got a second"):
        update.apply()


def test_a_policy_that_is_frozen_meanwhile_is_refused():
    policy, world, _, _ = problem_of(dtype=torch.float32)
    controller = MPC(policy, world, MPCConfig(horizon=2, particles=4))
    controller.act(torch.zeros(11))
    controller.policy.requires_grad_(False)
    with pytest.raises(ValueError, match="expected parameters with requires_grad=True"):
        controller.act(torch.zeros(11))


def share_data(policy):
    policy.mlp.layers[1].weight.data = policy.mlp.layers[2].weight.data


def expand_bias(policy):
    policy.mlp.layers[0].bias.data = policy.mlp.layers[0].bias.data[:1].expand(24)


@pytest.mark.parametrize("change", [share_data, expand_bias])
def test_parameters_that_share_memory_are_not_stepped_along_by_the_kernels(change):
    policy, world, state, noise = problem_of(hidden=(24, 24, 24))
    policy_gradient(policy, world, state, noise, method=FUSED)
    change(policy)
    with pytest.raises(ValueError, match="share memory"):
        mpc_update(policy, world, state, noise=noise, method=FUSED)


def test_a_base_that_is_a_strangers_acts_all_the_same():
    policy, world, _, _ = problem_of(dtype=torch.float32)
    controller = MPC(policy, world, MPCConfig(horizon=2, particles=4, max_action_change=0.1))
    first = controller.act(torch.ones(11))
    calls = []
    controller.base.register_forward_hook(lambda *_: calls.append(1))
    controller.new_episode()
    controller.generator.manual_seed(0)
    torch.testing.assert_close(controller.act(torch.ones(11)), first)
    assert calls == [1]


def test_weights_that_another_hand_changes_between_updates_are_seen():
    """As a trust region does, between the step and the next gradient, and between the last step and the action."""
    policy, world, state, noise = problem_of(N=1, M=3, hidden=(32, 32))
    p = check(policy, world, state, noise)
    for _ in range(3):
        update = compute_update(p, FUSED, 1e-2)
        expected = policy_gradient(policy, world, state, noise, method=PLAIN)
        torch.testing.assert_close(update.value, expected.value, rtol=1e-12, atol=1e-12)
        taken = update.apply()
        torch.testing.assert_close(taken.gradient_norm, torch.stack([g.norm() for g in expected.gradient.values()]).norm())
        for parameter in policy.parameters():
            parameter.data.mul_(0.9)
        torch.testing.assert_close(update.action(policy, p.state), policy(p.state), rtol=1e-12, atol=1e-12)
        p = check(policy, world, state, noise)


@property_cases(0.04)
@given(case=cases(foreign=False))
def test_an_action_is_that_of_the_policy(case):
    policy, _, state, _ = case.build()
    state = state.reshape(-1, state.shape[-1])
    for _ in range(2):
        expected = apply_policy(policy, None, state.unsqueeze(1)).squeeze(1)
        torch.testing.assert_close(action(policy, state), expected, rtol=1e-12, atol=1e-12)
        for parameter in policy.parameters():
            parameter.data.mul_(1.1)


def test_an_action_follows_whatever_happens_to_the_policy():
    torch.manual_seed(0)
    policy, state = Actor(4, 2, (16, 16)).double(), torch.randn(5, 4, dtype=torch.float64)
    action(policy, state)
    policy.mlp.layers[1] = copy.deepcopy(policy.mlp.layers[1])
    policy.mlp.layers[1].weight.data.mul_(1.5)
    torch.testing.assert_close(action(policy, state), policy(state))
    policy.mlp.norms.extend([LayerNorm(16).double(), LayerNorm(16).double()])
    torch.testing.assert_close(action(policy, state), policy(state))
    handle = policy.mlp.layers[0].register_forward_hook(lambda module, inputs, output: 2 * output)
    torch.testing.assert_close(action(policy, state), policy(state))
    handle.remove()
    torch.testing.assert_close(action(policy, state), policy(state))
    for wrong in (state.float(), state[:, :3]):
        with pytest.raises(ValueError, match="expected to take states of shape"):
            action(policy, wrong)
    both = BatchedPolicy(policy, 5)
    torch.testing.assert_close(action(both, state), policy(state))
    with pytest.raises(ValueError, match="expected 5 rows"):
        action(both, state[:3])


@pytest.mark.parametrize("where", ["policy", "template", "world"])
def test_a_hook_that_comes_later_ends_the_compiled_decision(where):
    policy, world, state, noise = problem_of(N=2, batched=True)
    mpc_update(policy, world, state, noise=noise, method=FUSED)
    layer = {"policy": policy.get_submodule("mlp"), "template": policy.template, "world": world.reward}[where]
    handle = layer.register_forward_hook(lambda module, inputs, output: 2 * output)
    with pytest.raises(ValueError, match="expected an unmodified jacrec"):
        mpc_update(policy, world, state, noise=noise, method=FUSED)
    handle.remove()
    mpc_update(policy, world, state, noise=noise, method=FUSED)


def test_a_parameter_that_comes_later_ends_it_too():
    policy, world, state, noise = problem_of()
    mpc_update(policy, world, state, noise=noise, method=FUSED)
    policy.register_parameter("temperature", torch.nn.Parameter(torch.ones((), dtype=torch.float64)))
    with pytest.raises(ValueError, match="policy: expected an unmodified jacrec Actor, no parameter added or tied"):
        mpc_update(policy, world, state, noise=noise, method=FUSED)


@pytest.mark.parametrize("batch", [None, 3])
def test_a_controller_with_and_without_kept_plans_acts_alike_to_the_last_bit(batch):
    """So a run that is resumed in another process goes on as it would have."""
    policy, world, _, _ = problem_of(hidden=(32, 32), dtype=torch.float32)
    rng = torch.Generator().manual_seed(1)
    observations = torch.randn(6, *(() if batch is None else (batch,)), 11, generator=rng)
    config = MPCConfig(horizon=2, particles=4, updates=2, lr=1e-2, max_action_change=0.2)
    kept, forgetful = (MPC(policy, world, config, batch=batch) for _ in range(2))
    for observation in observations:
        answers = [kept.act(observation) for _ in range(2)]
        for answer in answers:
            plans.forget()
            assert torch.equal(forgetful.act(observation), answer)
    assert all(torch.equal(a, b) for a, b in zip(kept.policy.parameters(), forgetful.policy.parameters(), strict=True))
