"""The batched layout that the engine works in."""

from dataclasses import dataclass

from torch import Tensor, nn

from jacrec.models.world import BatchedPolicy, World


@dataclass(frozen=True)
class Problem:
    """A policy, a world, N real states and their noise; `jacrec.engine.shapes.problem` and `jacrec.engine.rollout.sampled_problem` check
    what they make one of.

    It poses Ĵ(ψ) = mean over M of [Σ_{j<H} γ^j r(s̃_j, ã_j) + γ^H Q(s̃_H, ã_H)] with ã_j = π_ψ(s̃_j), for each of the N states.
    """

    policy: nn.Module
    world: World
    state: Tensor  # (N, d)
    noise: Tensor  # (N, M, H, *noise_shape)
    single: bool  # the caller gave one state without the axis N
    plan: object | None = None
    """what the compiled kernels keep for this policy and world, valid now; opaque to the engine"""

    @property
    def N(self) -> int:
        return self.noise.shape[0]

    @property
    def M(self) -> int:
        return self.noise.shape[1]

    @property
    def H(self) -> int:
        return self.noise.shape[2]

    @property
    def batched(self) -> bool:
        """Whether every real state has its own parameters."""
        return isinstance(self.policy, BatchedPolicy)
