"""The processor's vector registers, and how the CPU kernels are compiled and cached on disk."""

import ctypes
import hashlib
import inspect
import logging
import platform
from functools import cache
from typing import Any

import numba
from llvmlite import binding
from numba._dynfunc import make_function
from numba.core import config, types
from numba.core.ccallback import CFunc
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.compiler_machinery import register_pass
from numba.core.typed_passes import NativeLowering

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
SETTINGS = tuple(str(getattr(config, name)) for name in ("CPU_NAME", "CPU_FEATURES", "OPT", "LOOP_VECTORIZE", "SLP_VECTORIZE"))
"""what NUMBA_CPU_NAME and its like ask of the compiler"""
KEY = (*VERSIONS, VECTOR_BYTES, ACCUMULATORS, *SETTINGS)
"""what compiled code depends on"""


def disabled_reason() -> str | None:
    """Why nothing is compiled in this process; None if the kernels can be."""
    return "numba does not compile here (NUMBA_DISABLE_JIT)" if config.DISABLE_JIT else None  # pyright: ignore


class _PartLibrary(JITCodeLibrary):
    """Code that is linked with its callees, optimised and made machine code only as a part of an entry."""

    def _optimize_functions(self, ll_module):
        ll_module.data_layout = self._codegen._data_layout

    def finalize(self):
        self._finalized = True


# called as f(closure, arguments, keywords), where the closure cannot be called: a TypeError, which no ctypes callback could raise
_REFUSAL = ctypes.cast(ctypes.pythonapi.PyObject_Call, ctypes.c_void_p).value


@register_pass(mutates_CFG=True, analysis_only=False)
class _PartLowering(NativeLowering):
    """Numba's, without an executable: callers look the code up by a symbol that refuses calls from Python."""

    _name = "part_lowering"

    def run_pass(self, state):
        flags = state.flags
        flags.no_compile = flags.no_cpython_wrapper = flags.no_cfunc_wrapper = True
        super().run_pass(state)
        library, lowered = state.library, state.cr
        library.finalize()
        found = lowered.fndesc
        symbol = make_function(found.lookup_module(), found.qualname, "", _REFUSAL, lowered.env, (library,))
        state.targetctx.insert_user_function(symbol, found, [library])
        state.cr = lowered._replace(cfunc=symbol)
        return True


class _PartCompiler(Compiler):
    """Numba's own makes and optimises machine code of every function, and of a wrapper for Python: three times the work."""

    def compile_extra(self, func):
        self.state.library = _PartLibrary(self.state.targetctx.codegen(), func.__qualname__)
        return super().compile_extra(func)

    def define_pipelines(self):
        managers = super().define_pipelines()
        for manager in managers:
            manager.passes = [(_PartLowering if kind is NativeLowering else kind, text) for kind, text in manager.passes]
            manager._finalized = False
            manager.finalize()
        return managers


def part(function):
    """Decorator: compile a function into its callers."""
    return numba.njit(pipeline_class=_PartCompiler, **OPTIONS)(function)


def ordered_part(function):
    """Decorator: the same for sums that must not be reordered; a product and a sum may still be fused."""
    return numba.njit(pipeline_class=_PartCompiler, **{**OPTIONS, "fastmath": {"contract"}})(function)  # pyright: ignore


def exact_part(function):
    """Decorator: the same for arithmetic of which no rounding may change."""
    return numba.njit(pipeline_class=_PartCompiler, **{**OPTIONS, "fastmath": False})(function)  # pyright: ignore


class _SelfContained(JITCodeLibrary):
    """Compiled code that calls its own copy of every part.

    Numba leaves the parts' symbols to its linker, which binds the first definition that the process holds: the part's own
    code in the process that compiled it, optimised separately, and the copy in here where it came from the cache. Sums
    would round differently in the process that compiles than in later ones.
    """

    def finalize(self):
        callees: dict[JITCodeLibrary, None] = {}

        def add(library):
            for callee in library._linking_libraries:
                if callee not in callees:
                    add(callee)
                    callees[callee] = None

        add(self)
        # callers first: the linker leaves out what nobody calls yet
        self._linking_libraries = list(reversed(callees))
        super().finalize()

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
        _log.warning("compiling %s for this machine, which takes seconds%s", self.__name__, kept)
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
