"""The activations and their slopes, one number at a time, written so that the compiler can do many at once."""

import math

from jacrec.kernels.cpu.host import part


@part
def tanh(x):
    """tanh x."""
    return type(x)(math.tanh(x))


@part
def silu(x):
    """x σ(x) and its slope."""
    s = type(x)(1) / (type(x)(1) + type(x)(math.exp(-x)))
    value = x * s
    return value, s + value * (type(x)(1) - s)


@part
def mish(x):
    """x tanh(softplus x) and its slope."""
    e = type(x)(math.exp(-abs(x)))
    softplus = type(x)(math.log1p(e)) + (x if x > 0 else type(x)(0))
    sigmoid = (type(x)(1) if x > 0 else e) / (type(x)(1) + e)
    soft = tanh(softplus)
    return x * soft, soft + x * sigmoid * (type(x)(1) - soft * soft)


@part
def gelu(x):
    """x Φ(x) and its slope, Φ the normal distribution."""
    cdf = type(x)(0.5 * (1 + math.erf(x * 0.7071067811865476)))
    return x * cdf, cdf + x * type(x)(math.exp(-0.5 * x * x) * 0.3989422804014327)
