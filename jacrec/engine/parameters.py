"""The parameters that an update may move, their norm, and broadcasting of one number per row over them."""

import torch
from torch import Tensor, nn


def trainable(policy: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that an update may move, by name: those with requires_grad.

    Raises:
        ValueError: there are none.
    """
    found = {name: p for name, p in policy.named_parameters() if p.requires_grad}
    if not found:
        raise ValueError("policy: expected parameters with requires_grad=True to improve, got none; unfreeze some of them")
    return found


def over_rows(x: Tensor, parameter: Tensor) -> Tensor:
    """One number per row, () or (N,), shaped to broadcast over a parameter (...) or (N, ...)."""
    return x.view(-1, *(1,) * (parameter.dim() - 1)) if x.dim() else x


def parameter_norm(tensors: dict[str, Tensor], *, batched: bool) -> Tensor:
    """The Euclidean norm over all parameters together: (), or (N,) with a leading axis N."""
    if not batched:
        norms = torch._foreach_norm(list(tensors.values()))  # pyright: ignore
        return torch.linalg.vector_norm(torch.stack(norms))
    norms = [torch.linalg.vector_norm(t.reshape(len(t), -1), dim=1) for t in tensors.values()]
    return torch.linalg.vector_norm(torch.stack(norms), dim=0)
