"""The activations and their slopes, one number at a time, written so that the compiler vectorises them.

An exponential of the C library would be called for each number; this one is arithmetic. tanh and erf are the library's.
"""

import math

import numpy as np
from llvmlite import ir

from jacrec.kernels.cpu.base.host import exact_part, part
from jacrec.kernels.cpu.base.tiles import ELEMENTS, INT, intrinsic, size_of

LOG2_E = 1.4426950408889634
LN_2_HIGH, LN_2_LOW = 6.93145751953125e-1, 1.42860682030941723212e-6
"""ln 2 in two parts, the first with so few bits that its product with a whole number up to 1024 is exact in float32 too"""
BOUND_32, BOUND_64 = 87.0, 708.0
"""above the bound e^x is e^bound, below the negative bound 0"""


@intrinsic
def two_to(typing, like, n):
    """2ⁿ for a whole number n within the exponents of the type, itself of that type."""
    if like not in ELEMENTS or n != like:
        return None

    def emit(context, builder, signature, args):
        element, size, _ = ELEMENTS[like]
        integer, bias, bits = (ir.IntType(32), 127, 23) if size == 4 else (INT, 1023, 52)
        exponent = builder.add(builder.fptosi(args[1], integer), ir.Constant(integer, bias))
        return builder.bitcast(builder.shl(exponent, ir.Constant(integer, bits)), element)

    return like(like, n), emit


@exact_part
def exp(x):
    """e^x to within two units in the last place, for |x| up to the bounds; NaN stays NaN."""
    one = type(x)(1)
    bound = type(x)(BOUND_32 if size_of(x) == 4 else BOUND_64)
    small = x < -bound
    x = bound if x > bound else x
    x = -bound if small else x
    n = np.floor(x * type(x)(LOG2_E) + type(x)(0.5))
    n = n if n == n else type(x)(0)  # of a NaN the factor p is NaN, whatever the power
    r = x - n * type(x)(LN_2_HIGH)
    r = r - n * type(x)(LN_2_LOW)
    # Taylor's polynomial for |r| <= ln 2 / 2: the first term left out is below half a unit in the last place
    p = one
    if size_of(x) == 8:
        p = one + r / type(x)(13)
        p = one + r * p * type(x)(1 / 12)
        p = one + r * p * type(x)(1 / 11)
        p = one + r * p * type(x)(1 / 10)
        p = one + r * p * type(x)(1 / 9)
        p = one + r * p * type(x)(1 / 8)
    p = one + r * p * type(x)(1 / 7)
    p = one + r * p * type(x)(1 / 6)
    p = one + r * p * type(x)(1 / 5)
    p = one + r * p * type(x)(1 / 4)
    p = one + r * p * type(x)(1 / 3)
    p = one + r * p * type(x)(1 / 2)
    p = one + r * p
    return type(x)(0) if small else p * two_to(x, n)


@part
def tanh(x):
    """tanh x."""
    return type(x)(math.tanh(x))


@part
def silu(x):
    """x σ(x) and its slope."""
    one = type(x)(1)
    s = one / (one + exp(-x))
    value = x * s
    return value, s + value * (one - s)


@part
def mish(x):
    """x tanh(softplus x) and its slope; with e = exp(−|x|), tanh(softplus x) and σ(x) are quotients of polynomials of e."""
    one, two = type(x)(1), type(x)(2)
    e = exp(x if x < 0 else -x)
    above = one + two * e
    below = e * (e + two)
    soft = above / (above + two * e * e) if x > 0 else below / (below + two)
    sigmoid = (one if x > 0 else e) / (one + e)
    return x * soft, soft + x * sigmoid * (one - soft * soft)


@part
def gelu(x):
    """x Φ(x) and its slope, Φ the normal distribution."""
    cdf = type(x)(0.5) * (type(x)(1) + type(x)(math.erf(x * type(x)(0.7071067811865476))))
    return x * cdf, cdf + x * exp(type(x)(-0.5) * x * x) * type(x)(0.3989422804014327)
