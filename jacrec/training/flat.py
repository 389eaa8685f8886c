"""A module's parameters as one vector, so that Adam and the averaging of weights are one pass over memory each.

The vectors of several modules of one make can lie side by side as rows of a matrix: one batched model.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

ALIGN = 16  # every parameter starts at a multiple of 64 bytes (float32): matrix products like it, and so do equal bits


class FlatParameters:
    """The parameters of `module` laid end to end in `value` (P,); the module's own parameters become views of it.

    `gradient` has the same layout and `gradient_of[name]` views it, as `value_of[name]` views `value`. The gaps between
    parameters are zero and stay so. The module stops recording gradients: they are written by hand
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
        self.lay(value, torch.zeros_like(value))

    def views(self, vector: Tensor) -> dict[str, Tensor]:
        """The parameters within vectors of this layout (..., P), each (..., *shape)."""
        return {
            name: vector[..., start : start + shape.numel()].unflatten(-1, shape)
            for name, (start, shape) in self.layout.items()
        }

    def lay(self, value: Tensor, gradient: Tensor) -> None:
        """Live in these vectors (P,) from now on, which hold the parameters and their gradient already."""
        self.value, self.gradient = value, gradient
        self.value_of, self.gradient_of = self.views(value), self.views(gradient)
        for name, view in self.value_of.items():
            parameter = self.module.get_parameter(name)
            parameter.data = view
            parameter.requires_grad_(False)

    def move_towards(self, other: "FlatParameters | FlatParameterRows", rate: float | Tensor) -> None:
        """value ← value + rate (other − value): the moving average of targets and evaluation weights."""
        self.value.lerp_(other.value, rate)


class FlatParameterRows:
    """S modules of one make side by side: `value` and `gradient` (S, P), of which each one's own vectors become rows.

    `value_of[name]` and `gradient_of[name]` are (S, *shape).
    """

    def __init__(self, flats: Sequence[FlatParameters]):
        self.flats = list(flats)
        first = self.flats[0]
        if any(flat.layout != first.layout for flat in self.flats):
            raise ValueError("FlatParameterRows: expected modules of one make, got different parameters; train them one by one")
        self.value = torch.stack([flat.value for flat in self.flats])
        self.gradient = torch.stack([flat.gradient for flat in self.flats])
        for flat, value, gradient in zip(self.flats, self.value, self.gradient, strict=True):
            flat.lay(value, gradient)
        self.value_of, self.gradient_of = first.views(self.value), first.views(self.gradient)

    def move_towards(self, other: "FlatParameters | FlatParameterRows", rate: float | Tensor) -> None:
        """As `FlatParameters.move_towards`, every row."""
        self.value.lerp_(other.value, rate)


class Adam:
    """Adam (default betas, ε = 1e-8) on a `FlatParameters` or on `FlatParameterRows`, with an optional bound on the gradient's norm (each row's).

    On a GPU `step` can be part of a CUDA graph. With `held`, the learning rate is a tensor that a graph reads anew each time,
    so that `set_rate` outside of it is felt.
    """

    def __init__(
        self, flat: FlatParameters | FlatParameterRows, lr: float, max_grad_norm: float | None = None, held: bool = False
    ):
        self.flat, self.lr, self.max_grad_norm = flat, lr, max_grad_norm
        gpu = flat.value.is_cuda
        # the GPU's kernel wants its learning rate in single precision
        rate = torch.tensor(lr, device=flat.value.device, dtype=torch.float32 if gpu else torch.float64) if held else lr
        self.parameter = nn.Parameter(flat.value)
        self.parameter.grad = flat.gradient
        self.optimiser = torch.optim.Adam([self.parameter], lr=rate, fused=True, capturable=gpu)
        state = self.optimiser.state[self.parameter]
        state["step"] = torch.zeros((), dtype=torch.float32, device=flat.value.device)
        state["exp_avg"] = torch.zeros_like(flat.value)
        state["exp_avg_sq"] = torch.zeros_like(flat.value)

    @classmethod
    def from_rows(cls, adams: Sequence["Adam"], rows: FlatParameterRows, held: bool = False) -> "Adam":
        """One for all rows, going on from where `adams`, one per row, stand: at the same step.

        Theirs are from now on the views of its state that a row's checkpoint reads and fills; none of them may step alone.
        """
        joint = cls(rows, adams[0].lr, adams[0].max_grad_norm, held)
        state = joint.optimiser.state[joint.parameter]
        state["step"].copy_(adams[0].state()["step"])
        for row, adam in enumerate(adams):
            own = adam.optimiser.state[adam.parameter]
            for moment in ("exp_avg", "exp_avg_sq"):
                state[moment][row].copy_(own[moment])
                own[moment] = state[moment][row]
            own["step"] = state["step"]
        return joint

    def set_rate(self, rate: float | Tensor) -> None:
        """The next steps' learning rate."""
        group = self.optimiser.param_groups[0]
        if not isinstance(group["lr"], Tensor):
            group["lr"] = rate
        elif isinstance(rate, Tensor):
            group["lr"].copy_(rate)
        else:
            group["lr"].fill_(rate)

    @torch.no_grad()
    def step(self) -> None:
        """One update of the parameters from `flat.gradient`, which is scaled in place where it is too long."""
        if self.max_grad_norm is not None:
            gradient = self.flat.gradient
            norm = torch.linalg.vector_norm(gradient, **({} if gradient.dim() == 1 else {"dim": 1, "keepdim": True}))
            gradient.mul_((self.max_grad_norm / (norm + 1e-6)).clamp_(max=1.0))
        self.optimiser.step()

    def moments(self) -> tuple[Tensor, Tensor]:
        """The first and the second, live."""
        state = self.optimiser.state[self.parameter]
        return state["exp_avg"], state["exp_avg_sq"]

    def state(self) -> dict[str, Tensor]:
        """The parameters, the moments and the count of steps: the live tensors."""
        return {"value": self.flat.value, **self.optimiser.state[self.parameter]}
