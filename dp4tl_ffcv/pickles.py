"""Check a pickle before it is read, so that reading it takes time and memory in line with its size.

A pickle is a program. Without calling any function it can fill a table of 2**32 entries by one
instruction, or build by sharing a tuple whose hash takes 2**40 steps.
"""

from __future__ import annotations

import pickle as op
from collections.abc import Callable
from dataclasses import dataclass
from mmap import mmap

_EXPANSION = 10  # a pickle may grow by this factor, and by the bytes below, by using objects again
_FREE_BYTES = 1 << 20
_MOST_NESTED = 100  # Python hashes, compares and deletes nested objects recursively
_SHORT = 64  # bytes
_SHOWN = 200  # characters of a name in an error
_LATIN = {b"X\x06\0\0\0latin1", b"X\x07\0\0\0latin-1"}
# Functions that make bytes, and containers that a call can fill with keys.
_ENCODE = b"c_codecs\nencode\n"
_ENCODERS = {_ENCODE, b"c__builtin__\nbytearray\n", b"cbuiltins\nbytearray\n"}
_CONTAINERS = {
    b"c__builtin__\nset\n", b"cbuiltins\nset\n",
    b"ccollections\nCounter\n", b"ccollections\nOrderedDict\n",
}  # fmt: skip
_CHECKED = _ENCODERS | _CONTAINERS
# Hashes have 8 bytes. Only keys of more bytes can be chosen so that many of them collide. Then each
# is compared with all others: the limit is near 9,700 pairs of large integers, which take 0.8 s.
_KEY_BYTES = 9  # with one for a tuple around 8
_MOST_COLLISIONS = 1 << 35  # bytes of such keys of one container, squared; in all containers

# Instructions by their number of argument bytes, and by the bytes of the length that comes first.
# Others, which newer protocols have, are refused: neither torch nor Python 2 writes them.
_FIXED = {
    op.PROTO: 1, op.STOP: 0, op.NONE: 0, op.NEWTRUE: 0, op.NEWFALSE: 0,
    op.BININT: 4, op.BININT1: 1, op.BININT2: 2, op.BINFLOAT: 8,
    op.MARK: 0, op.TUPLE: 0, op.EMPTY_TUPLE: 0, op.TUPLE1: 0, op.TUPLE2: 0, op.TUPLE3: 0,
    op.EMPTY_LIST: 0, op.EMPTY_DICT: 0, op.EMPTY_SET: 0,
    op.APPEND: 0, op.APPENDS: 0, op.SETITEM: 0, op.SETITEMS: 0,
    op.REDUCE: 0, op.NEWOBJ: 0, op.BUILD: 0, op.BINPERSID: 0,
    op.BINGET: 1, op.LONG_BINGET: 4, op.BINPUT: 1, op.LONG_BINPUT: 4,
}  # fmt: skip
_COUNTED = {
    op.SHORT_BINSTRING: 1, op.BINSTRING: 4, op.BINUNICODE: 4, op.SHORT_BINBYTES: 1, op.BINBYTES: 4,
    op.LONG1: 1,
}  # fmt: skip
_NUMBERS = {
    op.NONE, op.NEWTRUE, op.NEWFALSE, op.BININT, op.BININT1, op.BININT2, op.BINFLOAT, op.LONG1,
}  # fmt: skip
_NAMES = {op.GLOBAL, *_COUNTED} - {op.LONG1}  # nobody can choose the hashes of names, text, bytes
_CALLS = {op.REDUCE, op.NEWOBJ}
_TUPLES = {op.TUPLE, op.EMPTY_TUPLE, op.TUPLE1, op.TUPLE2, op.TUPLE3}
# Instructions that replace the last values by one that holds them, and the number of values.
_JOINING = {
    op.EMPTY_TUPLE: 0, op.TUPLE1: 1, op.TUPLE2: 2, op.TUPLE3: 3,
    op.REDUCE: 2, op.NEWOBJ: 2, op.BINPERSID: 1,
}  # fmt: skip
# Instructions that add the last values to the one before them.
_ADDING = {op.APPEND: 1, op.SETITEM: 2, op.BUILD: 1}


@dataclass(slots=True)
class _Value:
    size: int
    """Bytes of its pickle if nothing in it were used again."""
    depth: int = 0
    key_bytes: int = 0
    """Bytes that decide its hash, 0 for a value that is not accepted as a key."""
    chosen: int = 0
    """Bytes of the keys in it, or of itself, that can be chosen to have equal hashes."""
    hashed: int = 0
    """Bytes of its own keys whose hashes can be chosen to be equal."""
    is_inside: bool = False
    """Whether another value holds it."""
    code: bytes = b""
    """The instruction that made it."""
    name: bytes = b""
    """The whole instruction, or that of the function that was called, if that is short."""
    makes_bytes: bool = False
    """Whether it is one of the tuples of arguments from which bytes are made."""


def scan_pickle(
    data: bytes | mmap, start: int = 0, *, accepts: Callable[[str], bool] | None = None
) -> int:
    """Check the pickle at byte `start` of `data` without making any object of it.

    After this check, reading the pickle takes memory and steps in proportion to its size, provided
    that the functions it calls do so too. It may hold what torch and Python 2 write by protocol 2:
    numbers, text, bytes, tuples, lists, dictionaries, and objects made by calls. Bytes and byte
    arrays are made by calls, and only from Latin-1 text: other codecs return more than they take,
    and a byte array can be made from its length alone.

    Keys of dictionaries are text, bytes, numbers, names, and tuples of them. Hashing a tuple takes
    steps in proportion to its parts, and a tuple that is used again counts with its full size. Keys
    of more than 8 bytes can be chosen to have equal hashes, which takes steps in proportion to the
    square of their number: one dictionary, set, `Counter` or `OrderedDict` may have about 180 kB
    of them.

    Args:
        data: the pickle, and what comes before and after it.
        start: its first byte.
        accepts: decides whether a function or type `module.name` may be in it. None accepts all.

    Returns:
        The byte after its end.

    Raises:
        ValueError: a name is not accepted, or the pickle is damaged, has another instruction,
            refers to objects that were not stored, is nested more than 100 deep, holds itself, has
            other keys or too many whose hashes can be equal, makes bytes otherwise, passes one of
            the functions above to a function, or would grow more than tenfold by using objects
            again.
    """
    scan = _Scan(data, start, accepts)
    try:
        while scan.step():
            pass
    except (IndexError, KeyError) as error:  # the stack is empty, or an object was not stored
        raise ValueError(f"the pickle is damaged at byte {scan.position}") from error
    return scan.position


class _Scan:
    """Simulates the stack and the memo of an unpickler with sizes in place of objects."""

    def __init__(
        self, data: bytes | mmap, start: int, accepts: Callable[[str], bool] | None
    ) -> None:
        self.data, self.position = data, start
        self._accepts = accepts
        self._stack: list[_Value] = []
        self._marks: list[int] = []
        self._memo: dict[int, _Value] = {}
        self._reused = self._collisions = 0
        self._limit = _FREE_BYTES + _EXPANSION * (len(data) - start)

    def step(self) -> bool:
        """Check one instruction. Return whether another one follows."""
        at = self.position
        code = self.data[at : at + 1]
        argument = self._argument(code)
        size = self.position - at
        if code in (op.BINGET, op.LONG_BINGET):
            self._get(self._memo[argument])
        elif code in (op.BINPUT, op.LONG_BINPUT):
            if argument > len(self._memo) + 1:  # the unpickler makes room up to this number
                raise self._refused(f"stores object {argument} after {len(self._memo)} others")
            self._memo[argument] = self._stack[-1]
        elif code == op.MARK:
            self._marks.append(len(self._stack))
        elif code in _JOINING or code == op.TUPLE:
            self._join(code, size, self._pop(_JOINING.get(code)))
        elif code in _ADDING or code in (op.APPENDS, op.SETITEMS):
            self._add(code, self._pop(_ADDING.get(code)))
        elif code not in (op.PROTO, op.STOP):
            key_bytes = 1 if code in _NAMES else max(1, size - 1) if code in _NUMBERS else 0
            name = self.data[at : self.position] if size < _SHORT else b""
            self._stack.append(_Value(size, 0, key_bytes, _chosen(key_bytes), code=code, name=name))
        return code != op.STOP

    def _argument(self, code: bytes) -> int:
        """Move past an instruction. Return its argument if that is a number."""
        data, at = self.data, self.position + 1
        number = 0
        if code == op.GLOBAL:
            middle = data.find(b"\n", at)
            end = data.find(b"\n", middle + 1) + 1
            if middle < 0 or not end:
                raise IndexError
            name = data[at : end - 1].decode(errors="replace").replace("\n", ".")
            if self._accepts is not None and not self._accepts(name):
                raise self._refused(f"names {name[:_SHOWN]}")
        elif code in _COUNTED:
            first = at + _COUNTED[code]
            end = first + int.from_bytes(data[at:first], "little")
        elif code in _FIXED:
            end = at + _FIXED[code]
            number = int.from_bytes(data[at:end], "little")
        elif not code:
            raise IndexError
        else:
            raise self._refused(f"has the instruction {code!r}")
        if end > len(data):
            raise IndexError
        self.position = end
        return number

    def _get(self, value: _Value) -> None:
        self._reused += value.size
        if self._reused > self._limit:
            raise self._refused("would grow beyond ten times its size")
        self._stack.append(value)

    def _pop(self, count: int | None) -> list[_Value]:
        """Take the last `count` values, or those after the last mark, from the stack."""
        if count is None:
            first = self._marks.pop()
        else:
            first = len(self._stack) - count
            if first < (self._marks[-1] if self._marks else 0):
                raise IndexError
        values = self._stack[first:]
        del self._stack[first:]
        return values

    def _add(self, code: bytes, values: list[_Value]) -> None:
        self._check_handed(values)
        self._add_to_last(values)
        if code in (op.SETITEM, op.SETITEMS):
            keys = values[::2]
            if not all(key.key_bytes for key in keys):
                raise self._refused("has a key other than text, bytes, numbers or their tuples")
            self._hash(keys)
        elif code == op.BUILD and self._stack[-1].name in _CONTAINERS:
            self._hash(values)

    def _join(self, code: bytes, size: int, held: list[_Value]) -> None:
        value = _Value(size, code=code, makes_bytes=code == op.EMPTY_TUPLE)
        self._stack.append(value)
        if code in _CALLS:
            self._call(value, *held)
            return
        self._check_handed(held)
        self._add_to_last(held)
        if code in _TUPLES and all(part.key_bytes for part in held):
            value.key_bytes = 1 + sum(part.key_bytes for part in held)
            value.chosen = _chosen(value.key_bytes)
            if len(held) == 2:
                value.makes_bytes = held[0].code == op.BINUNICODE and held[1].name in _LATIN
            elif len(held) == 1:
                value.makes_bytes = held[0].name == _ENCODE

    def _call(self, result: _Value, function: _Value, arguments: _Value) -> None:
        result.name = function.name
        self._add_to_last([function, arguments])
        if result.name in _ENCODERS:
            if not arguments.makes_bytes:
                raise self._refused("makes bytes from something other than Latin-1 text")
            result.key_bytes = 1
            return
        if result.name in _CONTAINERS:
            self._hash([arguments])
        result.chosen += _KEY_BYTES + 1  # as its hash may be any

    def _hash(self, keys: list[_Value]) -> None:
        """Count the keys, or the values that hold them, which the last value takes."""
        holder = self._stack[-1]
        self._collisions -= holder.hashed**2
        holder.hashed += sum(key.chosen for key in keys)
        self._collisions += holder.hashed**2
        if self._collisions > _MOST_COLLISIONS:
            raise self._refused("has too many keys whose hashes can be equal")

    def _check_handed(self, values: list[_Value]) -> None:
        for value in values:
            if value.code == op.GLOBAL and value.name in _CHECKED:
                name = value.name[1:-1].decode(errors="replace").replace("\n", ".")
                raise self._refused(f"passes {name} on instead of calling it")

    def _add_to_last(self, values: list[_Value]) -> None:
        holder = self._stack[-1]
        for value in values:
            value.is_inside = True
        if holder.is_inside:  # its size counts in others already
            raise self._refused("holds an object that grows after it was used")
        for value in values:
            holder.size += value.size
            holder.chosen += value.chosen
            holder.depth = max(holder.depth, value.depth + 1)
        if holder.depth > _MOST_NESTED:
            raise self._refused(f"is nested more than {_MOST_NESTED} deep")

    def _refused(self, why: str) -> ValueError:
        return ValueError(f"the pickle {why}, at byte {self.position}")


def _chosen(key_bytes: int) -> int:
    return key_bytes if key_bytes > _KEY_BYTES else 0
