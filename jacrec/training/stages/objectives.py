"""Untrained world models, and the training objective of each kind of one-step model."""

from typing import Any

import torch
from torch import Tensor

from jacrec.models.dynamics import (
    DeterministicDynamics,
    DiffusionDynamics,
    EnsembleDynamics,
    FlowDynamics,
    MeanFlowDynamics,
    MultiStepDynamics,
)
from jacrec.models.networks import step_embedding, step_frequencies
from jacrec.training.config import DynamicsConfig
from jacrec.training.stages.ensemble import GaussianExamples
from jacrec.training.stages.examples import Examples, NoisedExamples
from jacrec.training.stages.flows import FlowExamples, MeanFlowExamples, draw_times, times_and_spans
from jacrec.training.streams import Draw

OneStep = DiffusionDynamics | DeterministicDynamics | FlowDynamics | MeanFlowDynamics | EnsembleDynamics
Trainable = OneStep | MultiStepDynamics


def make_dynamics(state_dim: int, action_dim: int, config: DynamicsConfig) -> Trainable:
    """The untrained world model of a configuration."""
    c = config
    common: dict[str, Any] = dict(target=c.target, activation=c.activation, layer_norm=c.layer_norm, residual=c.residual)
    if c.kind == "deterministic":
        return DeterministicDynamics(state_dim, action_dim, c.hidden, **common)
    if c.kind == "multistep":
        del common["target"]
        return MultiStepDynamics(
            state_dim, action_dim, c.hidden, horizon=c.horizon, stochastic=c.stochastic, sweeps=c.sweeps, **common
        )
    if c.kind == "ensemble":
        return EnsembleDynamics(state_dim, action_dim, c.hidden, members=c.members, **common)
    common["prediction"] = c.prediction
    if c.kind == "flow":
        return FlowDynamics(state_dim, action_dim, c.hidden, steps=c.sampling_steps or 4, **common)
    if c.kind == "meanflow":
        return MeanFlowDynamics(state_dim, action_dim, c.hidden, steps=c.sampling_steps or 1, **common)
    return DiffusionDynamics(
        state_dim,
        action_dim,
        c.hidden,
        steps=c.steps,
        schedule=c.schedule,
        sampler=c.sampler,
        eta=c.eta,
        levels=c.levels,
        **common,
    )


def one_step(model: Trainable) -> OneStep:
    """The model, if it predicts single transitions.

    Raises:
        ValueError: a multi-step model.
    """
    if isinstance(model, MultiStepDynamics):
        raise ValueError(
            "dynamics.kind: expected a one-step model, got 'multistep', which is trained on segments of episodes; "
            "use jacrec.training.stages.multistep.MultiStepStage"
        )
    return model


def objective(model: Trainable, rows: Tensor, config: DynamicsConfig, weights: Tensor | None = None) -> tuple[Examples, Draw]:
    """The examples that `model` learns from, and a function that draws the random tensors to call them with.

    Args:
        rows: [standardised s, a, target x], (n, 2d + m).
        weights: sampling weights of the rows, (n,) with mean 1, on the CPU; None: uniform.
    """
    model = one_step(model)
    d, split = model.state_dim, model.state_dim + model.action_dim
    n, dtype = len(rows), rows.dtype

    cumulative = None if weights is None else weights.double().cumsum(0)

    def draw_rows(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        if cumulative is None:
            return torch.randint(n, shape, generator=generator)
        u = torch.rand(shape, generator=generator, dtype=torch.float64) * cumulative[-1]
        return torch.searchsorted(cumulative, u, right=True).clamp_(max=n - 1)

    def indices(generator: torch.Generator, block: int) -> tuple[Tensor, ...]:
        return (draw_rows((block, config.batch_size), generator),)

    def noise(generator: torch.Generator, block: int) -> Tensor:
        return torch.randn(block, config.batch_size, d, generator=generator, dtype=dtype)

    if isinstance(model, DeterministicDynamics):
        return Examples(rows, split), indices
    if isinstance(model, EnsembleDynamics):

        def member_indices(generator: torch.Generator, block: int) -> tuple[Tensor, ...]:
            return (draw_rows((block, config.members, config.batch_size), generator),)

        return GaussianExamples(rows, split), member_indices
    if isinstance(model, DiffusionDynamics):

        def with_levels(generator: torch.Generator, block: int) -> tuple[Tensor, ...]:
            index = indices(generator, block)
            level = torch.randint(config.steps, index[0].shape, generator=generator)
            return *index, level, noise(generator, block)

        levels = torch.arange(1, config.steps + 1, device=rows.device)
        embedding = step_embedding(levels, model.denoiser.embedding_dim).to(dtype)  # (K, e)
        signal = model.alpha_bar.sqrt().to(dtype).unsqueeze(-1)  # (K, 1)
        corruption = (1 - model.alpha_bar).sqrt().to(dtype).unsqueeze(-1)  # (K, 1)
        of_noise = config.prediction == "epsilon"
        return NoisedExamples(rows, split, signal, corruption, embedding, of_noise), with_levels

    average = isinstance(model, MeanFlowDynamics)
    moving = config.batch_size - round(config.flow_ratio * config.batch_size) if average else 0

    def with_times(generator: torch.Generator, block: int) -> tuple[Tensor, ...]:
        index = indices(generator, block)
        shape = (*index[0].shape, 2 if average else 1)
        times = draw_times(shape, config.times, config.times_mean, config.times_std, generator)
        return *index, (times_and_spans(times, moving) if average else times).to(dtype), noise(generator, block)

    frequency = step_frequencies(model.denoiser.embedding_dim, rows.device).to(dtype)
    of_velocity = config.prediction == "velocity"
    if average:
        return MeanFlowExamples(rows, split, frequency, of_velocity, moving, config.adaptive_power), with_times
    return FlowExamples(rows, split, frequency, of_velocity), with_times
