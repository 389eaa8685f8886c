"""The one batched layout that the engine works in."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from jacrec.models.world import BatchedPolicy, World


class KernelPlan(Protocol):
    """What compiled kernels keep for a policy and a world."""

    choices: dict[tuple[int, int], tuple[str, str]]
    """which form and kernel were found to be the fastest, by N·M and H"""


@dataclass(frozen=True)
class Problem:
    """A policy, a world, N real states and their noise."""

    policy: nn.Module
    world: World
    state: Tensor  # (N, d)
    noise: Tensor  # (N, M, H, *noise_shape)
    single: bool  # the caller gave one state without the axis N
    plan: KernelPlan | None = None  # made for these very parts, and compared with them just now

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
        """Whether every real state has parameters of its own."""
        return isinstance(self.policy, BatchedPolicy)
