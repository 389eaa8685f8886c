"""Subproblems: some of the N real states of a problem, with their own parameters."""

import torch
from torch import Tensor

from jacrec.engine.problem import Problem
from jacrec.models.world import BatchedPolicy


@torch.no_grad()
def take_rows(p: Problem, rows: Tensor) -> Problem:
    """The problem of the real states `rows` (indices), with copies of their parameters.

    Raises:
        ValueError: the policy is not a `BatchedPolicy`; a single ψ cannot be split.
    """
    if not isinstance(p.policy, BatchedPolicy):
        raise ValueError(
            f"rows: expected a BatchedPolicy, with parameters of its own for each row, got {type(p.policy).__name__}"
        )
    part = BatchedPolicy(p.policy.template, len(rows))
    part.train(p.policy.training)
    for own, source in zip(part.parameters(), p.policy.parameters(), strict=True):
        own.copy_(source[rows])
        own.requires_grad_(source.requires_grad)
    return Problem(part, p.world, p.state[rows], p.noise[rows], False)


@torch.no_grad()
def put_rows(p: Problem, rows: Tensor, part: Problem) -> None:
    """Write the parameters of `take_rows(p, rows)` back."""
    for own, source in zip(part.policy.parameters(), p.policy.parameters(), strict=True):
        source[rows] = own
