"""Matrix products and transposes of any width in compiled code, against torch; nothing outside the result is touched."""

import importlib.util

import numpy as np
import pytest
import torch

if importlib.util.find_spec("numba") is None:
    pytest.skip("the CPU kernels need Numba", allow_module_level=True)

from jacrec.kernels.cpu.base.host import entry, part
from jacrec.kernels.cpu.base.tiles import integers
from jacrec.kernels.cpu.rebrac.ragged import any_axpy, any_axpy_add, any_dot, transpose

GAP, POISON = 3, 7.0
ROWS_INNER_OUTER = [(37, 40, 16), (1, 9, 9), (5, 14, 24), (70, 32, 1), (6, 100, 3), (3, 1, 35), (4, 17, 33), (8, 64, 48)]


@part
def dot_job(like, job):
    j = integers(job)
    any_dot(like, j[0], j[1], j[2], j[3], j[4], j[5], j[6], j[7], j[8], j[9])


@part
def axpy_job(like, job):
    j = integers(job)
    any_axpy(like, j[0], j[1], j[2], j[3], j[4], j[5], j[6], j[7], j[8], j[9])


@part
def axpy_add_job(like, job):
    j = integers(job)
    any_axpy_add(like, j[0], j[1], j[2], j[3], j[4], j[5], j[6], j[7], j[8], j[9])


@part
def transpose_job(like, job):
    j = integers(job)
    transpose(like, j[0], j[1], j[2], j[3], j[4], j[5])


@pytest.fixture(scope="module", params=[torch.float64, torch.float32], ids=["float64", "float32"])
def kernels(request):
    dtype = {torch.float64: np.float64, torch.float32: np.float32}[request.param]
    return request.param, [entry(job, dtype).ctypes for job in (dot_job, axpy_job, axpy_add_job, transpose_job)]


def spaced(rows, columns, dtype):
    """Random numbers (rows, columns) with poison behind every row."""
    whole = torch.full((rows, columns + GAP), POISON, dtype=dtype)
    whole[:, :columns] = torch.randn(rows, columns, dtype=dtype, generator=torch.Generator().manual_seed(rows + columns))
    return whole


def run(call, *numbers):
    job = np.array(numbers, dtype=np.int64)
    call(job.ctypes.data)


def check(y, expected, exact=False):
    columns = expected.shape[1]
    tolerance = 0.0 if exact else 1e-12 if y.dtype == torch.float64 else 1e-5
    torch.testing.assert_close(y[:, :columns], expected, rtol=tolerance, atol=10 * tolerance)
    assert (y[:, columns:] == POISON).all()


@pytest.mark.parametrize(("R", "n", "O"), ROWS_INNER_OUTER)
def test_products_of_any_width(kernels, R, n, O):
    dtype, (dot, axpy, axpy_add, transposed) = kernels
    x, w, y, x_bar, w_bar = (spaced(*shape, dtype) for shape in ((R, n), (O, n), (R, O), (R, n), (O, n)))
    workspace = torch.full((O * n + 1,), POISON, dtype=dtype)
    run(dot, x.data_ptr(), n + GAP, R, w.data_ptr(), n + GAP, O, n, y.data_ptr(), O + GAP, workspace.data_ptr())
    check(y, x[:, :n] @ w[:, :n].T)
    assert workspace[-1] == POISON
    run(axpy, y.data_ptr(), O + GAP, 1, R, w.data_ptr(), n + GAP, O, n, x_bar.data_ptr(), n + GAP)
    check(x_bar, y[:, :O] @ w[:, :n])
    # with rows and columns of the first factor exchanged: a weight's gradient
    run(axpy, y.data_ptr(), 1, O + GAP, O, x.data_ptr(), n + GAP, R, n, w_bar.data_ptr(), n + GAP)
    check(w_bar, y[:, :O].T @ x[:, :n])
    run(axpy_add, y.data_ptr(), 1, O + GAP, O, x.data_ptr(), n + GAP, R, n, w_bar.data_ptr(), n + GAP)
    check(w_bar, 2 * y[:, :O].T @ x[:, :n])
    w_turned = torch.full((n, O + GAP), POISON, dtype=dtype)
    run(transposed, w.data_ptr(), n + GAP, O, n, w_turned.data_ptr(), O + GAP)
    check(w_turned, w[:, :n].T, exact=True)
