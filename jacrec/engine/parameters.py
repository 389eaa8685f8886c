"""The parameters that an update may move, their norm, and broadcasting of one number per row over them."""

import torch
from torch import Tensor, nn

ALONE = 2**15
"""elements that torch copies in the calling thread alone"""


def trainable(policy: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that an update may move, by name: those with requires_grad.

    Raises:
        ValueError: there are none.
    """
    found = {name: p for name, p in policy.named_parameters() if p.requires_grad}
    if not found:
        raise ValueError("policy: expected parameters with requires_grad=True to improve, got none; unfreeze some of them")
    return found


def check_trainable(policy: nn.Module) -> None:
    """ValueError where `trainable` has nothing to find."""
    if not any(p.requires_grad for p in policy.parameters()):  # ends with the first, mostly
        trainable(policy)


def over_rows(x: Tensor, parameter: Tensor) -> Tensor:
    """One number per row, () or (N,), shaped to broadcast over a parameter (...) or (N, ...)."""
    return x.view(-1, *(1,) * (parameter.dim() - 1)) if x.dim() else x


def copy_values(to: Tensor, source: Tensor) -> None:
    """to ← source, of the same shape, in the calling thread alone.

    On a CPU torch divides a copy of more than 32 768 elements among OpenMP's threads, whose barrier waits through whole time
    slices where another process has taken a core.
    """
    if to.device.type != "cpu" or not (to.is_contiguous() and source.is_contiguous()):
        to.copy_(source)
        return
    for a, b in zip(to.view(-1).split(ALONE), source.view(-1).split(ALONE), strict=True):
        a.copy_(b)


def parameter_norm(tensors: dict[str, Tensor], *, batched: bool) -> Tensor:
    """The Euclidean norm over all parameters together: (), or (N,) with a leading axis N."""
    if not batched:
        norms = torch._foreach_norm(list(tensors.values()))  # pyright: ignore
        return torch.linalg.vector_norm(torch.stack(norms))
    norms = [torch.linalg.vector_norm(t.reshape(len(t), -1), dim=1) for t in tensors.values()]
    return torch.linalg.vector_norm(torch.stack(norms), dim=0)
