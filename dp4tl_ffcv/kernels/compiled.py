"""Compile functions once and keep the machine code on disk until its sources change."""

import hashlib
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

from llvmlite import binding as llvm
from numba import (  # type: ignore[attr-defined]  # numba's stub lacks `carray`
    carray,
    njit,
    types,
)
from numba.core.ccallback import CFunc
from numba.core.event import Listener, install_listener
from numba.extending import intrinsic

# No code that checks divisors: with Python's error model, each division may raise an error.
_OPTIONS: dict[str, Any] = {"error_model": "numpy"}

_Function = TypeVar("_Function", bound=Callable[..., Any])

_RELATIVE_IMPORT = re.compile(r"^\s*from (\.+)([\w.]*) import (\([^)]*\)|.*)", re.MULTILINE)
# Compiled code can call functions of these files only.
_MAKES_CODE = re.compile(r"\b(numba|compiled)\b")


def compiled(**options: Any) -> Callable[[_Function], _Function]:
    """Return a decorator: numba's `njit` with these options, without the GIL, cached on disk.

    Numba recompiles a function when its file changes. Machine code also contains constants and
    functions that the file imports, so here a change in one of the imported files counts as well.
    """

    def decorate(function: _Function) -> _Function:
        dispatcher: Any = njit(cache=True, nogil=True, **{**_OPTIONS, **options})(function)
        _stamp(dispatcher, function)
        return cast("_Function", dispatcher)

    return decorate


# For functions with a single caller: numba compiles them faster inside of the caller.
inlined = compiled(inline="always")


def native() -> Callable[[_Function], _Function]:
    """Return a decorator that compiles a function of integers as a C function, called by name.

    Numba optimises a function with everything that it calls, so each level of compiled functions
    adds seconds. It does not follow a call by name. Arrays are passed as addresses and sizes, see
    `memory_at`. The arguments and the result are int64, and only compiled code can call it.
    """

    def decorate(function: _Function) -> _Function:
        signature = types.int64(*[types.int64] * function.__code__.co_argcount)
        code: Any = CFunc(function, (signature.args, types.int64), locals={}, options=_OPTIONS)
        code.enable_caching()
        _stamp(code, function)
        code.compile()
        name = f"{function.__module__}.{function.__name__}"
        llvm.add_symbol(name, code.address)
        return cast("_Function", types.ExternalFunction(name, signature))

    return decorate


class CompileTimer(Listener):
    """Measures how long numba compiles. Loading compiled code from disk does not count."""

    def __init__(self) -> None:
        self.seconds = 0.0
        """Time on the clock."""
        self.processor_seconds = 0.0
        """Processor time of the process."""
        self._depth, self._started = 0, (0.0, 0.0)

    def on_start(self, _: object) -> None:
        """Begin, unless this compilation is part of another."""
        if self._depth == 0:
            self._started = time.perf_counter(), time.process_time()
        self._depth += 1

    def on_end(self, _: object) -> None:
        """Add the time of a compilation that is part of no other."""
        self._depth -= 1
        if self._depth == 0:
            self.seconds += time.perf_counter() - self._started[0]
            self.processor_seconds += time.process_time() - self._started[1]


@contextmanager
def compile_timer() -> Iterator[CompileTimer]:
    """Measure how long numba compiles in this process, in any thread, until the context ends."""
    timer = CompileTimer()
    with install_listener("numba:compile", timer):
        yield timer


def _stamp(code: Any, function: Callable[..., Any]) -> None:
    # Numba has no public way to set the stamp. Without this attribute, its own rule applies.
    stored: Any = getattr(getattr(code, "_cache", None), "_cache_file", None)
    if hasattr(stored, "_source_stamp"):
        stored._source_stamp = source_stamp(Path(function.__code__.co_filename))


def compiled_intrinsic(make: Callable[..., Any]) -> Any:
    """Return numba's intrinsic of `make`. Numba's own types describe `make` instead."""
    return intrinsic(make)


def _pointer(kind: Any) -> Any:
    """Return a function that makes a pointer to values of a type from an address."""
    pointer: Any = types.CPointer(kind)  # type: ignore[no-untyped-call]

    @compiled_intrinsic
    def point(_: Any, _address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

        return pointer(types.int64), generate

    return point


_bytes_pointer, _numbers_pointer = _pointer(types.uint8), _pointer(types.int64)


@njit(cache=True, nogil=True, inline="always")
def memory_at(address: int, size: int) -> Any:
    """Return `size` bytes at an address as uint8 `(size,)`."""
    return carray(_bytes_pointer(address), size)


@njit(cache=True, nogil=True, inline="always")
def numbers_at(address: int, shape: Any) -> Any:
    """Return the int64 at an address as an array of this shape."""
    return carray(_numbers_pointer(address), shape)


# Called by name: numba cannot cache code that calls a function of ctypes.
read_file: Any = types.ExternalFunction(
    "pread", types.intp(types.int32, types.uintp, types.uintp, types.int64)
)
# C's memcpy: a loop compiles to much more code.
copy_memory: Any = types.ExternalFunction(
    "memcpy",
    types.intp(types.intp, types.intp, types.intp),  # to, from, bytes
)


@cache
def source_stamp(path: Path) -> str:
    """Return a hash of a file and of the files that its compiled code may come from."""
    found, pending = set(), [path]
    while pending:
        source = pending.pop()
        if source not in found:
            found.add(source)
            pending.extend(_imported(source))
    digest = hashlib.sha256()
    for source in sorted(found):
        digest.update(source.read_bytes())
    return digest.hexdigest()


@cache
def _imported(path: Path) -> list[Path]:
    """List the files of this package from which a file imports constants or compiled code."""
    files: list[Path] = []
    for dots, module, imported in _RELATIVE_IMPORT.findall(path.read_text()):
        base = path.parents[len(dots) - 1].joinpath(*module.split("."))
        names = re.findall(r"\w+", imported)
        files.extend(base / f"{name}.py" for name in ("__init__", *names))
        home = base.with_suffix(".py")
        has_constant = any(name.isupper() for name in names)
        if home.is_file() and (has_constant or _MAKES_CODE.search(home.read_text())):
            files.append(home)
    return [file for file in files if file.is_file()]
