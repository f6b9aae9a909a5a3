"""What numba lacks on CPUs: an exponential that vectorises, half precision, and prefetching."""

from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from .compiled import compiled

# 2**23 * 1.5: adding it to a float32 rounds that to a whole number, and leaves it in the low bits.
_ROUNDING = np.float32(12582912.0)
_LOWEST = np.float32(-87.0)  # exp of less is below the normal numbers of float32
_LOG2_E = np.float32(1.44269504)
_LN_2_HIGH, _LN_2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)  # sum to log 2
_TO_NORMAL = np.float32(2.0**112)  # from the exponents of float16 to those of float32
_BITS_OF_EXPONENT = np.uint32(0x7C00)  # of float16; all are set in inf and NaN


# -- exponential -----------------------------------------------------------------------------------
def exponential(x: Any) -> Any:
    """`exp(x)` of a float32 in [-87, 0], within 1e-7 of it, or of a float64; less is taken for -87.

    Of additions, multiplications and shifts alone, so that compilers make vectors of it.
    """
    return _exponential(x) if isinstance(x, np.float32) else np.exp(x)


@compiled()
def _exponential(x: Any) -> Any:
    x = max(x, _LOWEST)
    shifted = x * _LOG2_E + _ROUNDING
    twos = shifted - _ROUNDING
    rest = (x - twos * _LN_2_HIGH) - twos * _LN_2_LOW  # in [-log(2) / 2, log(2) / 2]
    # The polynomial of least error there, as in Moshier's Cephes.
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


# -- half precision --------------------------------------------------------------------------------
def as_words(values: Any) -> Any:
    """Return an array of float16 as one of uint16 for `widened`; others as they are."""
    return values.view(np.uint16) if values.dtype == np.float16 else values


def _by_bits(bits: Any) -> Any:
    """The float32 of the same value as the float16 that `bits` are of."""
    word = np.uint32(bits)
    # The multiplication makes normal numbers of subnormal ones as well, and loses nothing.
    size = np.uint32((word & np.uint32(0x7FFF)) << np.uint32(13)).view(np.float32) * _TO_NORMAL
    special = (word & _BITS_OF_EXPONENT) == _BITS_OF_EXPONENT
    exponent = np.uint32(0x7F800000) if special else np.uint32(0)
    sign = (word & np.uint32(0x8000)) << np.uint32(16)
    return np.uint32(np.float32(size).view(np.uint32) | exponent | sign).view(np.float32)


def _has_halves() -> bool:
    """Whether the machine converts float16; LLVM would call a function that is not there."""
    features = binding.get_host_cpu_features()
    return bool(features.get("f16c") or features.get("fullfp16"))


def _widened(_: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        (kind,), (number,) = signature.args, args
        if kind == types.uint16:
            if _has_halves():
                number = builder.bitcast(number, ir.HalfType())
                return builder.fpext(number, ir.DoubleType())
            single = types.float32(types.uint16)
            number, kind = context.compile_internal(builder, _by_bits, single, args), types.float32
        return context.cast(builder, number, kind, types.float64)

    return types.float64(value), generate


def _widened_interpreted(value: Any) -> Any:
    return np.float64(_by_bits(value) if isinstance(value, np.uint16) else value)


# `widened(x)` is float64 of a float32 or float64, or of the float16 whose bits a uint16 holds.
widened: Any = (
    _widened_interpreted if config.DISABLE_JIT else intrinsic(_widened)  # type: ignore[attr-defined]
)


# -- prefetching -----------------------------------------------------------------------------------
def _prefetch(_: Any, array: Any, _row: Any, _column: Any) -> Any:
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
        read, near, data = 0, 2, 1  # near: the second cache, which waits for more at once
        numbers = (number(each) for each in (read, near, data))
        builder.call(function, [builder.bitcast(place, byte), *numbers])
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp), generate


# `prefetch(matrix, row, column)` has a value brought near that will be read soon; it reads nothing.
prefetch: Any = (
    (lambda _array, _row, _column: None)
    if config.DISABLE_JIT  # type: ignore[attr-defined]
    else intrinsic(_prefetch)
)
