"""Vectors of 32 uint16 in compiled code, with the operations that resizing needs.

In plain loops over uint16, the compiler widens to 32 or 64 bits and cannot transpose in registers.
These vectors are LLVM's generic ones, which map to the machine's registers.
"""

import operator
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import models, overload, register_model

from .compiled import compiled_intrinsic

LANES = 32  # elements in a vector: one AVX-512 register, two AVX2 or four NEON registers
TILE = 16  # side of the squares transposed in registers

_ONE, _INDEX = ir.IntType(16), ir.IntType(32)
_VECTOR = ir.VectorType(_ONE, LANES)


class _Lanes(types.Type):
    """A vector of `LANES` uint16 that numba keeps in registers."""

    def __init__(self) -> None:
        super().__init__(name="Lanes")


_lanes = _Lanes()


@register_model(_Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _VECTOR)  # type: ignore[no-untyped-call]


def _pointer(context: Any, builder: Any, array: tuple[Any, Any], at: Any, vector: Any) -> Any:
    # Numba's own indexing would test each index for negative values.
    kind, value = array
    data = context.make_array(kind)(context, builder, value).data
    return builder.bitcast(builder.gep(data, [at]), vector.as_pointer())


@compiled_intrinsic
def load(_: Any, array: Any, at: Any) -> Any:
    """Load `LANES` elements of uint8 or uint16."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        bits = signature.args[0].dtype.bitwidth
        vector = ir.VectorType(ir.IntType(bits), LANES)
        address = _pointer(context, builder, (signature.args[0], args[0]), args[1], vector)
        return builder.zext(builder.load(address, align=bits // 8), _VECTOR)

    return _lanes(array, at), generate


@compiled_intrinsic
def store(_: Any, array: Any, at: Any, value: Any) -> Any:
    """Store `LANES` elements of uint16."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address = _pointer(context, builder, (signature.args[0], args[0]), args[1], _VECTOR)
        builder.store(args[2], address, align=2)
        return context.get_dummy_value()

    return types.void(array, at, value), generate


@compiled_intrinsic
def spread(_: Any, _value: Any) -> Any:
    """Copy one number to all lanes."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        empty = ir.Constant(_VECTOR, ir.Undefined)
        first = builder.insert_element(empty, args[0], _INDEX(0))
        return builder.shuffle_vector(first, empty, ir.VectorType(_INDEX, LANES)([0] * LANES))

    return _lanes(types.uint16), generate


@compiled_intrinsic
def times(_: Any, _a: Any, _b: Any) -> Any:
    """Return `a * b / 65536` rounded down: a product with a fraction."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        # One instruction on most machines. LLVM also recognises widen, multiply, shift and narrow,
        # but not after the optimiser has moved a widening out of the loop.
        kind = ir.FunctionType(_VECTOR, [_VECTOR, _VECTOR, _INDEX])
        name = f"llvm.umul.fix.v{LANES}i16"
        multiply = cgutils.get_or_insert_function(  # type: ignore[no-untyped-call]
            builder.module, kind, name
        )
        return builder.call(multiply, [*args, _INDEX(16)])

    return _lanes(_lanes, _lanes), generate


def _register_operator(symbol: Any, name: str) -> None:
    @compiled_intrinsic
    def elementwise(_: Any, _a: Any, _b: Any) -> Any:
        def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            return getattr(builder, name)(*args)

        return _lanes(_lanes, _lanes), generate

    @overload(symbol)
    def typed(a, b):  # type: ignore[no-untyped-def]  # numba compares it with the lambda's
        if isinstance(a, _Lanes) and isinstance(b, _Lanes):
            return lambda a, b: elementwise(a, b)
        return None


_register_operator(operator.add, "add")
_register_operator(operator.sub, "sub")
_register_operator(operator.or_, "or_")
_register_operator(operator.lshift, "shl")
_register_operator(operator.rshift, "lshr")


@compiled_intrinsic
def transpose(
    _: Any,
    source: Any,
    source_at: Any,
    source_stride: Any,
    target: Any,
    target_at: Any,
    target_stride: Any,
) -> Any:
    """Transpose 16 x 16 uint16. Place and stride of a uint8 `target` are in bytes."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector = ir.VectorType(_ONE, TILE)

        def address(number: int, row: int) -> Any:
            array = signature.args[number], args[number]
            skip = builder.mul(args[number + 2], args[number + 2].type(row))
            at = builder.add(args[number + 1], skip)
            return _pointer(context, builder, array, at, vector)

        def shuffle(a: Any, b: Any, order: list[int]) -> Any:
            return builder.shuffle_vector(a, b, ir.VectorType(_INDEX, TILE)(order))

        # Halves are exchanged first. Then three rounds of interleaving within 128 bits, which every
        # machine does in one instruction, transpose two 8 x 8 squares side by side.
        left = [*range(8), *range(16, 24)]
        low = [half + side + i for half in (0, 8) for i in range(4) for side in (0, 16)]
        high = [i + 4 for i in low]
        rows = [builder.load(address(0, row), align=2) for row in range(TILE)]
        for first in (0, 8):
            order = [i + first for i in left]
            square = [shuffle(rows[i], rows[i + 8], order) for i in range(8)]
            for _ in range(3):
                square = [
                    shuffle(square[i], square[i + 4], order)
                    for i in range(4)
                    for order in (low, high)
                ]
            for row, line in enumerate(square):
                builder.store(line, address(3, first + row), align=1)
        return context.get_dummy_value()

    spots = (source, source_at, source_stride, target, target_at, target_stride)
    return types.void(*spots), generate
