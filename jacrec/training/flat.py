"""A module's parameters as one vector, so that Adam and the averaging of weights are one pass over memory each."""

import torch
from torch import Tensor, nn

ALIGN = 16  # every parameter starts at a multiple of 64 bytes (float32): matrix products like it, and so do equal bits


class Flat:
    """The parameters of `module` laid end to end in `value`; the module's own parameters become views of it.

    `gradient` has the same layout and `gradient_of[name]` views it. The gaps between parameters are zero and stay so.
    The module stops recording gradients: they are written by hand (`jacrec.training.passes`).
    """

    def __init__(self, module: nn.Module):
        self.module = module
        named = list(module.named_parameters())
        starts, total = [], 0
        for _, parameter in named:
            starts.append(total)
            total += -(-parameter.numel() // ALIGN) * ALIGN
        self.value = named[0][1].new_zeros(total).detach()
        self.gradient = torch.zeros_like(self.value)
        self.gradient_of: dict[str, Tensor] = {}
        for (name, parameter), start in zip(named, starts, strict=True):
            view = self.value[start : start + parameter.numel()].view(parameter.shape)
            view.copy_(parameter.detach())
            parameter.data = view
            parameter.requires_grad_(False)
            self.gradient_of[name] = self.gradient[start : start + parameter.numel()].view(parameter.shape)

    def move_towards(self, other: "Flat", rate: float | Tensor) -> None:
        """value ← value + rate (other − value): the moving average of targets and evaluation weights."""
        self.value.lerp_(other.value, rate)


class Adam:
    """Adam (default betas, ε = 1e-8) on a `Flat`, with an optional bound on the gradient's norm.

    On a GPU `step` can be part of a CUDA graph. With `held`, the learning rate is a tensor that a graph reads anew each time,
    so that `scale_rate` outside of it is felt.
    """

    def __init__(self, flat: Flat, lr: float, max_grad_norm: float | None = None, held: bool = False):
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

    def scale_rate(self, scale: float) -> None:
        """The next steps' learning rate is `scale` times the one given."""
        group = self.optimiser.param_groups[0]
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(scale * self.lr)
        else:
            group["lr"] = scale * self.lr

    @torch.no_grad()
    def step(self) -> None:
        """One update of the parameters from `flat.gradient`, which is scaled in place where it is too long."""
        if self.max_grad_norm is not None:
            norm = torch.linalg.vector_norm(self.flat.gradient)
            self.flat.gradient.mul_((self.max_grad_norm / (norm + 1e-6)).clamp_(max=1.0))
        self.optimiser.step()

    def moments(self) -> tuple[Tensor, Tensor]:
        """The first and the second, live."""
        state = self.optimiser.state[self.parameter]
        return state["exp_avg"], state["exp_avg_sq"]

    def state(self) -> dict[str, Tensor]:
        """The parameters, the moments and the count of steps: the live tensors."""
        return {"value": self.flat.value, **self.optimiser.state[self.parameter]}
