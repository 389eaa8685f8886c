"""Why the CPU kernels cannot serve a policy and a world."""

from collections.abc import Iterator
from itertools import pairwise

from torch import Tensor, nn

from jacrec.engine.jacobians.policy import written_network
from jacrec.kernels import refusals
from jacrec.kernels.cpu.gradient.plan_parts import parts
from jacrec.models.dynamics import ChainDynamics, DeterministicDynamics, EnsembleDynamics, MultiStepDynamics
from jacrec.models.networks import MLP
from jacrec.models.world import BatchedPolicy, World

SERVED = (ChainDynamics, DeterministicDynamics, EnsembleDynamics, MultiStepDynamics)


def unsupported_reason(policy: nn.Module, world: World, state: Tensor) -> str | None:
    """Why the kernels cannot serve a policy and a world at states (..., d); None if they can."""
    return next((reason for _, reason in part_reasons(policy, world, state)), None)


def part_reasons(policy: nn.Module, world: World, state: Tensor) -> Iterator[tuple[str, str]]:
    """Each part that the kernels cannot serve, and why; the dynamics alone where they are one."""
    f = world.dynamics
    reason = dynamics_reason(f, state)
    if reason is not None:
        yield "dynamics", reason
        return
    d, m = f.state_dim, f.action_dim  # pyright: ignore[reportAttributeAccessIssue]
    if state.shape[-1] != d:
        yield "state", f"state: expected shape (..., {d}), got {tuple(state.shape)}"
    _, reward, critic = parts(world)  # None: not jacrec's, for torch to evaluate
    reasons = {
        "policy": lambda: _policy_reason(policy, d, m, state),
        "reward": lambda: reward and refusals.reward_reason(reward, d, m, state),
        "critic": lambda: critic and refusals.critic_reason(critic, d, m, state),
        "anchor": lambda: world.anchor and refusals.anchor_reason(world.anchor, d, m, state),
    }
    for name, ask in reasons.items():
        found = ask()
        if found is not None:
            yield name, found


def _policy_reason(policy: nn.Module, d: int, m: int, state: Tensor) -> str | None:
    """Why a policy's gradient and step cannot be computed."""
    return refusals.policy_reason(policy, d, m, state, bounded=False) or _overlapping(refusals.policy_network(policy).mlp)


def dynamics_reason(f: object, like: Tensor) -> str | None:
    """Why the kernels cannot serve dynamics with tensors as `like`; None if they can."""
    if like.dtype not in refusals.DTYPES or like.device.type != "cpu":
        return f"state: expected float32 or float64 on the CPU, got {like.dtype} on {like.device}"
    return refusals.dynamics_reason(f, SERVED, like) or refusals.times_reason(f)


def policy_reason(policy: nn.Module, state: Tensor) -> str | None:
    """Why the kernels cannot compute a policy's action at states (N, d); None if they can."""
    if state.dtype not in refusals.DTYPES or state.device.type != "cpu":
        return f"state: expected float32 or float64 on the CPU, got {state.dtype} on {state.device}"
    if isinstance(policy, BatchedPolicy) and policy.n != len(state):
        return f"state: expected {policy.n} rows, one for each policy, got {len(state)}"
    network = written_network(policy)
    m = 0 if isinstance(network, str) else network.mlp.out_dim
    return refusals.policy_reason(policy, state.shape[-1], m, state, bounded=False)


def _overlapping(net: MLP) -> str | None:
    """Why a step cannot be added to the parameters in place: two of their elements lie at the same address."""
    reason = "policy: expected parameters that do not share memory, got some that do: a step would be added to them twice"
    spans = []
    for x in net.parameters():
        if any(step == 0 and size > 1 for step, size in zip(x.stride(), x.shape, strict=True)):
            return reason
        last = sum(step * (size - 1) for step, size in zip(x.stride(), x.shape, strict=True))
        spans.append((x.data_ptr(), x.data_ptr() + (last + 1) * x.element_size()))
    spans.sort()
    return reason if any(end > begin for (_, end), (begin, _) in pairwise(spans)) else None
