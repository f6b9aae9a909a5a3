"""Import ffcv in a fraction of a second, and keep it from editing numba's types.

On import, `ffcv.fields.rgb_image` fills a `numba.typed.Dict`, which compiles for seconds in every
process. ffcv only looks values up in it, so a plain dict serves as well.

To describe read-only memory, ffcv's memory managers set `mutable` on numba's shared type object for
`uint8[::1]` (and others). This changes the object's hash in every table that has it as a key.
Compiling more code, or freeing a Loader, can then fail with a KeyError. After `import_ffcv`, the
managers find types that are read-only from the start.

On import, `ffcv.pipeline.compiler` asks numba for one thread, which starts numba's threading layer.
With that of TBB on a machine with one core, a process that has forked since then never ends. After
`import_ffcv`, the layer starts when several threads are asked for.

Loading compiled code makes numba import `scipy.linalg`, which takes 0.2 s, to see whether matrix
products can be compiled. `import_ffcv` lets numba look for scipy without importing it.
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numba
from numba import typed, types
from numba.np.ufunc import parallel

_layers: Any = parallel  # has no types


class _ReadOnlyArrays:
    """Replacement for a numba number type whose subscripts give read-only array types."""

    def __init__(self, number: Any) -> None:
        self._number = number

    def __getitem__(self, subscript: Any) -> Any:
        array = self._number[subscript]
        return types.Array(array.dtype, array.ndim, array.layout, readonly=True)


class _Numba(ModuleType):
    """Replacement for numba in a module that edits its types."""

    def __init__(self, edited: tuple[str, ...]) -> None:
        super().__init__("numba")
        for name in edited:
            setattr(self, name, _ReadOnlyArrays(getattr(numba, name)))

    def __getattr__(self, name: str) -> Any:
        return getattr(numba, name)


def _import_numba_arrays() -> None:
    """Import numba's array functions without `scipy.linalg`.

    numba imports `scipy.linalg` again when it compiles a matrix product.
    """
    if "numba.np.arraymath" in sys.modules:
        return
    linalg: Any = import_module("numba.np.linalg")
    ensure_blas, linalg.ensure_blas = linalg.ensure_blas, _ensure_scipy
    try:
        arraymath: Any = import_module("numba.np.arraymath")
        arraymath.ensure_blas = ensure_blas
    finally:
        linalg.ensure_blas = ensure_blas


def _ensure_scipy() -> None:
    if find_spec("scipy") is None:
        raise ImportError("scipy is not installed")


def _set_num_threads(count: Any) -> None:
    """Set the threads of numba's parallel code. One thread needs no threading layer."""
    if count > 1 or _layers._is_initialized:
        _layers.set_num_threads(count)


def import_ffcv() -> None:
    """Import ffcv. Call this before the first import of ffcv in a package.

    If ffcv was imported before, only its memory managers are changed.
    """
    _import_numba_arrays()
    if "ffcv" not in sys.modules:
        typed_dict, typed.Dict = typed.Dict, dict
        patched: Any = numba
        set_num_threads, patched.set_num_threads = numba.set_num_threads, _set_num_threads
        try:
            import_module("ffcv")
        finally:
            typed.Dict, patched.set_num_threads = typed_dict, set_num_threads
    from ffcv.memory_managers import os_cache
    from ffcv.memory_managers.process_cache import manager as process_cache

    for module, edited in (
        (os_cache, ("uint8",)),
        (process_cache, ("uint8", "uint32", "uint64")),
    ):
        if module.nb is numba:
            module.nb = _Numba(edited)
