"""Methods that compute the same gradient, behind one signature: `method.gradient(problem) -> PolicyGradient`."""

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from jacrec.engine.choice import preferred
from jacrec.engine.dispatch import check_kernel, kernels
from jacrec.engine.gradient import adjoint_gradient, dense_gradient, forward_gradient
from jacrec.engine.jacobians.generic import pull_back
from jacrec.engine.multistep import multistep_gradient
from jacrec.engine.problem import Problem
from jacrec.engine.rollout import rollout
from jacrec.engine.shapes import plain_torch, problem
from jacrec.engine.types import PolicyGradient, Update
from jacrec.models.dynamics.multistep import MultiStepDynamics
from jacrec.models.networks import has_manual_derivatives
from jacrec.models.world import World, apply_policy, policy_action
from jacrec.models.wrappers import wrapper_prefix
from jacrec.util.errors import expect_count, expect_one_of


class Method(Protocol):
    """A way to compute ∇_ψ Ĵ."""

    def gradient(self, problem: Problem) -> PolicyGradient: ...


@dataclass(frozen=True)
class Forward:
    """Theorem 4.1 forward in time: tangents are propagated along with the rollout.

    Its memory does not grow with the number K of denoising steps, and its sequential depth is that of the rollout alone.
    Costs up to 1 + d + m rows per denoiser call, so for many particles on a CPU prefer `Adjoint`. On a CPU the fused form is
    one call of compiled code, as that of `Adjoint`, and computes a particle's tangents for its active units alone behind a ReLU.
    sensitivities="dense" keeps G and D with all P columns as printed: the reference, for small problems only.
    """

    sensitivities: str = "factored"
    kernel: str = "plain"
    """"plain": torch operations, for every world; "fused": compiled kernels (CPU: Numba, CUDA: Triton), for jacrec's own
    networks and policies of the same layers, ValueError for other policies and dynamics"""
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
    team: int = 1
    """threads that share the layers of a single particle (fused, CPU, N = M = 1): 2 are faster on idle cores. They wait for one
    another at every layer; where other processes want the cores, one thread works alone for a while after each such wait"""

    def __post_init__(self):
        check_kernel("Adjoint", self.kernel, self.precision)
        expect_count("Adjoint.team", self.team, 1)
        if self.team > 1 and self.kernel == "plain":
            raise ValueError(f'Adjoint.team: expected 1 with kernel="plain", got {self.team}; use kernel="fused"')

    def gradient(self, problem: Problem) -> PolicyGradient:
        if self.kernel == "plain":
            return adjoint_gradient(problem, recompute=self.recompute)
        fused = kernels(problem, "adjoint")
        if problem.state.device.type == "cpu":
            return fused.adjoint_gradient(problem, recompute=self.recompute, precision=self.precision, team=self.team)
        if self.team > 1:
            raise ValueError(f"Adjoint.team: expected 1 on {problem.state.device}, got {self.team}; it is an option of the CPU")
        return fused.adjoint_gradient(problem, recompute=self.recompute, precision=self.precision)


@dataclass(frozen=True)
class Autograd:
    """Reverse-mode automatic differentiation through the rollout: the reference for the other methods.

    Serves every world that torch can differentiate. Its memory holds the whole graph.
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
    """Central differences, one parameter at a time, for checking the other methods on small policies.

    Needs 2P rollouts. Accurate to about ε^(2/3) of the dtype (1e-10 relative to the values in float64), and wrong across
    a kink: do not use it to act.
    """

    step: float | None = None
    """half-width of the difference; None: the cube root of the dtype's ε, which is close to optimal"""
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

    Serves that world model only; the other methods that do are `Autograd` and `FiniteDifference`.
    """

    kernel: str = "plain"
    """as in `Forward`; the fused kernel does the exact solve, on a CPU"""

    def __post_init__(self):
        check_kernel("MultiStep", self.kernel, None)

    def gradient(self, problem: Problem) -> PolicyGradient:
        dynamics = problem.world.dynamics
        if type(dynamics) is not MultiStepDynamics or not has_manual_derivatives(dynamics):
            raise ValueError(
                f"MultiStep: expected a world with unmodified MultiStepDynamics, got {type(dynamics).__name__}; use Auto()"
            )
        if self.kernel == "fused":
            return kernels(problem, "multistep").multistep_gradient(problem)
        return multistep_gradient(problem)


@dataclass(frozen=True)
class Auto:
    """The first method of an order of preference that can serve the problem (`jacrec.engine.choice`).

    The fused adjoint form where policy and dynamics are jacrec's own or of the same layers, else plain torch; the reason is then
    logged once (logger "jacrec"), and told in full by `explain`.
    `MultiStep` for a `MultiStepDynamics`. For third-party dynamics it falls back to `Autograd`. A controller on a CPU calls
    `choose` and uses the compiled update of the chosen method; `gradient` serves `policy_gradient` and updates in torch.
    """

    def choose(self, problem: Problem) -> Method:
        """The method for this problem."""
        return METHODS[preferred(problem)]

    def gradient(self, problem: Problem) -> PolicyGradient:
        chosen = preferred(problem)
        if chosen != "fused-adjoint":
            return METHODS[chosen].gradient(problem)
        fused = kernels(problem, "adjoint", checked=True)
        # on a GPU the form by size, and plain torch where a kernel fails
        return fused.auto_gradient(problem) if problem.state.is_cuda else fused.adjoint_gradient(problem)


METHODS: dict[str, Method] = {
    "auto": Auto(),
    "forward": Forward(),
    "adjoint": Adjoint(),
    "fused-forward": Forward(kernel="fused"),
    "fused-adjoint": Adjoint(kernel="fused"),
    "multistep": MultiStep(),
    "fused-multistep": MultiStep(kernel="fused"),
    "autograd": Autograd(),
    "finite-difference": FiniteDifference(),
}
"""all methods by name, with their default options"""
UPDATE_FORMS: dict[type, str] = {Forward: "forward", Adjoint: "adjoint", MultiStep: "multistep"}
"""the kernels' forms of whole updates, by method; a subclass may compute something else"""


@plain_torch
def policy_gradient(
    policy: nn.Module, world: World, state: Tensor, noise: Tensor, *, method: Method = Auto()
) -> PolicyGradient:
    """Ĵ and ∇_ψ Ĵ of section 4.2: the return imagined with `policy` in `world` from `state`, under explicit noise.

    Args:
        policy: state (..., d) -> action (..., m) in [-1, 1], or a `BatchedPolicy` with one set of parameters per state.
        state: (d,) or (N, d).
        noise: (M, H, *noise_shape) or (N, M, H, *noise_shape), standard normal; decides M particles and horizon H >= 0.
        method: one of `METHODS`, e.g. Auto() (default), Adjoint() or Autograd(); all give the same gradient.

    Returns:
        `PolicyGradient`: value () or (N,); gradient by `policy.named_parameters()` names. With one ψ for N states it is
        the gradient of the mean of the N values; with a BatchedPolicy, row n is the gradient of value n.

    Raises:
        ValueError: wrong shape, dtype, device, or non-finite input; on a GPU, where that would be a wait, value and gradient
            of such a row are NaN instead.
    """
    p = problem(policy, world, state, noise)
    found = check_method(method).gradient(p)
    if p.policy is policy:
        return found
    prefix = wrapper_prefix(policy)
    return PolicyGradient(found.value, {f"{prefix}{k}": g for k, g in found.gradient.items()})


def resolved(method: Method, problem: Problem) -> Method:
    """What `Auto` chooses on a CPU; any other method itself."""
    return method.choose(problem) if type(method) is Auto and problem.state.device.type == "cpu" else method


def update_kernels(method: Method, problem: Problem, *, checked: bool = False) -> ModuleType | None:
    """The kernels by which a resolved method computes a whole update on the CPU; None if it does not.

    Args:
        checked: `Auto` has just chosen it.
    """
    form = UPDATE_FORMS.get(type(method))
    if form is None or not isinstance(method, Forward | Adjoint | MultiStep) or method.kernel == "plain":
        return None
    return kernels(problem, form, checked=checked) if problem.state.device.type == "cpu" else None


def compiled_update(
    method: Method, problem: Problem, lr: float, max_grad_norm: float | None, *, checked: bool
) -> Update | None:
    """The plain step (4) of a resolved method in compiled code; None if it computes the gradient in torch. On a CPU alone."""
    module = update_kernels(method, problem, checked=checked)
    if module is None:
        return None
    options: dict[str, Any] = {"precision": method.precision} if isinstance(method, Forward | Adjoint) else {}
    if isinstance(method, Adjoint):
        options["team"] = method.team
    return module.compute_update(problem, lr, max_grad_norm, form=UPDATE_FORMS[type(method)], **options)


def action_function(method: Method, problem: Problem) -> Callable[[nn.Module, Tensor], Tensor]:
    """How to evaluate a policy at states (N, d) -> (N, m): in compiled code if `method` computes updates there."""
    module = update_kernels(resolved(method, problem), problem)
    return policy_action if module is None else module.action


def check_method(method: object) -> Method:
    """The method itself.

    Raises:
        ValueError: it is a class, a name, or anything else without `gradient`.
    """
    if isinstance(method, type) or not callable(getattr(method, "gradient", None)):
        known = ", ".join(dict.fromkeys(f"{type(x).__name__}()" for x in METHODS.values()))
        hint = "; pass it as MPC(..., update=...)" if callable(getattr(method, "compute", None)) else ""
        raise ValueError(f"method: expected one of {known}, got {method!r}{hint}")
    return cast(Method, method)
