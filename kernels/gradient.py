"""∇_ψ Ĵ with fused chains (Triton); twins of `jacrec.engine.gradient.forward_gradient` and `adjoint_gradient`.

The chains are one launch each; for few particles the forward form's whole rollout is (`jacrec.kernels.rollout`). On CUDA
everything else is recorded with them (`jacrec.kernels.graphs`). Both need a problem made of jacrec's own modules; with
third-party modules, only the chains are fused.
"""

from collections.abc import Callable, Hashable
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import cast

import jacrec.engine.gradient
from jacrec.engine.problem import Problem
from jacrec.engine.types import PolicyGradient
from jacrec.kernels import automatic, graphs, kept, refusals, served
from jacrec.kernels.chain import chain_adjoint, chain_forward, chain_record
from jacrec.kernels.kept import kept_plan as kept_plan
from jacrec.kernels.launch import check_precision, is_compiling
from jacrec.kernels.rollout import rollout_gradient, rollout_unsupported_reason, worthwhile
from jacrec.kernels.served import require_supported
from jacrec.models.dynamics import ChainDynamics
from jacrec.util.errors import expect_one_of


def unsupported_reason(p: Problem, form: str) -> str | None:
    """Why these kernels cannot compute `form` ("forward" or "adjoint") of this gradient; None if they can."""
    expect_one_of("form", form, ("forward", "adjoint"))
    facts = kept.facts(p)
    return served.unsupported_reason(p) if facts is None else facts.unsupported_reason(p)


examined_plan = kept_plan
"""here nothing is kept where a part is not jacrec's"""


def part_reasons(p: Problem, form: str) -> list[tuple[str, str]]:
    """The parts that are not in compiled code, and why; where that are not the dynamics, torch evaluates them beside the chains."""
    reason = unsupported_reason(p, form)
    if reason is not None:
        return [("kernels", reason)]
    f, world = p.world.dynamics, p.world
    assert isinstance(f, ChainDynamics)
    sizes = f.state_dim, f.action_dim, p.state
    found = {
        "policy": refusals.policy_reason(p.policy, *sizes),
        "reward": refusals.reward_reason(world.reward, *sizes),
        "critic": refusals.critic_reason(world.critic, *sizes),
    }
    return [(name, reason) for name, reason in found.items() if reason is not None]


def chain_at(precision: str) -> ModuleType:
    """`jacrec.kernels.chain` with the precision of all its products chosen."""
    return cast(
        ModuleType,
        SimpleNamespace(
            chain_forward=partial(chain_forward, precision=precision),
            chain_record=partial(chain_record, precision=precision),
            chain_adjoint=chain_adjoint,  # at its tape's precision
        ),
    )


def forward_gradient(p: Problem, *, precision: str | None = None) -> PolicyGradient:
    """(22) with factored sensitivities; precision: "tf32x3" (default in float32 on a GPU), "ieee" or "tf32".

    Raises:
        ValueError: the kernels cannot serve the problem (see `jacrec.kernels.served.unsupported_reason`), or the precision.
    """

    def prepare() -> Callable[[Problem], PolicyGradient]:
        require_supported(p)
        name = check_precision(precision, p.state.dtype)
        if rollout_unsupported_reason(p) is None and worthwhile(p):
            return partial(rollout_gradient, precision=name)
        return partial(jacrec.engine.gradient.forward_gradient, chain=chain_at(name))

    return _recorded(p, prepare, "forward", precision)


def adjoint_gradient(p: Problem, *, recompute: bool = False, precision: str | None = None) -> PolicyGradient:
    """(22) re-associated from the end; arguments and errors as in `forward_gradient`, `recompute` as in `chain_record`."""

    def prepare() -> Callable[[Problem], PolicyGradient]:
        require_supported(p)
        chain = chain_at(check_precision(precision, p.state.dtype))
        return partial(jacrec.engine.gradient.adjoint_gradient, recompute=recompute, chain=chain)

    return _recorded(p, prepare, "adjoint", recompute, precision)


def _recorded(p: Problem, prepare: Callable[[], Callable[[Problem], PolicyGradient]], *options: Hashable) -> PolicyGradient:
    p = kept.examined(p)
    return graphs.replayed(p, prepare, *options) if graphs.recordable(p) and not is_compiling() else prepare()(p)


def auto_gradient(p: Problem) -> PolicyGradient:
    """The gradient for `Auto`: the form by size, plain torch where kernels fail; see `jacrec.kernels.automatic`."""
    return automatic.auto_gradient(p, FORMS)


def compile_form(p: Problem, form: str) -> None:
    """Within `jacrec.kernels.launch.compiling`: compile what a form, or "auto", launches."""
    FORMS[automatic.choose(p).form if form == "auto" else form](p)


FORMS: dict[str, Callable[[Problem], PolicyGradient]] = {
    "rollout": forward_gradient,
    "forward": forward_gradient,
    "adjoint": adjoint_gradient,
}
"""by `jacrec.kernels.automatic.Choice.form`"""
