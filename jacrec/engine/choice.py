"""The order of preference by which `Auto` chooses a method.

| dynamics                    | first                           | otherwise                                      |
|-----------------------------|---------------------------------|------------------------------------------------|
| jacrec's one-step models    | fused adjoint                   | plain adjoint, autograd for a third-party      |
|                             |                                 | policy and K <= 2                              |
| `MultiStepDynamics`         | fused multi-step                | plain multi-step                               |
| third-party                 | autograd                        |                                                |

A policy of torch's own layers is served as an `Actor` is (`jacrec.models.layers`). A third-party reward or critic is torch's
to evaluate, on a CPU along the path of a first call of compiled code, once for all steps.

CPU. With one particle and H = 1 the fused forward form reads the weights of a chain once, the adjoint form twice: it then takes
0.97 to 1.05 of the adjoint form's time, and more at all other sizes (benchmarks/form_speed.py). That is not worth compiling both.
Where the kernels cannot serve, the plain adjoint form was compared with autograd
(benchmarks/fallback_speed.py: d 17, m 6, K 1 to 10, H 1 to 5, M 1 to 64, two and three layers of 256, one thread); its time
as a share of autograd's, geometric means:

| K                                  | 1    | 2    | 3    | 5    | 10   |
|------------------------------------|------|------|------|------|------|
| third-party policy                 | 1.11 | 1.05 | 1.00 | 0.93 | 0.85 |
| third-party reward and critic      | 0.97 | 0.92 | 0.88 | 0.84 | 0.78 |
| all jacrec's own, without kernels  | 0.86 | 0.82 | 0.81 | 0.77 | 0.74 |

The plain forward form was slower than the adjoint form at all but the smallest of these sizes, where it is its equal.

CUDA. The same order; not measured on a device.

For third-party dynamics torch differentiates each transition in any case, and one graph over the rollout costs less than a
graph per step.
"""

import logging

from torch import nn

from jacrec.engine.dispatch import part_reasons, unsupported_reason
from jacrec.engine.jacobians.policy import has_written_jacobian
from jacrec.engine.problem import Problem
from jacrec.engine.shapes import first_parameter
from jacrec.engine.shapes import problem as make_problem
from jacrec.models.dynamics import ChainDynamics, DeterministicDynamics, EnsembleDynamics, MultiStepDynamics
from jacrec.models.networks import WRITTEN, has_manual_derivatives
from jacrec.models.world import BatchedPolicy, World, architecture_of, expect_world
from jacrec.models.wrappers import check_policy_kind, unwrapped

ONE_STEP = (ChainDynamics, DeterministicDynamics, EnsembleDynamics)
"""jacrec's own dynamics that predict one transition"""
FEW = 2
"""network evaluations per transition up to which autograd is faster for a third-party policy"""
ADVICE = {
    "policy": "an nn.Sequential of Linear, one kind of activation, and LayerNorm or none is served as it is: give the one inside",
    "reward": "RewardModel.from_module(net, state_dim=d) serves an nn.Sequential over [state, action] in the same call",
    "critic": "TwinCritic.from_modules(q1, q2, state_dim=d) serves nn.Sequentials over [state, action] in the same call",
    "anchor": "it has to end in a Tanh, with layers that are served for a policy",
}
"""what brings a part into compiled code"""
_logged: set[str] = set()
_log = logging.getLogger("jacrec")


def preferred(problem: Problem) -> str:
    """The name in `jacrec.engine.methods.METHODS` of the first method that can serve.

    Where that is not a fused one although the dynamics are jacrec's own, the reason is logged, each reason once.
    """
    f = problem.world.dynamics
    if not isinstance(f, (*ONE_STEP, MultiStepDynamics)):
        return "autograd"
    form = _form(problem)
    reason = unsupported_reason(problem, form)
    if reason is None:
        return f"fused-{form}"
    if not has_manual_derivatives(f) or (form == "multistep" and type(f) is not MultiStepDynamics):
        return "autograd"
    plain = form if form == "multistep" else _plain(problem)
    if reason not in _logged:
        _logged.add(reason)
        told = "; jacrec.explain(policy, world) says what would change that"
        _log.warning("Auto takes %r, since the fused kernels cannot serve: %s%s", plain, reason, told)
    return plain


def explain(policy: nn.Module, world: World) -> dict[str, str]:
    """What keeps `Auto` from computing a policy's gradient in one call of compiled code, and what would change that.

    Returns:
        part ("policy", "dynamics", "reward", "critic", "anchor", or "kernels" for all of them) -> why, and what to do; {} if
        nothing does.

    Raises:
        ValueError: the parts do not fit one another, as in `policy_gradient`.
    """
    policy = unwrapped(policy)
    check_policy_kind(policy)
    expect_world(world)
    f, like = world.dynamics, first_parameter(policy)
    if like is None:
        raise ValueError("policy: expected a module with parameters to improve, got none")
    d = getattr(f, "state_dim", None)
    if not isinstance(d, int) or not isinstance(f, (*ONE_STEP, MultiStepDynamics)):
        own = ", ".join(kind.__name__ for kind in (*ONE_STEP, MultiStepDynamics))
        return {"dynamics": f"dynamics: expected one of jacrec's world models ({own}), got {type(f).__name__}"}
    lead, H = (policy.n,) if isinstance(policy, BatchedPolicy) else (), f.horizon if isinstance(f, MultiStepDynamics) else 1
    p = make_problem(policy, world, like.new_zeros(*lead, d), like.new_zeros(*lead, 1, H, *f.noise_shape))
    found = part_reasons(p, _form(p))
    parts = {"policy": policy, "reward": world.reward, "critic": world.critic, "anchor": world.anchor and world.anchor.policy}
    # jacrec's own are told what is altered in them
    foreign = {name for name, part in parts.items() if type(architecture_of(part)) not in WRITTEN}
    return {name: f"{reason}; {ADVICE[name]}" if name in foreign else reason for name, reason in found.items()}


def _form(problem: Problem) -> str:
    return "multistep" if isinstance(problem.world.dynamics, MultiStepDynamics) else "adjoint"


def _plain(problem: Problem) -> str:
    """The plain method for one of jacrec's one-step models, by the times above."""
    f = problem.world.dynamics
    evaluations = f.diffusion_steps if isinstance(f, ChainDynamics) else 1
    return "autograd" if evaluations <= FEW and not has_written_jacobian(problem.policy) else "adjoint"
