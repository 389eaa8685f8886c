"""Measurements of an `MPC` along its episodes: objective before and after updates, drift, action change, rejections."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from jacrec.control.controller import MPC
from jacrec.engine.linearize import linearize
from jacrec.engine.multistep import multistep_growth
from jacrec.engine.rollout import imagined_return, noise_like
from jacrec.engine.shapes import problem
from jacrec.models.dynamics import MultiStepDynamics
from jacrec.models.world import World


@dataclass
class ThinkingProbe:
    """Watches an `MPC` in `play`, through the callbacks `before` and `watch`.

    At every `every`-th decision the imagined return Ĵ is measured for the pretrained ψ₀, for ψ before the updates and for ψ
    after them, all on the same fresh noise. That noise is independent of the updates' noise, so a gain is not an artefact of
    the samples optimised on.
    """

    policy: nn.Module
    world: World
    mpc: MPC
    every: int
    particles: int = 16
    seed: int = 1
    steps: list[list[int]] = field(default_factory=list)
    objective: dict[str, list[list[float | None]]] = field(
        default_factory=lambda: {"pretrained": [], "before": [], "after": []}
    )
    drift: list[list[float | None]] = field(default_factory=list)
    action_change: float = 0.0
    updates: int = 0
    rejected: int = 0
    gated: int = 0
    _decisions: int = 0
    _ticks: int = 0
    _noise: Tensor | None = None

    def __post_init__(self):
        self.generator = torch.Generator(self.mpc.device).manual_seed(self.seed)

    def before(self, observation: np.ndarray, action: np.ndarray, step: np.ndarray, running: np.ndarray) -> None:
        """Called before each decision: measure Ĵ(ψ₀) and Ĵ(ψ) on fresh noise."""
        self._noise = None
        if self._ticks % self.every == 0:
            state = self._state(observation)
            self._noise = noise_like(self.world, state, self.particles, self.mpc.config.horizon, self.generator)
            self._measure("pretrained", self.policy, state, running)
            if self.mpc.config.carry == "step":
                self.objective["before"].append(self.objective["pretrained"][-1])
            else:
                self._measure("before", self.mpc.policy, state, running)
            self.steps.append(step.tolist())
        self._ticks += 1

    def watch(self, observation: np.ndarray, action: np.ndarray, step: np.ndarray, running: np.ndarray) -> None:
        """Called after each decision: measure Ĵ of the new ψ on that noise, ‖ψ − ψ₀‖, action change, rejected updates."""
        state = self._state(observation)
        with torch.no_grad():
            base = self.policy(state).clamp(-1.0, 1.0).cpu().numpy()
        self.action_change += float(np.abs(action - base).mean(1)[running].sum())
        self._decisions += int(running.sum())
        if self.mpc.last is not None:
            accepted, rejected = (x.cpu().numpy()[:, running] for x in (self.mpc.last.accepted, self.mpc.last.rejected))
            self.updates += accepted.size
            self.rejected += int(rejected.sum())
            self.gated += int((~accepted & ~rejected).sum())
        if self._noise is not None:
            self._measure("after", self.mpc.policy, state, running)
            self.drift.append(running_values(self.mpc.drift(), running))

    def summary(self) -> dict:
        """Everything, ready for JSON. Lists are (probes, rows), with None for rows that were not running."""
        return {
            "probe_steps": self.steps,
            "objective": self.objective,
            "drift": self.drift,
            "mean_drift": mean_value(self.drift),
            "mean_objective": {name: mean_value(rows) for name, rows in self.objective.items()},
            "mean_action_change": self.action_change / max(self._decisions, 1),
            "updates": self.updates,
            "rejected": self.rejected,
            "gated": self.gated,
        }

    def _state(self, observation: np.ndarray) -> Tensor:
        return torch.as_tensor(observation, dtype=self.mpc.dtype, device=self.mpc.device)

    def _measure(self, name: str, policy: nn.Module, state: Tensor, running: np.ndarray) -> None:
        if self._noise is not None:
            self.objective[name].append(running_values(imagined_return(policy, self.world, state, self._noise), running))


def running_values(values: Tensor, running: np.ndarray) -> list[float | None]:
    """One number per row, ready for JSON: None if the row is not running or the value not finite."""
    finite = [float(v) for v in values.cpu()]
    return [v if run and np.isfinite(v) else None for v, run in zip(finite, running, strict=True)]


def mean_value(rows: list[list[float | None]]) -> float | None:
    """The mean of all numbers, ignoring None; None if there are none."""
    values = [v for row in rows for v in row if v is not None]
    return float(np.mean(values)) if values else None


def jacobian_growth(policy: nn.Module, world: World, states: np.ndarray, *, horizon: int, particles: int, seed: int) -> dict:
    """Quartiles of ‖ds̃_j/ds̃_0‖₂, j = 0 … H, over real states (n, d) and particles, ready for JSON.

    For a multi-step world model, H is limited to its own horizon.
    """
    parameter = next(policy.parameters())
    state = torch.as_tensor(states).to(parameter)
    generator = torch.Generator(parameter.device).manual_seed(seed)
    if isinstance(world.dynamics, MultiStepDynamics):
        noise = noise_like(world, state, particles, min(horizon, world.dynamics.horizon), generator)
        growth = multistep_growth(problem(policy, world, state, noise))
    else:
        noise = noise_like(world, state, particles, horizon, generator)
        growth = linearize(policy, world, state, noise).jacobian_growth()
    growth = growth.flatten(0, 1).cpu().numpy()
    low, median, high = np.quantile(growth, [0.25, 0.5, 0.75], axis=0)
    return {"states": len(states), "low": low.tolist(), "median": median.tolist(), "high": high.tolist()}
