"""How many operations a recorded gradient holds, by form: what `Auto` counts by, against what the code does."""

from contextlib import ExitStack
from unittest import mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from jacrec import Actor, BatchedPolicy, DiffusionDynamics, RewardModel, TwinCritic, World
from jacrec.engine.shapes import problem
from jacrec.kernels import automatic, chain_adjoint, chain_forward, gradient, rollout
from tests.benchmarks.mocked_gpu import mocked_gpu

aten = torch.ops.aten
FREE = {aten.detach, aten.empty, aten.new_empty, aten.empty_like, aten._unsafe_view}
"""operations without a kernel, beside views"""


class Recorded(TorchDispatchMode):
    """Within it, operations with a kernel on the device, and launches of ours, are counted."""

    def __init__(self):
        super().__init__()
        self.operations, self.launches, self.active = 0, [], False

    def __enter__(self):
        self.active = True
        return super().__enter__()

    def __exit__(self, *error):
        self.active = False
        return super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operations += not func.is_view and func.overloadpacket not in FREE
        return func(*args, **(kwargs or {}))

    def start(self, kernel, cut, *arguments, **constants):
        """Instead of a launch: its outputs stay as they are, since no operation depends on their values."""
        self.launches += [kernel.__name__] * self.active


def recorded(form, d, m, H, batched):
    """What is recorded of a form's gradient, with the default networks."""
    N = 2 if batched else 1
    with ExitStack() as stack:
        stack.enter_context(mocked_gpu())
        stack.enter_context(mock.patch.object(gradient, "worthwhile", return_value=form == "rollout"))
        policy, world = Actor(d, m), World(DiffusionDynamics(d, m, steps=2), RewardModel(d, m), TwinCritic(d, m), 0.99)
        policy = BatchedPolicy(policy, N) if batched else policy
        p = problem(policy, world, torch.zeros(N, d), torch.zeros(N, 3, H, *world.dynamics.noise_shape))
        seen = Recorded()
        for module in (chain_adjoint, chain_forward, rollout):
            stack.enter_context(mock.patch.object(module, "start", seen.start))
        with mock.patch.object(torch.cuda, "graph", return_value=seen):
            gradient.FORMS[form](p)
    return seen


LAUNCHES = {
    "rollout": lambda H: ["rollout_kernel"],
    "forward": lambda H: ["chain_forward_kernel"] * H,
    "adjoint": lambda H: ["chain_record_kernel"] * H + ["chain_adjoint_kernel"] * H,
}


@pytest.mark.parametrize("form", ["forward", "adjoint"])
@pytest.mark.parametrize(("d", "m", "batched"), [(11, 3, False), (11, 3, True), (17, 6, False)])
def test_the_choice_counts_what_is_recorded(form, d, m, batched):
    base, each = automatic.OPERATIONS[form]
    for H in (1, 2, 3, 5, 8):
        seen = recorded(form, d, m, H, batched)
        assert seen.launches == LAUNCHES[form](H)
        found = seen.operations + len(seen.launches)
        # the steps of the forward form are not all alike: its sensitivities are dense from some step on
        assert abs(found - (base + each * H)) <= (0.02 * found if form == "forward" else 0)


@pytest.mark.parametrize("batched", [False, True])
def test_one_launch_spares_nearly_all_operations(batched):
    """Why it is taken wherever it fits: an operation for each step, where the others have about fifty."""
    counts = []
    for H in (0, 3, 4):
        seen = recorded("rollout", 11, 3, H, batched)
        assert seen.launches == LAUNCHES["rollout"](H)
        counts.append(seen.operations + 1)
    assert counts == [32, 35, 36]
    assert automatic.OPERATIONS["adjoint"][0] > 3 * counts[0]
