"""Whatever is assigned to a module, the kernels compute what torch does or refuse; `Auto` is then right all the same.

Every attribute and method that the modules of a problem have is altered, one at a time.
"""

from dataclasses import replace

import pytest
import torch
from torch import nn

from jacrec import (
    Auto,
    Autograd,
    BatchedPolicy,
    DeterministicDynamics,
    FlowDynamics,
    Forward,
    MeanFlowDynamics,
    MultiStep,
    policy_gradient,
)
from jacrec.kernels.cpu.gradient import chain, plans
from jacrec.models.activations import ACTIVATIONS, Activation
from jacrec.models.dynamics import EnsembleDynamics, MultiStepDynamics
from jacrec.models.networks import MLP
from tests.cpu_cases import FUSED, problem_of
from tests.oracles import relative_error
from tests.strategies import shake

HIDDEN, NETWORK = (8, 8), dict(layer_norm=True, residual=True)
MODELS = {
    "diffusion": None,
    "flow": lambda: FlowDynamics(11, 3, HIDDEN, steps=2, **NETWORK),
    "meanflow": lambda: MeanFlowDynamics(11, 3, HIDDEN, **NETWORK),
    "deterministic": lambda: DeterministicDynamics(11, 3, HIDDEN, **NETWORK),
    "ensemble": lambda: EnsembleDynamics(11, 3, HIDDEN, members=3, **NETWORK),
    "multistep": lambda: MultiStepDynamics(11, 3, HIDDEN, horizon=4, stochastic=True, **NETWORK),
}
TORCHS = set(nn.Module().__dict__)
"""attributes of torch's own bookkeeping"""


@pytest.fixture(autouse=True)
def _fresh():
    plans.forget()


def build(model):
    """policy, world, state, noise; and the fused methods that serve it."""
    policy, world, state, _ = problem_of(M=2, N=2, hidden=HIDDEN, **NETWORK)
    if MODELS[model] is not None:
        world = replace(world, dynamics=MODELS[model]().double())
    for part in (policy, world.dynamics, world.reward, world.critic):
        shake(part)
    noise = torch.randn(2, 2, 2, *world.dynamics.noise_shape, dtype=torch.float64)
    fused = [MultiStep(kernel="fused")] if model == "multistep" else [FUSED]
    return (policy, world, state, noise), fused + [Forward(kernel="fused")] * (model in ("diffusion", "flow", "meanflow"))


def modules(policy, world):
    """The modules of a problem by name; a batch of layers is represented by its first and last."""
    for name, part in (("policy", policy), *((name, getattr(world, name)) for name in ("dynamics", "reward", "critic"))):
        for path, module in part.named_modules():
            yield f"{name}.{path}" if path else name, module


def other(value):
    """Values of the same kind that mean something else."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value - 1]
    if isinstance(value, float):
        return [value + 0.5]
    if isinstance(value, str):
        return [x for x in ("state", "difference", "relu", "tanh", "x0", "velocity") if x != value]
    if isinstance(value, Activation):
        return [ACTIVATIONS["tanh"], replace(ACTIVATIONS["tanh"], name=value.name)]
    if isinstance(value, torch.Tensor):
        return [value + 1, value.new_ones(()), value.new_ones((2, *value.shape))]
    if isinstance(value, tuple | list) and value and isinstance(value[0], int | float | tuple):
        first = tuple(x + 0.5 for x in value[0]) if isinstance(value[0], tuple) else value[0] + 1
        return [type(value)([first, *value[1:]]), value[1:], value + value[:1]]
    return [] if value is not None else [1]


def alterations(policy, world):
    """(name, change): every attribute, buffer and method of every kind of module, altered on the instance."""
    for name, module in modules(policy, world):
        own = {k: v for k, v in module.__dict__.items() if k not in TORCHS and k not in ("config", "template")}
        for key, value in (own | module._buffers).items():
            for i, altered in enumerate(other(value)):
                yield f"{name}.{key}[{i}]", lambda m, key=key, altered=altered: setattr(m, key, altered), name
        kind = type(module)
        if kind.__module__.startswith("jacrec"):
            for key in {k for cls in kind.__mro__ if cls.__module__.startswith("jacrec") for k in vars(cls)}:
                if key.startswith("__") or not callable(getattr(kind, key)) or key in UNUSED:
                    continue
                yield f"{name}.{key}()", lambda m, key=key: setattr(m, key, twice(getattr(m, key))), name
        if "eps" in dir(kind):
            yield f"{name}.eps", lambda m: setattr(m, "eps", 1e-2), name
        yield f"{name} with a hook", lambda m: m.register_forward_hook(lambda *a: 1.5 * a[-1]), name
        yield f"{name} with a backward hook", lambda m: m.register_full_backward_hook(weaker), name


FAILURES = (ValueError, RuntimeError, IndexError, KeyError, TypeError, AssertionError)
UNUSED = {"initialise", "loss", "goal", "average_velocity", "encode", "set_scales", "set_chain", "imagine", "_apply", "train"}
"""methods that no rollout calls"""


STRUCTURE = {"hidden", "out_dim", "state_dim", "action_dim", "times", "time"}
"""attributes by which the plain forms, too, know how a module is built: `Auto` falls back to these, and is not compared"""


def twice(method):
    """A method whose answer is twice the original's, where that can be said."""

    def altered(*arguments, **options):
        answer = method(*arguments, **options)
        return 2 * answer if isinstance(answer, torch.Tensor) and answer.is_floating_point() else answer

    return altered


def weaker(module, inputs, outputs):
    return tuple(None if x is None else 0.5 * x for x in inputs)


def agrees(problem, method, expected):
    """Whether a method gives the gradient expected, or refuses. expected: None where torch fails."""
    try:
        got = policy_gradient(*problem, method=method)
    except FAILURES:
        return method != Auto() or expected is None
    if expected is None:
        return False
    return relative_error(got.gradient, expected.gradient) < 1e-11 and torch.allclose(got.value, expected.value, rtol=1e-11)


def names_of(model):
    problem, _ = build(model)
    return [name for name, _, _ in alterations(*problem[:2])]


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kept", [False, True], ids=["new plan", "kept plan"])
def test_an_altered_module_is_served_rightly_or_refused(model, kept):
    wrong = []
    for name in names_of(model):
        problem, fused = build(model)
        change, path = next((change, path) for n, change, path in alterations(*problem[:2]) if n == name)
        if kept:
            policy_gradient(*problem, method=fused[0])
        change(dict(modules(*problem[:2]))[path])
        try:
            expected = policy_gradient(*problem, method=Autograd())
        except FAILURES:
            expected = None
        key = name.rsplit(".", 1)[-1].split("[")[0]
        other_shape = name.endswith("[2]") and model == "multistep"  # the plain form asserts its scales' shapes
        methods = fused if key in STRUCTURE or other_shape else [*fused, Auto()]
        wrong += [(name, method) for method in methods if not agrees(problem, method, expected)]
    assert not wrong


def global_hook(module, inputs, output):
    return 1.5 * output if isinstance(module, nn.Linear | MLP) and isinstance(output, torch.Tensor) else None


@pytest.mark.parametrize("register", ["register_module_forward_hook", "register_module_forward_pre_hook"])
@pytest.mark.parametrize("kept", [False, True], ids=["new plan", "kept plan"])
def test_hooks_on_all_modules_are_left_to_torch(register, kept):
    problem, fused = build("diffusion")
    if kept:
        policy_gradient(*problem, method=FUSED)
    hook = global_hook if register.endswith("forward_hook") else lambda module, inputs: tuple(1.5 * x for x in inputs)
    handle = getattr(nn.modules.module, register)(hook)
    try:
        expected = policy_gradient(*problem, method=Autograd())
        assert agrees(problem, Auto(), expected)
        for method in fused:
            with pytest.raises(ValueError, match="global module hooks"):
                policy_gradient(*problem, method=method)
    finally:
        handle.remove()
    assert agrees(problem, FUSED, policy_gradient(*problem, method=Autograd()))


@pytest.mark.parametrize("kept", [False, True], ids=["new plan", "kept plan"])
@pytest.mark.parametrize("where", ["own", "template"])
@pytest.mark.parametrize("attribute", ["act", "tanh_output", "residual", "hidden"])
def test_a_batched_policy_is_as_its_template_or_refused(attribute, where, kept):
    """Torch evaluates the one and differentiates the other."""
    (policy, world, state, noise), _ = build("diffusion")
    batched = BatchedPolicy(policy, 2)
    if kept:
        policy_gradient(batched, world, state, noise, method=FUSED)
    mlp = (batched if where == "own" else batched.template).get_submodule("mlp")
    setattr(mlp, attribute, ACTIVATIONS["tanh"] if attribute == "act" else other(getattr(mlp, attribute))[0])
    with pytest.raises(ValueError, match="policy"):
        policy_gradient(batched, world, state, noise, method=FUSED)


@pytest.mark.parametrize("change", ["tanh_output", "residual", "act", "decode", "target"])
def test_the_fused_chains_check_their_dynamics(change):
    (_, world, state, noise), _ = build("diffusion")
    f, action, z = world.dynamics, torch.randn(2, 3, dtype=torch.float64), noise[:, 0, 0]
    if change == "decode":
        f.decode = twice(f.decode)
    elif change == "target":
        f.target = "state"
    else:
        mlp = f.denoiser.mlp
        setattr(mlp, change, ACTIVATIONS["tanh"] if change == "act" else not getattr(mlp, change))
    tangents = torch.zeros(2, 0, 11, dtype=torch.float64), torch.zeros(2, 0, 3, dtype=torch.float64)
    for call in (lambda: chain.chain_forward(f, state, action, z, *tangents), lambda: chain.chain_record(f, state, action, z)):
        if change in ("residual", "target"):
            torch.testing.assert_close(call()[0], f(state, action, z), rtol=1e-12, atol=1e-12)
        else:
            with pytest.raises(ValueError, match="dynamics: expected"):
                call()
