"""Resampling of a trained world model: the same weights with another chain of maps h_k, without training."""

from dataclasses import dataclass, fields
from typing import Any, TypeVar

import torch
from torch import nn

from jacrec.models.dynamics.diffusion import DiffusionDynamics
from jacrec.models.dynamics.flow import FlowDynamics
from jacrec.models.dynamics.meanflow import MeanFlowDynamics
from jacrec.util.errors import check_fields

AnyModule = TypeVar("AnyModule", bound=nn.Module)

KNOBS = {
    DiffusionDynamics: ("sampler", "eta", "levels"),
    FlowDynamics: ("steps",),
    MeanFlowDynamics: ("steps",),
}
"""settings of sampling, by class"""


@dataclass(frozen=True)
class Sampler:
    """Sampling settings of a trained world model that differ from those it was constructed with; default: none."""

    sampler: str | None = None
    """diffusion: ddpm or ddim"""
    eta: float | None = None
    """diffusion: noise of the ddim sampler, 0 none, 1 as ddpm"""
    levels: tuple[int, ...] | None = None
    """diffusion: the levels visited, ascending within those of training; one network evaluation each"""
    steps: int | None = None
    """flow and meanflow: intervals from noise to the next state"""

    def __post_init__(self):
        check_fields(self)

    @property
    def changes(self) -> dict[str, object]:
        """The settings that are not None."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}


def with_sampler(dynamics: AnyModule, sampler: Sampler) -> AnyModule:
    """A model that shares the weights of `dynamics` and is sampled with other settings.

    Few-step DDIM is Sampler(sampler="ddim", levels=(4, 10)) for a model with K = 10. Without changes: `dynamics` itself.

    Raises:
        ValueError: a setting that this kind of model does not have, or a value that it refuses.
    """
    changes = sampler.changes
    if not changes:
        return dynamics
    knobs = KNOBS.get(type(dynamics), ())
    foreign = [name for name in changes if name not in knobs]
    if foreign:
        raise ValueError(
            f"sampler of {type(dynamics).__name__}: expected {', '.join(knobs) or 'nothing'}, which sampling may change there, "
            f"got {', '.join(foreign)}; leave it out, or train a model of the kind that has it"
        )
    config: Any = dynamics.config
    with torch.random.fork_rng(devices=[]):
        other = type(dynamics)(**(config | changes))  # pyright: ignore[reportCallIssue, reportArgumentType]
    like = next(iter(dynamics.parameters()))
    other.to(like.device, like.dtype).train(dynamics.training)
    other.load_state_dict(dynamics.state_dict(), assign=True)
    return other
