"""Alterations of a policy or a world, and what may come of them. `draw` draws from a strategy of Hypothesis."""

import re
from collections.abc import Callable

import torch
from hypothesis import strategies as st
from torch import nn

from jacrec import Adjoint, Auto, Autograd, Forward, policy_gradient
from tests.oracles import looped_gradient, relative_error
from tests.strategies import Case

PARTS = ("policy", "dynamics", "reward", "critic")
NAMED = re.compile("|".join((*PARTS, "noise", "state", "denoiser", "horizon")))


class Dropping(nn.Module):
    """A layer with randomness of its own, before or behind another."""

    def __init__(self, inner, kind):
        super().__init__()
        self.inner, self.kind = inner, kind
        self.drop = nn.Dropout(0.5)

    def forward(self, *arguments):
        y = self.inner(*arguments)
        if self.kind == "dropout":
            return self.drop(y)
        return y + torch.randn_like(y) if self.kind == "noise" else y * torch.randint(1, 3, y.shape[:1] + (1,) * (y.dim() - 1))


def tensors(module):
    return [(owner, name) for owner in module.modules() for name, p in owner._parameters.items() if p is not None]


def children(module):
    return [(owner, name) for owner in module.modules() for name, child in owner._modules.items() if child is not None]


@torch.no_grad()
def other_shape(draw, module):
    owner, name = draw(st.sampled_from(tensors(module)))
    shape = list(owner._parameters[name].shape) or [1]
    axis = draw(st.integers(0, len(shape) - 1))
    shape[axis] = max(1, shape[axis] + draw(st.sampled_from([-1, 1])))
    owner._parameters[name] = nn.Parameter(0.3 * torch.randn(shape, dtype=owner._parameters[name].dtype))


@torch.no_grad()
def not_finite(draw, module):
    owner, name = draw(st.sampled_from(tensors(module)))
    owner._parameters[name].fill_(draw(st.sampled_from([torch.nan, torch.inf])))


def other_dtype(draw, module):
    owner, name = draw(st.sampled_from(tensors(module)))
    owner._parameters[name] = nn.Parameter(
        owner._parameters[name].detach().to(draw(st.sampled_from([torch.float32, torch.float16])))
    )


def no_parameter(draw, module):
    owner, name = draw(st.sampled_from(tensors(module)))
    owner._parameters[name] = None


def attribute(draw, module):
    """A plain attribute becomes another value of its kind, or of another."""
    plain = [
        (owner, key)
        for owner in module.modules()
        for key, value in vars(owner).items()
        if not key.startswith("_") and key not in ("training", "config") and isinstance(value, bool | int | float | str | tuple)
    ]
    if not plain:
        return
    owner, key = draw(st.sampled_from(plain))
    value = getattr(owner, key)
    others = {
        bool: [not value],
        int: [0, value + 1 if isinstance(value, int) else 1, None],
        float: [0.5, -1.0],
        str: ["tanh", "nothing"],
        tuple: [(), value[:-1] if isinstance(value, tuple) else ()],
    }[type(value)]
    setattr(owner, key, draw(st.sampled_from(others)))


def method(draw, module):
    """A method of an instance computes something else, differentiable."""
    owner = draw(st.sampled_from(list(module.modules())))
    before = owner.forward

    def twice(*arguments):
        y = before(*arguments)
        return 2 * torch.sin(y) if isinstance(y, torch.Tensor) else y

    owner.forward = twice


def hook(draw, module):
    owner = draw(st.sampled_from(list(module.modules())))
    owner.register_forward_hook(lambda module, inputs, output: 0.5 * output if isinstance(output, torch.Tensor) else output)


def random_layer(draw, module):
    owner, name = draw(st.sampled_from(children(module)))
    if type(owner) is not nn.ModuleList and isinstance(owner._modules[name], nn.ModuleList):
        return
    owner._modules[name] = Dropping(owner._modules[name], draw(st.sampled_from(["dropout", "noise", "integers"])))


def tied(draw, module):
    (a, i), (b, j) = draw(st.sampled_from(tensors(module))), draw(st.sampled_from(tensors(module)))
    if a._parameters[i].shape == b._parameters[j].shape:
        a._parameters[i] = b._parameters[j]


MUTATIONS = [other_shape, not_finite, other_dtype, no_parameter, attribute, attribute, method, hook, random_layer, tied]


def right_gradient(policy, world, state, noise):
    """By the oracle, in double precision; None where plain torch cannot compute it either."""
    try:
        return looped_gradient(policy, world, state, noise)[1]
    except Exception:
        return None


def close(got, expected, tolerance):
    finite = all(g.isfinite().all() for g in expected.values())
    if not finite:
        return not all(g.isfinite().all() for g in got.values())
    return relative_error(got, expected) < tolerance


def alter(case: Case, draw: Callable) -> tuple[str, str]:
    """Alter a part of the problem; the alteration, and "read" (gradients are right) or "refused" (at least once).

    Raises:
        AssertionError: a wrong gradient, or an error that does not name the part.
        Exception: whatever else comes of it.
    """
    case.batched = case.single = False
    policy, world, state, noise = case.build()
    parts = dict(zip(PARTS, (policy, world.dynamics, world.reward, world.critic), strict=True))
    modules = [name for name in PARTS if isinstance(parts[name], nn.Module)]
    altered = parts[draw(st.sampled_from(modules))]
    change = draw(st.sampled_from(MUTATIONS))
    if draw(st.booleans()):  # altered after a first use, whose plan is kept
        policy_gradient(policy, world, state, noise)
    result = "read"
    try:
        change(draw, altered)
    except (RuntimeError, TypeError, AttributeError):  # what torch itself does not allow
        return change.__name__, "refused"
    # a part in half precision rounds there, in another order
    tolerance = 2e-2 if change is other_dtype else 1e-8
    for method in (Auto(), draw(st.sampled_from([Forward(), Adjoint(), Autograd()]))):
        try:
            got = policy_gradient(policy, world, state, noise, method=method).gradient
        except (ValueError, TypeError) as error:
            assert NAMED.search(str(error)), error  # noqa: PT017
            result = "refused"
            continue
        assert change is not random_layer or not_random(altered), "randomness was accepted"
        expected = right_gradient(policy, world, state, noise)
        assert expected is None or close(got, expected, tolerance), (change.__name__, method)
    return change.__name__, result


def not_random(module):
    return not any(isinstance(x, Dropping) for x in module.modules())
