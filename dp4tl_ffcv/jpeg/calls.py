"""TurboJPEG's functions, for compiled code. Arguments are numbers and addresses."""

import ctypes
from typing import Any

from llvmlite import binding as llvm
from numba import types

from .turbojpeg import library

_NUMBA_TYPES: dict[Any, Any] = {
    ctypes.c_int: types.int32,
    ctypes.c_ulong: types.uint64,
    ctypes.c_void_p: types.int64,
    ctypes.c_char_p: types.int64,
}


def _external(function: Any) -> Any:
    """Return a C function that compiled code calls by name.

    Numba also takes ctypes functions, but compiles their addresses in and so cannot cache the code.
    """
    name = f"dp4tl_ffcv.{function.__name__}"
    llvm.add_symbol(name, ctypes.cast(function, ctypes.c_void_p).value)
    result, *arguments = (_NUMBA_TYPES[kind] for kind in (function.restype, *function.argtypes))
    return types.ExternalFunction(name, result(*arguments))


new_decompressor = _external(library().tjInitDecompress)
delete_decompressor = _external(library().tjDestroy)
read_header = _external(library().tjDecompressHeader3)
decode_rgb = _external(library().tjDecompress2)
decode_planes = _external(library().tjDecompressToYUVPlanes)
error_code = _external(library().tjGetErrorCode)
error_text = _external(library().tjGetErrorStr2)
_strstr = ctypes.CDLL(None).strstr
_strstr.restype, _strstr.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_void_p]
find_text = _external(_strstr)
