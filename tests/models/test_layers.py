"""Networks read from modules of torch's own layers: what they compute, whose parameters they have, and what is not read."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from jacrec import Actor, RewardModel, TwinCritic
from jacrec.models.io import load_module, save_module
from jacrec.models.layers import Layers, layers_of
from jacrec.models.mlp import ParallelMLP
from jacrec.models.networks import has_manual_derivatives
from tests.conftest import property_cases
from tests.strategies import stacks

d, m = 4, 2


def linear(a, b):
    return nn.Linear(a, b).double()


def stack(*hidden, outputs=m, inputs=d, tanh=True, width=5):
    """Linear → hidden → Linear → Tanh."""
    last = [nn.Tanh()] if tanh else []
    return nn.Sequential(linear(inputs, width), *(hidden or (nn.ReLU(),)), linear(width, outputs), *last).double()


@property_cases(0.03)
@given(build=stacks(), data=st.data())
def test_what_is_read_is_what_is_computed(build, data):
    rng = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    state, action = (torch.randn(3, 5, n, generator=rng, dtype=torch.float64) for n in (d, m))
    both = torch.cat([state, action], -1)
    policy, value, other = build(d, m, tanh=True), build(d + m, 1), build(d + m, 1)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(0.9)
    actor, reward = Actor.from_module(policy), RewardModel.from_module(value, state_dim=d)
    critic = TwinCritic.from_modules(value, other, state_dim=d)
    least = torch.minimum(value(both), other(both)).squeeze(-1)
    pairs = [
        (actor(state), policy(state), policy),
        (reward(state, action), value(both).squeeze(-1), value),
        (critic(state, action), least, other),
    ]
    for got, expected, module in pairs:
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
        slopes = [torch.autograd.grad(y.sum(), list(module.parameters())) for y in (got, expected)]
        for a, b in zip(*slopes, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)
    assert all(map(has_manual_derivatives, (actor, reward, critic)))
    assert (actor.state_dim, actor.action_dim, reward.action_dim, critic.action_dim, critic.critics) == (d, m, m, m, 2)


def sgd(module):
    optimiser = torch.optim.SGD(module.parameters(), lr=0.5)
    module(torch.ones(1, d, dtype=torch.float64)).sum().backward()
    optimiser.step()


def other_data(module):
    module[0].weight.data = 2 * module[0].weight.data


def loaded(module):
    module.load_state_dict({name: 2 * x for name, x in module.state_dict().items()})


def assigned(module):
    module.load_state_dict({name: nn.Parameter(2 * x) for name, x in module.state_dict().items()}, assign=True)


def other_parameter(module):
    module[0].weight = nn.Parameter(2 * module[0].weight.detach())


CHANGES = [sgd, other_data, loaded, assigned, other_parameter]


@pytest.mark.parametrize("change", CHANGES)
def test_parameters_are_the_modules_own(change):
    torch.manual_seed(0)
    module = stack(nn.SiLU(), nn.LayerNorm(5))
    actor, x = Actor.from_module(module), torch.randn(3, d, dtype=torch.float64)
    before = module(x)
    change(module)
    torch.testing.assert_close(actor(x), module(x), rtol=1e-14, atol=1e-14)
    with torch.no_grad():  # the other way round
        for p in actor.parameters():
            p.mul_(0.3)
    torch.testing.assert_close(actor(x), module(x), rtol=1e-14, atol=1e-14)
    assert not torch.allclose(module(x), before)


def test_networks_beside_each_other_are_initialised_anew():
    critic = TwinCritic.from_modules(values(), values(), state_dim=d)
    assert isinstance(critic.mlp, ParallelMLP)
    critic.mlp.initialise(last=1e-3, hidden_bias=0.1)
    assert [float(x.detach().abs().max()) <= 1e-3 for x in (y.layers[-1].weight for y in critic.mlp.networks)] == [True, True]
    assert all((x.layers[0].bias == 0.1).all() for x in critic.mlp.networks)


def test_copies_are_separate():
    module = stack()
    twin = copy.deepcopy(Actor.from_module(module))
    x = torch.randn(3, d, dtype=torch.float64)
    before = twin(x)
    sgd(module)
    assert torch.equal(twin(x), before)


def hooked():
    module = stack()
    module[1].register_forward_hook(lambda *a: 2 * a[-1])
    return module


def overridden():
    module = stack()
    module[1].forward = lambda x: 2 * x
    return module


def of_a_subclass(kind):
    class Other(kind):
        def forward(self, x):
            return super().forward(x) + 1

    return Other


def shadowed():
    module = stack()
    object.__setattr__(module[0], "weight", torch.ones(5, d, dtype=torch.float64))
    return module


def shared():
    one = linear(5, 5)
    return stack(nn.ReLU(), one, nn.ReLU(), one, nn.ReLU())


def tied():
    module = stack(nn.ReLU(), linear(5, 5), nn.ReLU(), linear(5, 5), nn.ReLU())
    module[2].weight = module[4].weight
    return module


def parametrised():
    module = stack()
    nn.utils.parametrizations.weight_norm(module[0])
    return module


def more_parameters():
    module = stack()
    module[0].register_parameter("extra", nn.Parameter(torch.ones(1, dtype=torch.float64)))
    return module


def broadcast():
    module = stack()
    module[0].bias = nn.Parameter(torch.ones(1, dtype=torch.float64))
    return module


NEAR_MISSES = {
    "a hook": hooked,
    "a forward of its own": overridden,
    "a subclass": lambda: nn.Sequential(of_a_subclass(nn.Linear)(d, 5), nn.ReLU(), nn.Linear(5, m), nn.Tanh()).double(),
    "a container of a subclass": lambda: of_a_subclass(nn.Sequential)(*stack()),
    "an attribute in a parameter's place": shadowed,
    "a dropout in training mode": lambda: stack(nn.ReLU(), nn.Dropout(0.3)).train(),
    "a LayerNorm without parameters": lambda: stack(nn.ReLU(), nn.LayerNorm(5, elementwise_affine=False)),
    "a LayerNorm without bias": lambda: stack(nn.ReLU(), nn.LayerNorm(5, bias=False)),
    "a LayerNorm before the activation": lambda: stack(nn.LayerNorm(5), nn.ReLU()),
    "some LayerNorms": lambda: stack(nn.ReLU(), nn.LayerNorm(5), linear(5, 5), nn.ReLU()),
    "several eps": lambda: stack(nn.ReLU(), nn.LayerNorm(5), linear(5, 5), nn.ReLU(), nn.LayerNorm(5, eps=0.1)),
    "a Linear without bias": lambda: stack(nn.ReLU(), nn.Linear(5, 5, bias=False), nn.ReLU()),
    "a shared layer": shared,
    "a tied weight": tied,
    "a parametrisation": parametrised,
    "one more parameter": more_parameters,
    "a bias that is broadcast": broadcast,
    "GELU's approximation": lambda: stack(nn.GELU(approximate="tanh")),
    "another activation": lambda: stack(nn.ELU()),
    "two kinds of activation": lambda: stack(nn.ReLU(), linear(5, 5), nn.SiLU()),
    "two activations": lambda: stack(nn.ReLU(), nn.Tanh()),
    "no activation": lambda: stack(nn.Identity()),
    "another last layer": lambda: nn.Sequential(*list(stack())[:-1], nn.Hardtanh()),
    "no hidden layer": lambda: nn.Sequential(linear(d, m), nn.Tanh()),
    "an activation first": lambda: nn.Sequential(nn.Tanh(), *stack()),
    "an Actor inside": lambda: nn.Sequential(Actor(d, m, (5,)).double()),
}
"""modules that nearly are what is read"""


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_near_misses_are_not_read(name):
    module = NEAR_MISSES[name]()
    reason = layers_of(module)
    assert isinstance(reason, str)
    assert "expected" in reason
    assert "got" in reason
    with pytest.raises(ValueError, match=r"^Actor.from_module: expected .*, got "):
        Actor.from_module(module)


def test_what_torch_computes_has_to_be_torchs(monkeypatch):
    assert isinstance(layers_of(stack()), Layers)
    before = nn.ReLU.forward
    monkeypatch.setattr(nn.ReLU, "forward", lambda self, x: 2 * before(self, x))
    assert isinstance(layers_of(stack()), str)
    monkeypatch.undo()
    handle = nn.modules.module.register_module_forward_hook(lambda *a: None)
    assert isinstance(layers_of(stack()), str)
    handle.remove()
    assert isinstance(layers_of(stack()), Layers)


def values(**options):
    return stack(outputs=1, inputs=d + m, tanh=False, **options)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Actor.from_module(stack(tanh=False)), "expected a Tanh as the last layer, got none"),
        (lambda: Actor.from_module(lambda s: s), "expected an nn.Module, got "),
        (
            lambda: RewardModel.from_module(stack(), state_dim=2),
            "one output without Tanh, got 4 inputs and 2 outputs, with a Tanh",
        ),
        (lambda: RewardModel.from_module(values(), state_dim=6), "expected more inputs than state_dim = 6"),
        (lambda: RewardModel.from_module(values(), state_dim=0), "state_dim: expected an integer >= 1, got 0"),
        (lambda: TwinCritic.from_modules(state_dim=d), "modules: expected an integer >= 1, got 0"),
        (lambda: TwinCritic.from_modules(values(), values(width=6), state_dim=d), r"same layers, got .*\(5,\).*\(6,\)"),
        (lambda: TwinCritic.from_modules(*[values()] * 2, state_dim=d), "parameters of their own, got some that share them"),
    ],
)
def test_errors_say_what_was_expected(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_views_are_saved_if_a_constructor_makes_their_kind(tmp_path):
    actor, x = Actor.from_module(stack().float()), torch.randn(3, d)
    torch.testing.assert_close(load_module(save_module(actor, tmp_path / "actor.safetensors"))(x), actor(x))
    with pytest.raises(ValueError, match=r"got LayerNorms with eps = 1e-05"):
        save_module(Actor.from_module(stack(nn.ReLU(), nn.LayerNorm(5))), tmp_path / "norms.safetensors")
    with pytest.raises(ValueError, match="got critics with parameters of their own"):
        save_module(TwinCritic.from_modules(values(), values(), state_dim=d), tmp_path / "critic.safetensors")
