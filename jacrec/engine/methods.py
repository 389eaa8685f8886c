"""Five ways to the same gradient behind one signature: `method.gradient(problem) -> PolicyGradient`."""

from dataclasses import dataclass
from types import ModuleType
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from jacrec.engine.cost import cheapest
from jacrec.engine.dispatch import check_kernel, kept_plan, kernels
from jacrec.engine.gradient import adjoint_gradient, dense_gradient, forward_gradient
from jacrec.engine.jacobians.generic import pull_back
from jacrec.engine.multistep import multistep_gradient
from jacrec.engine.problem import Problem
from jacrec.engine.rollout import rollout
from jacrec.engine.shapes import plain_torch, problem
from jacrec.engine.types import PolicyGradient
from jacrec.models.dynamics.multistep import MultiStepDynamics
from jacrec.models.networks import has_manual_derivatives
from jacrec.models.world import World, apply_policy
from jacrec.util.errors import expect_count, expect_one_of


class Method(Protocol):
    """A way to compute ∇_ψ Ĵ."""

    def gradient(self, problem: Problem) -> PolicyGradient: ...


class CompiledAscent(Protocol):
    """A gradient that lies where compiled code can step along it."""

    value: Tensor
    """Ĵ, () or (N,)"""
    norm: Tensor
    """‖∇Ĵ‖, () or (N,) for a `BatchedPolicy`; known when the step has been taken"""

    def take(self, lr: float, max_grad_norm: float | None) -> Tensor:
        """ψ moves, once, where all is finite: whether it did, shaped as `norm`."""
        ...

    def act(self, policy: nn.Module, state: Tensor) -> Tensor:
        """A policy's action at states (N, d) -> (N, m)."""
        ...


@dataclass(frozen=True)
class Forward:
    """Theorem 4.1 forward in time: tangents ride along with the rollout.

    Its memory does not grow with the number K of denoising steps, and its sequential depth is that of the rollout alone.
    Costs up to 1 + d + m rows per denoiser call, so for many particles on a CPU prefer `Adjoint`.
    sensitivities="dense" keeps G and D with all P columns as printed: the reference, for small problems only.
    """

    sensitivities: str = "factored"
    kernel: str = "plain"
    """"plain": torch operations, for every world; "fused": compiled kernels (CPU: Numba, CUDA: Triton) for jacrec's own
    networks, ValueError for others"""
    precision: str | None = None
    """of the fused kernels' products on a GPU: "ieee", "tf32x3" (default) or "tf32\""""

    def __post_init__(self):
        expect_one_of("Forward.sensitivities", self.sensitivities, ("factored", "dense"))
        check_kernel("Forward", self.kernel, self.precision)
        if self.sensitivities == "dense" and self.kernel == "fused":
            raise ValueError('Forward: expected kernel="plain" with sensitivities="dense", the reference form, got "fused"')

    def gradient(self, problem: Problem) -> PolicyGradient:
        if self.kernel == "fused":
            return kernels(problem, "forward").forward_gradient(problem, precision=self.precision)
        return dense_gradient(problem) if self.sensitivities == "dense" else forward_gradient(problem)


@dataclass(frozen=True)
class Adjoint:
    """Theorem 4.1 re-associated from the end: one cotangent per particle, pulled back through the stored rollout.

    The least arithmetic; stores the activations of the H·K denoiser calls, or with `recompute` only the H·K latents at the
    price of a second evaluation.
    """

    recompute: bool = False
    kernel: str = "plain"
    """as in `Forward`. On a CPU the fused kernel keeps what a tile of particles needs, whatever their number"""
    precision: str | None = None
    """as in `Forward`"""
    crew: int = 1
    """threads that go through the layers of a single particle side by side (fused, CPU, N = M = 1): 2 are faster on an
    idle machine, and many times slower where other processes want the cores"""

    def __post_init__(self):
        check_kernel("Adjoint", self.kernel, self.precision)
        expect_count("Adjoint.crew", self.crew, 1)
        if self.crew > 1 and self.kernel == "plain":
            raise ValueError(f'Adjoint.crew: expected 1 with kernel="plain", got {self.crew}; use kernel="fused"')

    def gradient(self, problem: Problem) -> PolicyGradient:
        if self.kernel == "fused":
            fused = kernels(problem, "adjoint")
            if problem.state.device.type == "cpu":
                return fused.adjoint_gradient(problem, recompute=self.recompute, precision=self.precision, crew=self.crew)
            if self.crew > 1:
                raise ValueError(f"Adjoint.crew: expected 1 on {problem.state.device}, got {self.crew}; it is for a CPU")
            return fused.adjoint_gradient(problem, recompute=self.recompute, precision=self.precision)
        return adjoint_gradient(problem, recompute=self.recompute)


@dataclass(frozen=True)
class Autograd:
    """Reverse-mode automatic differentiation through the rollout: what the others are compared with.

    Serves every world that torch can differentiate. Slower, and its memory holds the whole graph.
    """

    def gradient(self, problem: Problem) -> PolicyGradient:
        p = problem
        with torch.enable_grad():
            parameters = {name: value.detach().requires_grad_() for name, value in p.policy.named_parameters()}
            value = rollout(lambda s: apply_policy(p.policy, parameters, s), p.world, p.state, p.noise).returns.mean(-1)
            total = value.sum() if p.batched else value.mean()
        gradients = pull_back(total, list(parameters.values()), torch.ones_like(total), again=False)
        value = value.detach().squeeze(0) if p.single else value.detach()
        return PolicyGradient(value, dict(zip(parameters, gradients, strict=True)))


@dataclass(frozen=True)
class FiniteDifference:
    """Central differences, one parameter at a time, for checking the others on small policies.

    Needs 2P rollouts. Accurate to about ε^(2/3) of the dtype (1e-10 relative to the values in float64), and wrong across
    a kink: do not use it to act.
    """

    step: float | None = None
    """half-width of the difference; None: the cube root of the dtype's ε, about the best there is"""
    chunk: int = 64
    """parameters perturbed per batch"""

    @torch.no_grad()
    def gradient(self, problem: Problem) -> PolicyGradient:
        p = problem
        step = self.step or torch.finfo(p.state.dtype).eps ** (1 / 3)
        parameters = {name: value.detach() for name, value in p.policy.named_parameters()}
        value = rollout(lambda s: apply_policy(p.policy, parameters, s), p.world, p.state, p.noise).returns.mean(-1)

        def returns(moved: dict[str, Tensor]) -> Tensor:
            J = rollout(lambda s: apply_policy(p.policy, moved, s), p.world, p.state, p.noise).returns.mean(-1)
            return J if p.batched else J.mean()

        gradient = {}
        for name, centre in parameters.items():
            one = centre[0] if p.batched else centre
            entries = []
            for index in torch.arange(one.numel(), device=centre.device).split(self.chunk):
                bump = torch.nn.functional.one_hot(index, one.numel()).to(centre).reshape(-1, *one.shape) * step

                def along(b: Tensor, name: str = name, centre: Tensor = centre) -> Tensor:
                    return (returns({**parameters, name: centre + b}) - returns({**parameters, name: centre - b})) / (2 * step)

                entries.append(torch.func.vmap(along)(bump))  # (chunk,) or (chunk, N)
            gradient[name] = torch.cat(entries).movedim(0, -1).reshape(centre.shape)
        return PolicyGradient(value.squeeze(0) if p.single else value, gradient)


@dataclass(frozen=True)
class MultiStep:
    """The transposed triangular solve of a `MultiStepDynamics`, or its transposed sweeps (`jacrec.engine.multistep`).

    For that one world model, and what `Auto` takes there; its other methods are `Autograd` and `FiniteDifference`.
    """

    kernel: str = "plain"
    """as in `Forward`; the fused kernel is for the exact solve on a CPU"""

    def __post_init__(self):
        check_kernel("MultiStep", self.kernel, None)

    def gradient(self, problem: Problem) -> PolicyGradient:
        dynamics = problem.world.dynamics
        if type(dynamics) is not MultiStepDynamics or not has_manual_derivatives(dynamics):
            raise ValueError(
                f"MultiStep: expected a world of MultiStepDynamics, unchanged, got {type(dynamics).__name__}; use "
                "Auto(), which takes what there is"
            )
        if self.kernel == "fused":
            return kernels(problem, "multistep").multistep_gradient(problem)
        return multistep_gradient(problem)


@dataclass(frozen=True)
class Auto:
    """`Forward` or `Adjoint`, fused or plain, whichever `jacrec.engine.cost` expects to be fastest for these sizes on this device.

    Where the fused kernels cannot serve, plain torch, and the reason is logged once (logger "jacrec"). Where the dynamics
    are not one of jacrec's own, `Autograd`: torch differentiates them in any case. `MultiStep` where they predict all steps
    at once.
    """

    def choose(self, problem: Problem) -> Method:
        """The method for this problem."""
        return FORMS[cheapest(problem)]

    def gradient(self, problem: Problem) -> PolicyGradient:
        form, kernel = cheapest(problem)
        if kernel == "fused":
            fused = kernels(problem, form, checked=True)
            if form == "multistep":
                return fused.multistep_gradient(problem)
            if problem.state.device.type == "cuda":
                return fused.auto_gradient(problem)
            return fused.forward_gradient(problem) if form == "forward" else fused.adjoint_gradient(problem)
        return FORMS[form, kernel].gradient(problem)


FORMS: dict[tuple[str, str], Method] = {
    ("forward", "plain"): Forward(),
    ("adjoint", "plain"): Adjoint(),
    ("forward", "fused"): Forward(kernel="fused"),
    ("adjoint", "fused"): Adjoint(kernel="fused"),
    ("autograd", "plain"): Autograd(),
    ("multistep", "plain"): MultiStep(),
    ("multistep", "fused"): MultiStep(kernel="fused"),
}
METHODS = {
    "auto": Auto(),
    "forward": Forward(),
    "adjoint": Adjoint(),
    "fused-forward": Forward(kernel="fused"),
    "fused-adjoint": Adjoint(kernel="fused"),
    "autograd": Autograd(),
}


@plain_torch()
def policy_gradient(
    policy: nn.Module, world: World, state: Tensor, noise: Tensor, *, method: Method = Auto()
) -> PolicyGradient:
    """Ĵ and ∇_ψ Ĵ of section 4.2: the return imagined with `policy` in `world` from `state`, under explicit noise.

    Args:
        policy: state (..., d) -> action (..., m) in [-1, 1], or a `BatchedPolicy` with one set of parameters per state.
        state: (d,) or (N, d).
        noise: (M, H, *noise_shape) or (N, M, H, *noise_shape), standard normal; decides M particles and horizon H >= 0.
        method: Forward(), Adjoint(), Autograd(), FiniteDifference() or Auto() (default); all give the same gradient.

    Returns:
        `PolicyGradient`: value () or (N,); gradient by `policy.named_parameters()` names. With one ψ for N states it is
        the gradient of the mean of the N values; with a BatchedPolicy, row n is the gradient of value n.

    Raises:
        ValueError: wrong shape, dtype, device, or non-finite input.
    """
    return check_method(method).gradient(problem(policy, world, state, noise, kept_plan(policy, world, state)))


def compiled_kernels(method: Method, problem: Problem) -> ModuleType | None:
    """The CPU's kernels, where `method` computes this gradient by them in a form that can take the step too; else None."""
    if problem.state.device.type != "cpu":
        return None
    # the class itself: what is derived from it may compute otherwise
    if type(method) is Auto:
        form, kernel = cheapest(problem)
        return kernels(problem, form, checked=True) if kernel == "fused" and form != "forward" else None
    if type(method) is MultiStep and method.kernel == "fused":
        return kernels(problem, "multistep")
    return kernels(problem, "adjoint") if type(method) is Adjoint and method.kernel == "fused" else None


def compiled_ascent(method: Method, problem: Problem) -> CompiledAscent | None:
    """The gradient in compiled code, where `method` computes it there; else None."""
    own = compiled_kernels(method, problem)
    if own is None:
        return None
    if isinstance(method, Adjoint):
        return own.ascent(problem, precision=method.precision, crew=method.crew)
    return own.ascent(problem)


def check_method(method: object) -> Method:
    """The method itself; ValueError for a class, a name, or anything else without `gradient`."""
    if isinstance(method, type) or not callable(getattr(method, "gradient", None)):
        raise ValueError(f"method: expected Forward(), Adjoint(), Autograd(), FiniteDifference() or Auto(), got {method!r}")
    return cast(Method, method)
