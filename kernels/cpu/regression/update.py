"""One step of regression as one call of compiled code on every thread.

The rows of the batch are divided among the threads in strips, then the outputs of the weight gradients, then the elements of
the parameters. The result does not depend on the number of threads.
"""

import math

from jacrec.kernels.cpu.base.host import part
from jacrec.kernels.cpu.base.team import counter_barrier
from jacrec.kernels.cpu.base.tiles import at, size_of
from jacrec.kernels.cpu.rebrac.flat import share
from jacrec.kernels.cpu.regression.gather import gather
from jacrec.kernels.cpu.regression.job import AVERAGING, LR, MAX_NORM, STEPS, STRIP, layer_of, read_job
from jacrec.kernels.cpu.regression.passes import least_squares, pull, record, turn, weights

LEAST_32, LEAST_64 = 1e-36, 1e-306
"""smaller moments become zero: arithmetic with subnormal numbers, to which those of inactive units decay, is slow"""


@part
def _clipping(job):
    """The factor that clips the gradient's norm."""
    bound, total = at(0.0, job.rule)[MAX_NORM], 0.0
    if bound == math.inf:
        return 1.0  # whatever the squares, which may overflow
    for l in range(job.depth + 1):
        layer = layer_of(job, l)
        squares = at(0.0, layer.squares)
        for j in range(layer.outputs):
            total += squares[j]
    scale = bound / (math.sqrt(total) + 1e-6)
    return 1.0 if scale > 1.0 else scale  # not a number stays one


@part
def _move(like, job):
    """Adam (β 0.9, 0.999, ε 1e-8) and the averaged weights' step for this thread's elements; the gradient is not changed."""
    rule = at(0.0, job.rule)
    steps, scale = rule[STEPS], type(like)(_clipping(job))
    lr, root = type(like)(rule[LR] / (1 - 0.9**steps)), type(like)(1 / math.sqrt(1 - 0.999**steps))
    rate, few, small, eps = type(like)(rule[AVERAGING]), type(like)(0.1), type(like)(0.001), type(like)(1e-8)
    least = type(like)(LEAST_32 if size_of(like) == 4 else LEAST_64)
    begin, count = share(job.length, job.thread, job.threads)
    p, g, m, v = at(like, job.value), at(like, job.gradient), at(like, job.first_moment), at(like, job.second_moment)
    for i in range(begin, begin + count):
        x = scale * g[i]
        first, second = m[i] + few * (x - m[i]), (1 - small) * v[i] + small * x * x
        m[i] = type(like)(0) if abs(first) < least else first
        v[i] = type(like)(0) if second < least else second
        p[i] -= lr * m[i] / (math.sqrt(v[i]) * root + eps)
    if job.averaged:
        average = at(like, job.averaged)
        for i in range(begin, begin + count):
            average[i] += rate * (p[i] - average[i])


@part
def regression_step(like, address):
    """One thread's part of a step."""
    job = read_job(address)
    turn(like, job)
    counter_barrier(job.counter, job.threads, 1)
    strips = (job.rows + STRIP - 1) // STRIP
    first, count = share(strips, job.thread, job.threads)
    losses, end = at(0.0, job.losses), min((first + count) * STRIP, job.rows)
    for r in range(first * STRIP, end, job.block):
        last = min(r + job.block, end)
        gather(like, job, r, last - r)
        record(like, job, r, last - r)
        for strip in range(r, last, STRIP):
            losses[strip // STRIP] = least_squares(like, job, strip, min(STRIP, last - strip))
        pull(like, job, r, last - r)
    counter_barrier(job.counter, job.threads, 2)
    weights(like, job)
    counter_barrier(job.counter, job.threads, 3)
    _move(like, job)
