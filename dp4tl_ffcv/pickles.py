"""Check a pickle before it is read, so that reading it takes time and memory in line with its size.

A pickle is a program. Without calling any function it can fill a table of 2**32 entries by one
instruction, or build by sharing a tuple whose hash takes 2**40 steps.
"""

from __future__ import annotations

import pickle as op
from dataclasses import dataclass
from mmap import mmap

_EXPANSION = 10  # a pickle may grow by this factor, and by the bytes below, by using objects again
_FREE_BYTES = 1 << 20
_MOST_NESTED = 100  # Python hashes, compares and deletes nested objects recursively
_MOST_LARGE_INTEGERS = 10_000  # such integers can be chosen to have equal hashes
_SHORT = 64  # bytes
_ENCODE, _LATIN = b"c_codecs\nencode\n", b"X\x06\0\0\0latin1"
_KEY_BYTES = 7  # integers of more bytes may have equal hashes

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
_KEYS = {
    op.NONE, op.NEWTRUE, op.NEWFALSE, op.BININT, op.BININT1, op.BININT2, op.BINFLOAT,
    op.SHORT_BINSTRING, op.BINSTRING, op.BINUNICODE, op.SHORT_BINBYTES, op.BINBYTES,
}  # fmt: skip
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
    is_key: bool = False
    is_inside: bool = False
    """Whether another value holds it."""
    code: bytes = b""
    """The instruction that made it."""
    name: bytes = b""
    """The whole instruction, if that is short."""
    is_latin: bool = False
    """Whether it is a pair of text and the codec Latin-1."""


def scan_pickle(data: bytes | mmap, start: int = 0) -> tuple[frozenset[str], int]:
    """Check the pickle at byte `start` of `data` without making any object of it.

    After this check, reading the pickle takes memory and steps in proportion to its size, if the
    functions that it calls do. It may hold what torch and Python 2 write by protocol 2: numbers,
    text, bytes, tuples, lists, dictionaries, and objects made by calls. `_codecs.encode`, by which
    they make bytes, may only encode text by Latin-1: other codecs return more than they take.

    Returns:
        The names of the functions and types in the pickle, as `module.name`, and the byte after
        its end. Decide by the names whether to read it.

    Raises:
        ValueError: the pickle is damaged, has another instruction, refers to objects that were
            not stored, is nested more than 100 deep, holds itself, has dictionary keys other than
            text, bytes and numbers, encodes other than by Latin-1, or would grow more than tenfold
            by using objects again.
    """
    scan = _Scan(data, start)
    try:
        while scan.step():
            pass
    except (IndexError, KeyError) as error:  # the stack is empty, or an object was not stored
        raise ValueError(f"the pickle is damaged at byte {scan.position}") from error
    return frozenset(scan.names), scan.position


class _Scan:
    """Simulates the stack and the memo of an unpickler with sizes in place of objects."""

    def __init__(self, data: bytes | mmap, start: int) -> None:
        self.data, self.position = data, start
        self.names: set[str] = set()
        self._stack: list[_Value] = []
        self._marks: list[int] = []
        self._memo: dict[int, _Value] = {}
        self._reused = self._large_integers = 0
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
            added = self._pop(_ADDING.get(code))
            if code in (op.SETITEM, op.SETITEMS) and not all(key.is_key for key in added[::2]):
                raise self._refused("has a dictionary key other than text, bytes or a number")
            self._add_to_last(added)
        elif code not in (op.PROTO, op.STOP):
            is_key = code in _KEYS or (code == op.LONG1 and size <= _KEY_BYTES + 2)
            self._large_integers += code == op.LONG1 and not is_key
            if self._large_integers > _MOST_LARGE_INTEGERS:
                raise self._refused(f"has more than {_MOST_LARGE_INTEGERS} large integers")
            name = self.data[at : self.position] if size < _SHORT else b""
            self._stack.append(_Value(size, is_key=is_key, code=code, name=name))
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
            module, name = data[at:middle], data[middle + 1 : end - 1]
            self.names.add(f"{module.decode(errors='replace')}.{name.decode(errors='replace')}")
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

    def _join(self, code: bytes, size: int, held: list[_Value]) -> None:
        if code in (op.REDUCE, op.NEWOBJ) and held[0].name == _ENCODE and not held[1].is_latin:
            raise self._refused("encodes something other than text by Latin-1")
        is_pair = code in (op.TUPLE, op.TUPLE2) and len(held) == 2
        is_latin = is_pair and held[0].code == op.BINUNICODE and held[1].name == _LATIN
        self._stack.append(_Value(size, is_latin=is_latin))
        self._add_to_last(held)

    def _add_to_last(self, values: list[_Value]) -> None:
        holder = self._stack[-1]
        for value in values:
            value.is_inside = True
        if holder.is_inside:  # its size counts in others already
            raise self._refused("holds an object that grows after it was used")
        for value in values:
            holder.size += value.size
            holder.depth = max(holder.depth, value.depth + 1)
        if holder.depth > _MOST_NESTED:
            raise self._refused(f"is nested more than {_MOST_NESTED} deep")

    def _refused(self, why: str) -> ValueError:
        return ValueError(f"the pickle {why}, at byte {self.position}")
