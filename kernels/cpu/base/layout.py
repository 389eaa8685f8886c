"""Where the numbers of a network lie: a row of int64 that the compiled code reads, one for every network.

Addresses are bytes, sizes and offsets count elements. A hidden layer's width is padded to whole vectors (`PADDED`); weights
whose widths are whole vectors already are read where torch keeps them.

A tape of `J` calls with R rows holds, for every array of a call (width w, offset o per row), its J copies side by side:
copy j starts at (o·J + j·w)·R. So the rows of one layer over all calls are one matrix.
"""

from jacrec.kernels.cpu.base.host import part
from jacrec.kernels.cpu.base.tiles import size_of

# the head of a network's row
DEPTH, ACTIVATION, NORM, RESIDUAL, TANH, IN, OUT, WIDEST, TAPE, BARS = range(10)
FIRST, LAST_WEIGHT, LAST_BIAS, LAST_BAR = range(10, 14)
"""FIRST: the first layer's weight transposed, (IN, padded width); LAST_…: the output layer; LAST_BAR: offset of its z̄"""
GRADIENT, FIRST_GRADIENT, LAST_WEIGHT_GRADIENT, LAST_BIAS_GRADIENT = range(14, 18)
"""offsets in the vector of parameter gradients, and its length (`GRADIENT`); FIRST_GRADIENT is transposed as FIRST"""
LAYERS = 18

# what follows for every hidden layer
WIDTH, PADDED, WEIGHT, BIAS, GAIN, SHIFT, GATE, OUTPUT, HAT, INV_STD, BAR = range(11)
WEIGHT_GRADIENT, BIAS_GRADIENT, GAIN_GRADIENT, SHIFT_GRADIENT = range(11, 15)
LAYER = 15

ACTIVATION_CODES = {"relu": 0, "silu": 1, "mish": 2, "tanh": 3, "gelu": 4}
RELU, SILU, MISH, TANH_HIDDEN, GELU = range(5)


@part
def slot(like, base, offset, width, J, j, R):
    """The address of copy j of an array with R rows on a tape of J copies."""
    return base + (offset * J + j * width) * R * size_of(like)
