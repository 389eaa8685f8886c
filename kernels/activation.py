"""The activations of `jacrec.models.activations` inside a kernel: value and slope from exp and erf, in float32 and float64.

libdevice is avoided, so that the same code runs interpreted. Every exponential has an argument ≤ 0: none overflows.
"""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false, reportIndexIssue=false
# pyright: reportOperatorIssue=false, reportCallIssue=false, reportAssignmentType=false
# the language of kernels is not Python's: what a checker takes for a tl.constexpr is any value that the compiler knows

import triton
import triton.language as tl


@triton.jit
def sigmoid(z):
    """1 / (1 + e^−z), to relative precision on both sides."""
    e = tl.exp(-tl.abs(z))
    return tl.where(z >= 0, 1.0, e) / (1.0 + e)


@triton.jit
def tanh(z):
    """tanh z: (1 − e) / (1 + e) with e = e^−2|z|, near 0 a rational function (4e-19 relative below a half).

    The rational function is Lambert's continued fraction cut after the fifteenth power; the exponential alone would lose
    all relative precision of a small z.
    """
    e = tl.exp(-2.0 * tl.abs(z))
    far = (1.0 - e) / (1.0 + e)
    near = tl.minimum(tl.abs(z), 0.5)
    q = near * near
    above = near * (2027025.0 + q * (270270.0 + q * (6930.0 + q * 36.0)))
    below = 2027025.0 + q * (945945.0 + q * (51975.0 + q * (630.0 + q)))
    size = tl.where(tl.abs(z) < 0.5, above / below, far)
    return tl.where(z < 0, -size, size)


@triton.jit
def activate(z, NET: tl.constexpr):
    """act(z) and act'(z) for NET.activation. NaN stays NaN."""
    if NET.activation == "relu":
        value = tl.where(z <= 0, 0.0, z)
        slope = tl.where(z <= 0, 0.0, 1.0).to(z.dtype)
    elif NET.activation == "silu":
        gate = sigmoid(z)
        value = z * gate
        slope = gate + value * (1.0 - gate)
    elif NET.activation == "mish":
        # tanh(softplus z) = q / (q + 2) with q = e^z (e^z + 2); for z > 0 both are divided by e^2z
        e = tl.exp(-tl.abs(z))
        above = tl.where(z >= 0, 1.0 + 2.0 * e, e * (e + 2.0))
        soft = above / (above + tl.where(z >= 0, 2.0 * e * e, 2.0))
        value = z * soft
        slope = soft + z * sigmoid(z) * (1.0 - soft * soft)
    elif NET.activation == "tanh":
        value = tanh(z)
        slope = 1.0 - value * value
    else:
        tl.static_assert(NET.activation == "gelu", "unknown activation")
        cdf = 0.5 * (1.0 + tl.erf(z * 0.7071067811865476))
        value = z * cdf
        slope = cdf + z * tl.exp(-0.5 * z * z) * 0.3989422804014327
    return value, slope
