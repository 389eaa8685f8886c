"""What the two supervised stages share: least squares on an `MLP`, and errors with their uncertainty."""

import math

import torch
from torch import Tensor, nn

from jacrec.networks import MLP
from jacrec.training.config import DynamicsConfig, RewardConfig
from jacrec.training.flat import Adam, Flat
from jacrec.training.passes import MLPPass


class Regression:
    """Least squares on an `MLP` inside `module`, by Adam with a bound on the gradient's norm and averaged weights.

    Args:
        module: what is trained.
        averaged: a second module of the same make, for the moving average of the weights; with config.ema = 0 it is
            not used, and `self.averaged` is `module`.
        mlp: the network inside `module`.
        prefix: of the network's parameters among the module's.
        config: updates, lr, lr_schedule, max_grad_norm, ema.
        capturable: whether `descend` can be part of a CUDA graph.
    """

    def __init__(
        self,
        module: nn.Module,
        averaged: nn.Module,
        mlp: MLP,
        prefix: str,
        config: DynamicsConfig | RewardConfig,
        capturable: bool = False,
    ):
        self.module, self.config = module, config
        self.averaged = averaged if config.ema else module
        self.flat = Flat(module)
        self.flat_averaged = Flat(averaged) if config.ema else self.flat
        gradients = {name.removeprefix(prefix): g for name, g in self.flat.gradient_of.items()}
        self.net = MLPPass(mlp, gradients)
        self.adam = Adam(self.flat, config.lr, config.max_grad_norm, held=capturable)
        # how far the average moves: a number, or a tensor where a graph has to see it change
        self.pace: float | Tensor = self.flat.value.new_ones(()) if capturable else 1.0

    def update(self, x: Tensor, goal: Tensor, update: int) -> Tensor:
        """Step number `update` on mean (net(x) − goal)², x (B, in), goal (B, out); the loss before it."""
        self.schedule(update)
        return self.descend(x, goal)

    def schedule(self, update: int) -> None:
        """Set what changes from update to update: the learning rate and the average's pace."""
        c = self.config
        self.adam.scale_rate(1.0 if c.lr_schedule == "constant" else 0.5 * (1 + math.cos(math.pi * update / c.updates)))
        pace = 1 - min(c.ema, (1 + update) / (10 + update))
        if isinstance(self.pace, Tensor):
            self.pace.fill_(pace)
        else:
            self.pace = pace

    @torch.no_grad()
    def descend(self, x: Tensor, goal: Tensor) -> Tensor:
        """A step as scheduled; the loss before it."""
        prediction, tape = self.net.record(x)
        error = prediction.sub_(goal)
        loss = error.square().mean()
        self.net.pull(tape, error.mul_(2 / error.numel()))
        self.adam.step()
        if self.config.ema:
            self.flat_averaged.move_towards(self.flat, self.pace)
        return loss

    def state(self) -> dict[str, Tensor]:
        """The live tensors that a checkpoint holds."""
        average = {"averaged": self.flat_averaged.value} if self.config.ema else {}
        return {**self.adam.state(), **average}


def rmse(squared_error: Tensor) -> tuple[float, float]:
    """√(mean e) of squared errors e (n,), and its standard error by the delta method, sd(e) / (2 √n RMSE)."""
    e = squared_error.double()
    root = math.sqrt(e.mean().item())
    if len(e) < 2 or root == 0.0:
        return root, 0.0
    return root, e.std().item() / (2 * math.sqrt(len(e)) * root)
