"""A module's parameters as one vector, so that Adam and weight averaging each take one pass over memory.

The vectors of several modules of the same architecture can be stacked as rows of a matrix: one batched model.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

ALIGN = 16  # parameters start at multiples of 64 bytes (float32): aligned products are faster, and bit-reproducible


class FlatParameters:
    """The parameters of `module` laid end to end in `value` (P,); the module's own parameters become views of it.

    `gradient` has the same layout; `value_of[name]` and `gradient_of[name]` are views of the two. The padding between
    parameters is zero and stays zero. Autograd is disabled for the module: gradients are computed by hand
    (`jacrec.training.passes`).
    """

    def __init__(self, module: nn.Module):
        self.module = module
        named = list(module.named_parameters())
        self.layout: dict[str, tuple[int, torch.Size]] = {}
        total = 0
        for name, parameter in named:
            self.layout[name] = total, parameter.shape
            total += -(-parameter.numel() // ALIGN) * ALIGN
        value = named[0][1].new_zeros(total).detach()
        for name, view in self.views(value).items():
            view.copy_(module.get_parameter(name).detach())
        self.rebind(value, torch.zeros_like(value))

    def views(self, vector: Tensor) -> dict[str, Tensor]:
        """Views of the parameters within vectors of this layout (..., P), each (..., *shape)."""
        return {
            name: vector[..., start : start + shape.numel()].unflatten(-1, shape)
            for name, (start, shape) in self.layout.items()
        }

    def rebind(self, value: Tensor, gradient: Tensor) -> None:
        """Use these vectors (P,) as storage from now on. They must already contain the parameters and their gradient."""
        self.value, self.gradient = value, gradient
        self.value_of, self.gradient_of = self.views(value), self.views(gradient)
        for name, view in self.value_of.items():
            parameter = self.module.get_parameter(name)
            parameter.data = view
            parameter.requires_grad_(False)

    def move_towards(self, other: "FlatParameters | FlatParameterRows", rate: float | Tensor) -> None:
        """value ← value + rate (other − value): the moving average for targets and averaged weights."""
        self.value.lerp_(other.value, rate)


class FlatParameterRows:
    """S modules of the same architecture: `value` and `gradient` (S, P), whose rows become the storage of the S modules.

    `value_of[name]` and `gradient_of[name]` are (S, *shape).
    """

    def __init__(self, flats: Sequence[FlatParameters]):
        self.flats = list(flats)
        first = self.flats[0]
        if any(flat.layout != first.layout for flat in self.flats):
            raise ValueError("flats: expected modules of the same architecture, got different ones; train them separately")
        self.value = torch.stack([flat.value for flat in self.flats])
        self.gradient = torch.stack([flat.gradient for flat in self.flats])
        for flat, value, gradient in zip(self.flats, self.value, self.gradient, strict=True):
            flat.rebind(value, gradient)
        self.value_of, self.gradient_of = first.views(self.value), first.views(self.gradient)

    def move_towards(self, other: "FlatParameters | FlatParameterRows", rate: float | Tensor) -> None:
        """As `FlatParameters.move_towards`, for every row."""
        self.value.lerp_(other.value, rate)


class Adam:
    """Adam (default betas, ε = 1e-8) on `FlatParameters` or `FlatParameterRows`, with optional clipping of the gradient's norm.

    Clipping is per row. On a GPU `step` can be part of a CUDA graph; with `tensor_lr` the learning rate is a tensor, so that
    changes by `set_lr` take effect in a captured graph.
    """

    def __init__(
        self, flat: FlatParameters | FlatParameterRows, lr: float, max_grad_norm: float | None = None, tensor_lr: bool = False
    ):
        self.flat, self.lr, self.max_grad_norm = flat, lr, max_grad_norm
        gpu = flat.value.is_cuda
        # the GPU kernel requires the learning rate in single precision
        rate = torch.tensor(lr, device=flat.value.device, dtype=torch.float32 if gpu else torch.float64) if tensor_lr else lr
        self.parameter = nn.Parameter(flat.value)
        self.parameter.grad = flat.gradient
        self.optimiser = torch.optim.Adam([self.parameter], lr=rate, fused=True, capturable=gpu)
        state = self.optimiser.state[self.parameter]
        state["step"] = torch.zeros((), dtype=torch.float32, device=flat.value.device)
        state["exp_avg"] = torch.zeros_like(flat.value)
        state["exp_avg_sq"] = torch.zeros_like(flat.value)

    @classmethod
    def from_rows(cls, adams: Sequence["Adam"], rows: FlatParameterRows, tensor_lr: bool = False) -> "Adam":
        """One optimiser for all rows, continuing from the states of `adams`, one per row, all at the same step.

        The state of each of `adams` becomes a view of the new one, for reading and loading a row's checkpoint. They can no longer
        step alone.
        """
        joint = cls(rows, adams[0].lr, adams[0].max_grad_norm, tensor_lr)
        state = joint.optimiser.state[joint.parameter]
        state["step"].copy_(adams[0].state()["step"])
        for row, adam in enumerate(adams):
            own = adam.optimiser.state[adam.parameter]
            for moment in ("exp_avg", "exp_avg_sq"):
                state[moment][row].copy_(own[moment])
                own[moment] = state[moment][row]
            own["step"] = state["step"]
        return joint

    def set_lr(self, lr: float | Tensor) -> None:
        """Set the learning lr of the following steps."""
        group = self.optimiser.param_groups[0]
        if not isinstance(group["lr"], Tensor):
            group["lr"] = lr
        elif isinstance(lr, Tensor):
            group["lr"].copy_(lr)
        else:
            group["lr"].fill_(lr)

    def lr_now(self) -> float:
        """The learning rate of the next step."""
        return float(self.optimiser.param_groups[0]["lr"])

    @torch.no_grad()
    def step(self) -> None:
        """Update the parameters from `flat.gradient`, which is clipped in place."""
        if self.max_grad_norm is not None:
            gradient = self.flat.gradient
            norm = torch.linalg.vector_norm(gradient, **({} if gradient.dim() == 1 else {"dim": 1, "keepdim": True}))
            gradient.mul_((self.max_grad_norm / (norm + 1e-6)).clamp_(max=1.0))
        self.optimiser.step()

    def moments(self) -> tuple[Tensor, Tensor]:
        """The first and second moments: the live tensors."""
        state = self.optimiser.state[self.parameter]
        return state["exp_avg"], state["exp_avg_sq"]

    def state(self) -> dict[str, Tensor]:
        """The parameters, the moments and the step count: the live tensors."""
        return {"value": self.flat.value, **self.optimiser.state[self.parameter]}
