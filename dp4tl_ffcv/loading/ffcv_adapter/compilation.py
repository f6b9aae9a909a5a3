"""Compile each pipeline function once per process instead of once per Loader.

ffcv compiles new closures whenever a Loader is built, which takes seconds. Two closures with equal
code that read equal constants, from their cells or their modules, compile to the same machine code.
So the second closure reuses the machine code of the first. Functions that read other objects are
compiled every time, as in ffcv.
"""

import ctypes
import os
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numba
import numpy as np
from ffcv.fields.basics import BasicDecoder
from ffcv.pipeline.compiler import Compiler
from numba.core.dispatcher import Dispatcher

from ...validate import resolve_num_workers

_PLAIN = (bool, int, float, complex, str, bytes, type(None), np.generic, np.dtype)
_C_FUNCTION: Any = ctypes._CFuncPtr  # type: ignore[attr-defined]  # missing in the stub
_BY_IDENTITY = (Dispatcher, type, types.BuiltinFunctionType, _C_FUNCTION)
# Packages whose attributes never change. Attributes of other packages may have changed since numba
# compiled their values.
_FIXED_PACKAGES = {"cmath", "ctypes", "math", "numba", "numpy", "random"}

# Kept for the whole process: entries are small, and every Loader uses them.
_compiled: dict[Any, Any] = {}
_lock = threading.RLock()


def _renew_lock() -> None:
    global _lock
    _lock = threading.RLock()  # a thread that the forked process does not have may hold the old one


os.register_at_fork(after_in_child=_renew_lock)


_BASIC_DECODER = BasicDecoder().generate_code().__code__


@numba.njit(cache=True, nogil=True)
def copy_values(ids: Any, values: Any, metadata: Any, _: Any) -> Any:
    """Decode numbers as ffcv's `BasicDecoder` does, which numba cannot keep on disk.

    Args:
        ids: sample ids `(n,)`, checked by the loader.
        values: memory for at least n values `(capacity, 1)`.
        metadata: the field's values of all samples.
        _: ffcv's memory state.

    Returns:
        The first n rows of `values`.
    """
    for row in range(len(ids)):
        values[row] = metadata[ids[row]]
    return values[: len(ids)]


class _NotAConstantError(Exception):
    """A function reads an object that can change, so that it must be compiled again."""


def precompiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a function that only calls compiled functions, which numba keeps on disk."""
    function.__dict__["dp4tl_precompiled"] = True
    return function


def num_threads(num_workers: int | None) -> int:
    """Return the number of threads for ffcv's `num_workers`, at most numba's limit.

    None and values below 1 mean all cores, shared among the processes of this machine.
    """
    wanted = resolve_num_workers(None if num_workers is None or num_workers < 1 else num_workers)
    return min(wanted, int(numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]


@contextmanager
def shared_compilation() -> Iterator[None]:
    """Make `Compiler.compile` reuse compiled functions within the block."""
    with _lock:
        original = Compiler.__dict__["compile"]

        def compile_once(cls: Any, code: Callable[..., Any], signature: Any = None) -> Any:
            if hasattr(code, "dp4tl_precompiled"):
                return code
            if cls.is_enabled and getattr(code, "__code__", None) is _BASIC_DECODER:
                return copy_values

            build = original.__get__(None, cls)
            # The compiler's settings change the machine code of equal functions.
            parallel = getattr(code, "is_parallel", False)
            settings = (cls.is_enabled, cls.num_threads > 1, parallel, str(signature))
            try:
                key = (_constant_key(code, ()), settings)
            except _NotAConstantError:
                return build(code, signature)
            if key not in _compiled:
                _compiled[key] = build(code, signature)
            return _compiled[key]

        Compiler.compile = classmethod(compile_once)
        try:
            yield
        finally:
            Compiler.compile = original


def _function_key(function: types.FunctionType, around: tuple[Any, ...]) -> Any:
    """Return a key made of a function's code and of every value that numba compiles into it."""
    if function in around:
        return ("recursion", around.index(function))
    around = (*around, function)
    names = _names(function.__code__)
    read = [function.__globals__.get(name) for name in names if name in function.__globals__]
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    values = tuple(_constant_key(value, around) for value in (*read, *cells, *defaults))
    return ("function", function.__code__, values)


def _names(code: types.CodeType) -> list[str]:
    """List the names that a code object reads: globals and attributes."""
    inner = [
        name for part in code.co_consts if isinstance(part, types.CodeType) for name in _names(part)
    ]
    return [*code.co_names, *inner]


def _constant_key(value: Any, around: tuple[Any, ...]) -> Any:
    if isinstance(value, _PLAIN):
        return (type(value), value)
    if isinstance(value, tuple):
        return ("tuple", tuple(_constant_key(item, around) for item in value))
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return ("array", value.dtype.str, value.shape, value.tobytes())
    if isinstance(value, types.FunctionType):
        return _function_key(value, around)
    if isinstance(value, _BY_IDENTITY) or _is_fixed(value):
        return ("object", id(value))  # the compiled function that reads it keeps it alive
    raise _NotAConstantError


def _is_fixed(value: Any) -> bool:
    """Return whether a value is a module or a function of a package that never changes."""
    is_module = isinstance(value, types.ModuleType)
    home = value.__name__ if is_module else getattr(value, "__module__", None)
    return (is_module or callable(value)) and str(home).split(".")[0] in _FIXED_PACKAGES
