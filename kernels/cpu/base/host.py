"""What the processor's vector registers look like, and how the CPU kernels are compiled and kept on disk."""

import hashlib
import inspect
import logging
import platform
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite
import numba
from llvmlite import binding
from numba.core import types
from numba.core.caching import FunctionCache
from numba.core.ccallback import CFunc
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler

try:
    FEATURES = dict(binding.get_host_cpu_features())
except RuntimeError:  # LLVM does not know this processor: the vectors that all have
    FEATURES = {}
VECTOR_BYTES = 64 if FEATURES.get("avx512f") else 32 if FEATURES.get("avx2") else 16
ACCUMULATORS = 16 if VECTOR_BYTES == 64 or platform.machine().lower() in ("aarch64", "arm64") else 8
"""vector registers that hold partial sums in the inner loops: half of the 32 of AVX-512 and NEON, of the 16 of AVX2"""

OPTIONS: dict[str, Any] = dict(error_model="numpy", fastmath={"contract", "reassoc", "nsz"}, boundscheck=False)
_log = logging.getLogger("jacrec")
SOURCES = sorted(Path(__file__).parent.parent.rglob("*.py"))
DIGEST = hashlib.sha256(b"".join(path.read_bytes() for path in SOURCES)).hexdigest()
KEY = (DIGEST, VECTOR_BYTES, ACCUMULATORS, numba.__version__, llvmlite.__version__)
"""what compiled code depends on besides the processor that it was compiled for"""


class SourceCache(FunctionCache):
    """Numba's cache on disk, keyed by all sources of the CPU kernels: its own key misses what a called function is made of."""

    def _index_key(self, sig, codegen):
        return (sig, codegen.magic_tuple(), KEY)


def part(function):
    """Decorator of what is compiled into its callers."""
    return numba.njit(**OPTIONS)(function)


def exact_part(function):
    """The same for arithmetic whose order of rounding matters."""
    options = {**OPTIONS, "fastmath": False}
    return numba.njit(**options)(function)


class _Whole(JITCodeLibrary):
    """Compiled code that calls its own copy of every part.

    Numba leaves the parts' names open to its linker, which takes the first code of a name that the process holds. Where the
    parts were compiled that is their own, optimised apart from here; where they came from disk, the copy in here: sums
    would round otherwise in the process that compiled than in those after it.
    """

    def _optimize_final_module(self):
        super()._optimize_final_module()
        for function in self._final_module.functions:
            if not function.is_declaration and function.linkage == binding.Linkage.linkonce_odr:
                function.linkage = binding.Linkage.internal


class _Pipeline(Compiler):
    def compile_extra(self, func):
        self.state.library = _Whole(self.state.targetctx.codegen(), func.__qualname__)
        self.state.library.enable_object_caching()
        return super().compile_extra(func)


class _Compiled(CFunc):
    def _compile_uncached(self):
        _log.warning("compiling %s for this machine, some seconds; it is kept on disk for later processes", self.__name__)
        return super()._compile_uncached()  # pyright: ignore[reportAttributeAccessIssue]


@cache
def entry(function, dtype) -> Any:
    """Compile function(like, job) for an element type into a C function of the job's address, kept on disk.

    Called through ctypes or by a thread that Python knows nothing of; holds no lock of Python's.
    """
    like = dtype(0)

    def task(job):
        function(like, job)

    # the cache's files are named so: whoever writes to one of them at once, on whatever machine, writes the same
    name = f"{function.py_func.__name__}_{dtype.__name__}"
    code = inspect.getsource(function.py_func).encode()
    own = hashlib.sha256(repr((KEY, code, binding.get_host_cpu_name(), sorted(FEATURES.items()))).encode()).hexdigest()[:16]
    task.__qualname__ = task.__name__ = f"{name}_{own}"
    compiled: Any = _Compiled(task, ((types.int64,), types.void), locals={}, options=OPTIONS, pipeline_class=_Pipeline)
    try:
        compiled._cache = SourceCache(task)
    except RuntimeError as error:  # no folder can be written
        warnings.warn(f"the CPU kernels are compiled anew by every process: {error}", RuntimeWarning, stacklevel=2)
    compiled.compile()
    return compiled
