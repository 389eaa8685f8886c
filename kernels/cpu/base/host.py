"""The processor's vector registers, and how the CPU kernels are compiled and cached on disk."""

import hashlib
import inspect
import logging
import platform
from functools import cache
from typing import Any

import numba
from llvmlite import binding
from numba.core import types
from numba.core.ccallback import CFunc
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler

from jacrec.kernels.cpu.base.cache import VERSIONS, SourceCache, warn_not_kept

try:
    FEATURES = dict(binding.get_host_cpu_features())
except RuntimeError:  # LLVM does not know this processor: the vectors that every one has
    FEATURES = {}
VECTOR_BYTES = 64 if FEATURES.get("avx512f") else 32 if FEATURES.get("avx2") else 16
ACCUMULATORS = 16 if VECTOR_BYTES == 64 or platform.machine().lower() in ("aarch64", "arm64") else 8
"""vector registers that hold partial sums in the inner loops: half of the 32 of AVX-512 and NEON, of the 16 of AVX2"""

OPTIONS: dict[str, Any] = dict(error_model="numpy", fastmath={"contract", "reassoc", "nsz"}, boundscheck=False)
_log = logging.getLogger("jacrec")
KEY = (*VERSIONS, VECTOR_BYTES, ACCUMULATORS)
"""what compiled code depends on"""


class _UnoptimisedLibrary(JITCodeLibrary):
    """Code that is optimised only as a part of its callers."""

    def _optimize_final_module(self):
        pass


class _GlueCompiler(Compiler):
    def compile_extra(self, func):
        self.state.library = _UnoptimisedLibrary(self.state.targetctx.codegen(), func.__qualname__)
        return super().compile_extra(func)


def part(function):
    """Decorator: compile a function into its callers."""
    return numba.njit(**OPTIONS)(function)


def glue(function):
    """Decorator: the same for a function that mostly calls others; they are optimised again only in the entry."""
    return numba.njit(pipeline_class=_GlueCompiler, **OPTIONS)(function)


def ordered_part(function):
    """Decorator: the same for sums that must not be reordered; a product and a sum may still be fused."""
    return numba.njit(**{**OPTIONS, "fastmath": {"contract"}})(function)  # pyright: ignore


def exact_part(function):
    """Decorator: the same for arithmetic of which no rounding may change."""
    return numba.njit(**{**OPTIONS, "fastmath": False})(function)  # pyright: ignore


class _SelfContained(JITCodeLibrary):
    """Compiled code that calls its own copy of every part.

    Numba leaves the parts' symbols to its linker, which binds the first definition that the process holds: the part's own
    code in the process that compiled it, optimised separately, and the copy in here where it came from the cache. Sums
    would round differently in the process that compiles than in later ones.
    """

    def _optimize_final_module(self):
        super()._optimize_final_module()
        for function in self._final_module.functions:
            if not function.is_declaration and function.linkage == binding.Linkage.linkonce_odr:
                function.linkage = binding.Linkage.internal


class _Pipeline(Compiler):
    def compile_extra(self, func):
        self.state.library = _SelfContained(self.state.targetctx.codegen(), func.__qualname__)
        self.state.library.enable_object_caching()
        return super().compile_extra(func)


class _Compiled(CFunc):
    def _compile_uncached(self):
        path = self._cache.cache_path  # pyright: ignore[reportAttributeAccessIssue]
        kept = f"; to be kept in {path}" if path else ""
        _log.warning("compiling %s for this machine, which takes up to a minute%s", self.__name__, kept)
        return super()._compile_uncached()  # pyright: ignore[reportAttributeAccessIssue]


@cache
def entry(function, dtype) -> Any:
    """Compile function(like, job) for an element type into a C function of the job's address, cached on disk.

    It may be called through ctypes or from a thread that Python does not know; it does not take the GIL.
    """
    like = dtype(0)

    def task(job):
        function(like, job)

    # names the cache's files: processes that write one at the same time, on any machine, write the same content
    name = f"{function.py_func.__name__}_{dtype.__name__}"
    code = inspect.getsource(function.py_func).encode()
    own = hashlib.sha256(repr((KEY, code, binding.get_host_cpu_name(), sorted(FEATURES.items()))).encode()).hexdigest()[:16]
    task.__qualname__ = task.__name__ = f"{name}_{own}"
    compiled: Any = _Compiled(task, ((types.int64,), types.void), locals={}, options=OPTIONS, pipeline_class=_Pipeline)
    try:
        compiled._cache = SourceCache(task, KEY)
    except RuntimeError as error:  # no folder is writable
        warn_not_kept(str(error))
    compiled.compile()
    return compiled
