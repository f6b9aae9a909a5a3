"""Operations that numba lacks on CPUs: a vectorisable exponential, half precision, prefetching."""

from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import overload

from .compiled import compiled, compiled_intrinsic

# 2**23 * 1.5: adding it rounds a float32 to a whole number and leaves that in the low bits.
_ROUNDING = np.float32(12582912.0)
_LOWEST = np.float32(-87.0)  # below, exp is subnormal in float32
_LOG2_E = np.float32(1.44269504)
_LN_2_HIGH, _LN_2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)  # their sum is log 2

_FEATURES = binding.get_host_cpu_features()
# Without hardware conversion, LLVM would call a function that does not exist.
_HAS_HALVES = bool(_FEATURES.get("f16c") or _FEATURES.get("fullfp16"))


def exponential(x: Any) -> Any:
    """Return `exp(x)` of a float32 in [-87, 0] within 1e-7, or of a float64.

    Smaller float32 values give exp(-87). The float32 version uses only additions, multiplications
    and shifts, so that compilers vectorise it.
    """
    return _exponential(x) if isinstance(x, np.float32) else np.exp(x)


@compiled()
def _exponential(x: Any) -> Any:
    x = max(x, _LOWEST)
    shifted = x * _LOG2_E + _ROUNDING
    twos = shifted - _ROUNDING
    rest = (x - twos * _LN_2_HIGH) - twos * _LN_2_LOW  # in [-log(2) / 2, log(2) / 2]
    # Minimax polynomial of Moshier's Cephes.
    power = np.float32(1.9875691500e-4) * rest + np.float32(1.3981999507e-3)
    power = power * rest + np.float32(8.3334519073e-3)
    power = power * rest + np.float32(4.1665795894e-2)
    power = power * rest + np.float32(1.6666665459e-1)
    power = power * rest + np.float32(5.0000001201e-1)
    power = power * rest * rest + rest + np.float32(1.0)
    exponent = np.float32(shifted).view(np.int32) << np.int32(23)
    return np.int32(np.float32(power).view(np.int32) + exponent).view(np.float32)


@overload(exponential)
def _typed_exponential(x):  # type: ignore[no-untyped-def]  # numba compares it with the lambda's
    if x == types.float32:
        return lambda x: _exponential(x)
    return lambda x: np.exp(x)


def as_words(values: Any) -> Any:
    """Return float16 values in a form that `widened` accepts; other arrays unchanged.

    The form is uint16 words, or float32 on processors that cannot convert float16.
    """
    if values.dtype != np.float16:
        return values
    return values.view(np.uint16) if _HAS_HALVES else values.astype(np.float32)


@compiled_intrinsic
def widened(_: Any, value: Any) -> Any:
    """Convert a float32, a float64 or the uint16 word of a float16 to float64."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        (kind,), (number,) = signature.args, args
        if kind == types.uint16:
            return builder.fpext(builder.bitcast(number, ir.HalfType()), ir.DoubleType())
        return context.cast(builder, number, kind, types.float64)

    return types.float64(value), generate


@compiled_intrinsic
def prefetch(_: Any, array: Any, _row: Any, _column: Any) -> Any:
    """Request a matrix value's cache line without waiting for it."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        (kind, *_), (value, *at) = signature.args, args
        matrix = context.make_array(kind)(context, builder, value)
        place = cgutils.get_item_pointer(context, builder, kind, matrix, at)  # type: ignore[no-untyped-call]
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        function = cgutils.get_or_insert_function(  # type: ignore[no-untyped-call]
            builder.module,
            ir.FunctionType(ir.VoidType(), [byte, number, number, number]),
            "llvm.prefetch.p0",
        )
        read, second_level, data = 0, 2, 1  # the L2 cache queues more requests than the L1
        options = (number(each) for each in (read, second_level, data))
        builder.call(function, [builder.bitcast(place, byte), *options])
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp), generate
