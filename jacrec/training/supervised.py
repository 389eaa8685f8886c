"""What the two supervised stages share: least squares on an `MLP`, and errors with their uncertainty."""

import math

import torch
from torch import Tensor, nn

from jacrec.networks import MLP
from jacrec.training.flat import Adam, Flat
from jacrec.training.passes import MLPPass


class Regression:
    """Least squares on an `MLP` inside `module`, by Adam with a bound on the gradient's norm and averaged weights.

    `averaged` is a second module of the same make whose weights are the moving average; with ema = 0 it is `module` itself.
    """

    def __init__(
        self,
        module: nn.Module,
        averaged: nn.Module,
        mlp: MLP,
        prefix: str,
        *,
        lr: float,
        max_grad_norm: float | None,
        ema: float,
    ):
        self.module, self.ema = module, ema
        self.averaged = averaged if ema else module
        self.flat = Flat(module)
        self.flat_averaged = Flat(averaged) if ema else self.flat
        gradients = {name.removeprefix(prefix): g for name, g in self.flat.gradient_of.items()}
        self.net = MLPPass(mlp, gradients)
        self.adam = Adam(self.flat, lr, max_grad_norm)

    @torch.no_grad()
    def update(self, x: Tensor, goal: Tensor, update: int) -> Tensor:
        """One step on mean (net(x) − goal)², x (B, in), goal (B, out); the loss before it."""
        prediction, tape = self.net.record(x)
        error = prediction.sub_(goal)
        loss = error.square().mean()
        self.net.pull(tape, error.mul_(2 / error.numel()))
        self.adam.step()
        if self.ema:
            self.flat_averaged.move_towards(self.flat, 1 - min(self.ema, (1 + update) / (10 + update)))
        return loss

    def state(self) -> dict[str, Tensor]:
        """The live tensors that a checkpoint holds."""
        average = {"averaged": self.flat_averaged.value} if self.ema else {}
        return {**self.adam.state(), **average}


def rmse(squared_error: Tensor) -> tuple[float, float]:
    """√(mean e) of squared errors e (n,), and its standard error by the delta method, sd(e) / (2 √n RMSE)."""
    e = squared_error.double()
    root = math.sqrt(e.mean().item())
    if len(e) < 2 or root == 0.0:
        return root, 0.0
    return root, e.std().item() / (2 * math.sqrt(len(e)) * root)
