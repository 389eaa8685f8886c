"""A float64 product by tl.dot alone, against torch's."""

import torch
import triton
import triton.language as tl


@triton.jit
def dot_kernel(out, x, y, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    """out (M, N) = x (M, K) @ y (K, N), all contiguous."""
    m, n, k = tl.arange(0, M)[:, None], tl.arange(0, N), tl.arange(0, K)
    a = tl.load(x + m * K + k[None, :])
    b = tl.load(y + k[:, None] * N + n[None, :])
    tl.store(out + m * N + n[None, :], tl.dot(a, b, input_precision="ieee", out_dtype=a.dtype))


def error(m: int, n: int, k: int, device: str) -> float:
    """The relative difference from torch's product.

    Raises:
        SystemExit: it is not one of rounding.
    """
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(*shape, generator=generator, dtype=torch.float64).to(device) for shape in ((m, k), (k, n)))
    out = torch.full((m, n), float("nan"), dtype=torch.float64, device=device)
    dot_kernel[(1,)](out, x, y, m, n, k, num_warps=8)  # pyright: ignore[reportCallIssue]
    found = float((out - x @ y).norm() / (x @ y).norm())
    if not found < 1e-14:
        raise SystemExit(f"tl.dot ({m}, {k}) @ ({k}, {n}) in float64: expected an error below 1e-14, got {found:.1e}")
    return found
