"""LayerNorm for a tile of rows: value, cotangent, and a value with its tangents."""

import math

from jacrec.kernels.cpu.base.host import part
from jacrec.kernels.cpu.base.team import barrier
from jacrec.kernels.cpu.base.tiles import at, size_of


@part
def _means(like, width, x, hat):
    """The means of x and of x ⊙ x̂: the components that its tangents and cotangents lose."""
    mean, along = type(like)(0), type(like)(0)
    for i in range(width):
        mean += x[i]
        along += x[i] * hat[i]
    return mean / type(like)(width), along / type(like)(width)


@part
def normalise(like, R, width, padded, eps, gain, shift, h, hat, inv_std, begin, end, team):
    """LayerNorm of h (R, padded) in place, in columns begin … end − 1; its x̂ in hat, 1/σ in inv_std (R,). eps: its address."""
    small = type(like)(at(0.0, eps)[0])
    row = padded * size_of(like)
    g, b, inverse = at(like, gain), at(like, shift), at(like, inv_std)
    full = min(width, end)
    barrier(team)
    for r in range(R):
        v = at(like, h + r * row)
        mean = type(like)(0)
        for i in range(width):
            mean += v[i]
        mean /= type(like)(width)
        square = type(like)(0)
        for i in range(width):
            square += (v[i] - mean) * (v[i] - mean)
        n = at(like, hat + r * row)
        inv = type(like)(1) / type(like)(math.sqrt(square / type(like)(width) + small))
        # every thread of the team has computed it, and writes the same
        inverse[r] = inv
        for i in range(begin, full):
            n[i] = (v[i] - mean) * inv
    barrier(team)
    for r in range(R):
        v, n = at(like, h + r * row), at(like, hat + r * row)
        for i in range(begin, full):
            v[i] = n[i] * g[i] + b[i]


@part
def normalise_back(like, R, width, padded, gain, x, hat, inv_std, gain_bar, shift_bar, begin, end, team):
    """LayerNorm's cotangent of x (R, padded) in place, in columns begin … end − 1.

    Adds its parameters' to gain_bar and shift_bar (width,) if they are not 0.
    """
    row = padded * size_of(like)
    g, inverse = at(like, gain), at(like, inv_std)
    full = min(width, end)
    for r in range(R):
        v, n = at(like, x + r * row), at(like, hat + r * row)
        if gain_bar:
            to_gain, to_shift = at(like, gain_bar), at(like, shift_bar)
            for i in range(begin, full):
                to_gain[i] += v[i] * n[i]
                to_shift[i] += v[i]
        for i in range(begin, full):
            v[i] *= g[i]
    barrier(team)
    for r in range(R):
        v, n = at(like, x + r * row), at(like, hat + r * row)
        mean, along = _means(like, width, v, n)
        # other threads still read this row: it changes when all have their sums
        barrier(team)
        for i in range(begin, full):
            v[i] = (v[i] - mean - n[i] * along) * inverse[r]


@part
def normalise_push(like, T, width, padded, eps, gain, shift, rows, hat):
    """LayerNorm of a value and its T tangents, rows (1+T, padded) in place; scratch hat (padded,)."""
    small = type(like)(at(0.0, eps)[0])
    size = size_of(like)
    g, b, v, n = at(like, gain), at(like, shift), at(like, rows), at(like, hat)
    mean, square = type(like)(0), type(like)(0)
    for i in range(width):
        mean += v[i]
    mean /= type(like)(width)
    for i in range(width):
        square += (v[i] - mean) * (v[i] - mean)
    inverse = type(like)(1) / type(like)(math.sqrt(square / type(like)(width) + small))
    for i in range(width):
        n[i] = (v[i] - mean) * inverse
        v[i] = n[i] * g[i] + b[i]
    for t in range(1, 1 + T):
        dx = at(like, rows + t * padded * size)
        mean, along = _means(like, width, dx, n)
        for i in range(width):
            dx[i] = (dx[i] - mean - n[i] * along) * inverse * g[i]


@part
def normalise_pull(like, T, width, padded, gain, rows, hat, inv_std):
    """LayerNorm's cotangents of one value, rows (T, padded) in place; its x̂ in hat, 1/σ at inv_std."""
    g, n, inverse = at(like, gain), at(like, hat), at(like, inv_std)[0]
    for t in range(T):
        v = at(like, rows + t * padded * size_of(like))
        for i in range(width):
            v[i] *= g[i]
        mean, along = _means(like, width, v, n)
        for i in range(width):
            v[i] = (v[i] - mean - n[i] * along) * inverse
