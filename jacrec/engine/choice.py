"""The order of preference by which `Auto` chooses a method.

| dynamics                    | first                           | otherwise                                      |
|-----------------------------|---------------------------------|------------------------------------------------|
| jacrec's one-step models    | fused adjoint                   | plain adjoint, autograd for a third-party      |
|                             |                                 | policy and K <= 2                              |
| `MultiStepDynamics`         | fused multi-step                | plain multi-step                               |
| third-party                 | autograd                        |                                                |

CPU. Of 10 800 sizes timed with the compiled kernels, the fused adjoint form was the fastest at all but those of one 32-wide
layer with H = 1 and K <= 2. Where the kernels cannot serve, the plain adjoint form was compared with autograd
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

from jacrec.engine.dispatch import unsupported_reason
from jacrec.engine.jacobians.policy import has_written_jacobian
from jacrec.engine.problem import Problem
from jacrec.models.dynamics import ChainDynamics, DeterministicDynamics, EnsembleDynamics, MultiStepDynamics
from jacrec.models.networks import has_manual_derivatives

ONE_STEP = (ChainDynamics, DeterministicDynamics, EnsembleDynamics)
"""jacrec's own dynamics that predict one transition"""
FEW = 2
"""network evaluations per transition up to which autograd is faster for a third-party policy"""
_logged: set[str] = set()
_log = logging.getLogger("jacrec")


def preferred(problem: Problem) -> str:
    """The name in `jacrec.engine.methods.METHODS` of the first method that can serve.

    Where that is not a fused one although the dynamics are jacrec's own, the reason is logged, each reason once.
    """
    f = problem.world.dynamics
    if not isinstance(f, (*ONE_STEP, MultiStepDynamics)):
        return "autograd"
    form = "multistep" if isinstance(f, MultiStepDynamics) else "adjoint"
    reason = unsupported_reason(problem, form)
    if reason is None:
        return f"fused-{form}"
    if not has_manual_derivatives(f) or (form == "multistep" and type(f) is not MultiStepDynamics):
        return "autograd"
    plain = form if form == "multistep" else _plain(problem)
    if reason not in _logged:
        _logged.add(reason)
        _log.warning("Auto takes %r, since the fused kernels cannot serve: %s", plain, reason)
    return plain


def _plain(problem: Problem) -> str:
    """The plain method for one of jacrec's one-step models, by the times above."""
    f = problem.world.dynamics
    evaluations = f.diffusion_steps if isinstance(f, ChainDynamics) else 1
    return "autograd" if evaluations <= FEW and not has_written_jacobian(problem.policy) else "adjoint"
