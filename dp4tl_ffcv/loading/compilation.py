"""Compile each pipeline function once per process instead of once per Loader.

ffcv hands fresh closures to numba whenever a Loader is built, which costs seconds each time. Two
closures with the same code and the same captured constants compile to the same machine code, so
the first one's is used again. Functions that capture anything else are compiled as ffcv would.
"""

import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from ffcv.pipeline.compiler import Compiler
from numba.core.dispatcher import Dispatcher

__all__ = ["shared_compilation"]

_PLAIN = (bool, int, float, complex, str, bytes, type(None), np.generic, np.dtype)
_BY_IDENTITY = (Dispatcher, type, types.BuiltinFunctionType, types.ModuleType)

# Entries live as long as the process: they are small, and every Loader uses them.
_compiled: dict[Any, Any] = {}
_lock = threading.RLock()


class _NotAConstantError(Exception):
    """A function captures an object that may change: it must be compiled anew."""


@contextmanager
def shared_compilation() -> Iterator[None]:
    """Within the block, `Compiler.compile` returns functions that were compiled before."""
    with _lock:
        original = Compiler.__dict__["compile"]

        def compile_once(cls: Any, code: Callable[..., Any], signature: Any = None) -> Any:
            def build() -> Any:
                return original.__get__(None, cls)(code, signature)

            try:
                # The compiler's settings decide what the same code compiles to.
                settings = (
                    cls.is_enabled,
                    cls.num_threads > 1,
                    getattr(code, "is_parallel", False),
                )
                key = (_function_key(code), str(signature), settings)
            except _NotAConstantError:
                return build()
            if key not in _compiled:
                _compiled[key] = build()
            return _compiled[key]

        Compiler.compile = classmethod(compile_once)
        try:
            yield
        finally:
            Compiler.compile = original


def _function_key(function: Any) -> Any:
    """Describe a function by its code and everything it captures."""
    if not isinstance(function, types.FunctionType):
        return _constant_key(function)
    cells = tuple(_constant_key(cell.cell_contents) for cell in function.__closure__ or ())
    defaults = tuple(_constant_key(value) for value in function.__defaults__ or ())
    # Equal code in two modules may read different globals.
    return ("function", function.__code__, id(function.__globals__), cells, defaults)


def _constant_key(value: Any) -> Any:
    if isinstance(value, _PLAIN):
        return (type(value), value)
    if isinstance(value, tuple):
        return ("tuple", tuple(_constant_key(item) for item in value))
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return ("array", value.dtype.str, value.shape, value.tobytes())
    if isinstance(value, types.FunctionType):
        return _function_key(value)
    if isinstance(value, _BY_IDENTITY):
        return ("object", id(value))  # kept alive by the compiled function that captured it
    raise _NotAConstantError
