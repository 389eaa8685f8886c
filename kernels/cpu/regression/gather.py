"""The batch, gathered from a table of rows: the twin of `jacrec.training.stages.examples`."""

from typing import NamedTuple

from jacrec.kernels.cpu.base.host import part
from jacrec.kernels.cpu.base.rows import reader
from jacrec.kernels.cpu.base.tiles import at, integers, size_of
from jacrec.kernels.cpu.regression.job import layer_of

GIVEN, ROWS, NOISED = range(3)
"""kinds of sources: inputs and goals themselves, `Examples`, `NoisedExamples`"""


class Source(NamedTuple):
    """Where a batch comes from; addresses, but for `kind` and the sizes."""

    kind: int = GIVEN
    table: int = 0  # rows [·, target] (n, columns)
    columns: int = 0
    split: int = 0  # columns before the target
    features: int = 0  # columns of `embedding`
    of_noise: int = 0  # whether the goal is the noise
    signal: int = 0  # (K,)
    corruption: int = 0  # (K,)
    embedding: int = 0  # (K, features)
    index: int = 0  # (B,), int64: rows of the table
    level: int = 0  # (B,), int64: rows of the last three
    noise: int = 0  # (B, columns − split)


read_source = reader(Source)


@part
def gather(like, job, first, rows):
    """Inputs and goals of these rows."""
    source = read_source(job.source)
    if source.kind == GIVEN:
        return
    size, inputs, split, width = size_of(like), layer_of(job, 0).inputs, source.split, source.columns - source.split
    index, level = integers(source.index), integers(source.level)
    signal, corruption = at(like, source.signal), at(like, source.corruption)
    for r in range(first, first + rows):
        row = at(like, source.table + index[r] * source.columns * size)
        x, goal = at(like, job.x + r * inputs * size), at(like, job.goal + r * width * size)
        if source.kind == ROWS:
            for i in range(split):
                x[i] = row[i]
            for i in range(width):
                goal[i] = row[split + i]
            continue
        k, noise = level[r], at(like, source.noise + r * width * size)
        embedding = at(like, source.embedding + k * source.features * size)
        for i in range(width):
            target = row[split + i]
            x[i] = signal[k] * target + corruption[k] * noise[i]
            goal[i] = noise[i] if source.of_noise else target
        for i in range(split):
            x[width + i] = row[i]
        for i in range(source.features):
            x[width + split + i] = embedding[i]
