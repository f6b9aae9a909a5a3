"""Mutations of bytes, of text and of JSON: pure functions of a random generator and their input."""

import copy
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

Span = tuple[int, int]
"""Offset and size, in bytes, of a number in a file's structure."""

_MOST_STEPS = 4
_BITS = (7, 8, 15, 16, 31, 32, 40, 48, 62, 63, 64)


def mutated(
    rng: np.random.Generator, data: bytes, spans: Sequence[Span] = (), donor: bytes = b""
) -> bytes:
    """Return `data` after one to four mutations.

    Args:
        rng: source of all choices.
        data: a valid file.
        spans: places of numbers that the format's readers rely on. Half of the mutations hit them.
        donor: another valid file of the format, to take parts from.
    """
    result = bytearray(data)
    for _ in range(1 + int(rng.integers(_MOST_STEPS)) * int(rng.integers(2))):
        if spans and rng.random() < 0.5:
            _change_number(rng, result, spans[int(rng.integers(len(spans)))], spans)
        else:
            _BYTE_STEPS[int(rng.choice(len(_BYTE_STEPS), p=_ODDS))](rng, result, donor or data)
    return bytes(result)


def boundary(rng: np.random.Generator, bits: int, old: int = 0) -> int:
    """Return a number of `bits` bits that readers often get wrong, near `old` or at a limit."""
    limits = [1 << each for each in _BITS if each <= bits]
    near = (old, old * 2, old // 2, -old, *limits, 0)
    value = near[int(rng.integers(len(near)))] + int(rng.integers(-2, 3))
    if rng.random() < 0.1:
        value = int(rng.integers(1 << 63))
    return value % (1 << bits)


def _change_number(
    rng: np.random.Generator, data: bytearray, span: Span, spans: Sequence[Span]
) -> None:
    at, size = span
    if at + size > len(data):
        return
    old = int.from_bytes(data[at : at + size], "little")
    others = [other for other in spans if other[1] == size]
    if rng.random() < 0.3:  # the value of another place: a pointer to another sample, for example
        start = others[int(rng.integers(len(others)))][0]
        new = bytes(data[start : start + size])
    else:
        new = boundary(rng, 8 * size, old).to_bytes(size, "little")
    data[at : at + len(new)] = new


def _flip(rng: np.random.Generator, data: bytearray, _: bytes) -> None:
    for _ in range(1 + int(rng.integers(8))):
        if data:
            data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))


def _overwrite(rng: np.random.Generator, data: bytearray, _: bytes) -> None:
    at, size = _part(rng, data, 16)
    fill = (bytes(size), b"\xff" * size, rng.bytes(size))
    data[at : at + size] = fill[int(rng.integers(3))]


def _truncate(rng: np.random.Generator, data: bytearray, _: bytes) -> None:
    del data[int(rng.integers(len(data) + 1)) :]


def _extend(rng: np.random.Generator, data: bytearray, _: bytes) -> None:
    size = int(rng.integers(1, 64))
    data += bytes(size) if rng.random() < 0.5 else rng.bytes(size)


def _splice(rng: np.random.Generator, data: bytearray, donor: bytes) -> None:
    start, size = _part(rng, donor, 256)
    at = int(rng.integers(len(data) + 1)) if rng.random() < 0.5 else start
    data[at : at + size] = donor[start : start + size]


def _repeat(rng: np.random.Generator, data: bytearray, _: bytes) -> None:
    at, size = _part(rng, data, 64)
    data[at:at] = data[at : at + size] * int(rng.integers(1, 4))


def _delete(rng: np.random.Generator, data: bytearray, _: bytes) -> None:
    at, size = _part(rng, data, 64)
    del data[at : at + size]


def _swap(rng: np.random.Generator, data: bytearray, _: bytes) -> None:
    first, size = _part(rng, data, 64)
    second = int(rng.integers(len(data) + 1))
    if first + size <= second <= len(data) - size:
        one, other = data[first : first + size], data[second : second + size]
        data[first : first + size], data[second : second + size] = other, one


def _part(rng: np.random.Generator, data: bytes | bytearray, largest: int) -> Span:
    at = int(rng.integers(len(data) + 1))
    return at, min(int(rng.integers(1, largest + 1)), len(data) - at)


_Step = Callable[[np.random.Generator, bytearray, bytes], None]
_BYTE_STEPS: tuple[_Step, ...] = (
    _flip, _overwrite, _truncate, _extend, _splice, _repeat, _delete, _swap
)  # fmt: skip
_ODDS = (0.35, 0.2, 0.08, 0.07, 0.1, 0.07, 0.06, 0.07)


WORDS = (
    "0", "-1", "1", "1e400", "-0.0", "nan", "NaN", "Infinity", "null", "true", "no", "~", '""',
    "''", "[]", "{}", "[[[[]]]]", "18446744073709551616", "9223372036854775808", "1_000", "0x7f",
    "1" * 5000, "\\ud800", "\u202e", "\x1b[2J", "\0", "\n", "\r", "\t", ",", ";", ":", "{", "}",
    "[", "]", '"', "'", "&a", "*a", "!!python/object/apply:os.system", "<<", "../..", "/dev/zero",
    "/", ".", "%s", "${HOME}",
)  # fmt: skip


def mutated_text(rng: np.random.Generator, text: str, words: Sequence[str] = ()) -> bytes:
    """Return the bytes of `text` after mutations of its tokens and lines, and sometimes its bytes.

    `words` are further tokens to insert, for example names that the format knows.
    """
    for _ in range(1 + int(rng.integers(3))):
        step = _TEXT_STEPS[int(rng.integers(len(_TEXT_STEPS)))]
        text = step(rng, text, (*WORDS, *words))
    data = text.encode("utf-8", "surrogatepass")
    return mutated(rng, data) if rng.random() < 0.2 else data


def _replace_token(rng: np.random.Generator, text: str, words: Sequence[str]) -> str:
    start, end = _token(rng, text)
    return text[:start] + _pick(rng, words) + text[end:]


def _insert_word(rng: np.random.Generator, text: str, words: Sequence[str]) -> str:
    at = int(rng.integers(len(text) + 1))
    return text[:at] + _pick(rng, words) + text[at:]


def _copy_token(rng: np.random.Generator, text: str, _: Sequence[str]) -> str:
    (start, end), (first, last) = _token(rng, text), _token(rng, text)
    return text[:first] + text[start:end] + text[last:]


def _change_lines(rng: np.random.Generator, text: str, _: Sequence[str]) -> str:
    lines = text.splitlines(keepends=True)
    if not lines:
        return text
    at, to = (int(number) for number in rng.integers(len(lines), size=2))
    how = int(rng.integers(4))
    if how == 0:
        del lines[at]
    elif how == 1:
        lines.insert(to, lines[at])
    elif how == 2:
        lines[at], lines[to] = lines[to], lines[at]
    else:
        lines[at] = "  " + lines[at]
    return "".join(lines)


def _nest(rng: np.random.Generator, text: str, _: Sequence[str]) -> str:
    start, end = _token(rng, text)
    depth = int(rng.choice([1, 3, 100, 3000]))
    return text[:start] + "[" * depth + text[start:end] + "]" * depth + text[end:]


def _cut(rng: np.random.Generator, text: str, _: Sequence[str]) -> str:
    return text[: int(rng.integers(len(text) + 1))]


def _token(rng: np.random.Generator, text: str) -> Span:
    """Return start and end of a run of letters and digits near a random place."""
    if not text:
        return 0, 0
    start = end = int(rng.integers(len(text)))
    while start > 0 and (text[start - 1].isalnum() or text[start - 1] in "-._"):
        start -= 1
    while end < len(text) and (text[end].isalnum() or text[end] in "-._"):
        end += 1
    return start, end


def _pick(rng: np.random.Generator, items: Sequence[Any]) -> Any:
    return items[int(rng.integers(len(items)))]


_TextStep = Callable[[np.random.Generator, str, Sequence[str]], str]
_TEXT_STEPS: tuple[_TextStep, ...] = (
    _replace_token, _replace_token, _insert_word, _copy_token, _change_lines, _nest, _cut
)  # fmt: skip


_VALUES: tuple[Any, ...] = (
    0, -1, 1, 0.5, -0.0, 5e-324, 1e308, math.inf, math.nan, 1 << 53, 1 << 63, 1 << 64, 10**400, "",
    "x" * 300, "0", "<script>", '"', "\x1b[2J\u202e\n\0", "\ud800", "/", "..", None, True, False,
    [], {}, [[]], [None], {"": 0},
)  # fmt: skip


def mutated_json(rng: np.random.Generator, data: bytes, words: Sequence[str] = ()) -> bytes:
    """Return valid JSON with other entries, or the text after other mutations.

    `words` are texts to put in, for example names that the format knows.
    """
    if rng.random() < 0.3:
        return mutated_text(rng, data.decode(), words)
    root = json.loads(data)
    for _ in range(1 + int(rng.integers(3))):
        if not (places := list(_places(root))):
            break
        inside, key = _pick(rng, places)
        other, other_key = _pick(rng, places)
        how = int(rng.integers(4))
        if how == 0:
            del inside[key]
        elif how == 1:
            inside[key] = copy.deepcopy(other[other_key])
        elif how == 2 and isinstance(inside[key], int | float):
            with suppress(OverflowError):  # an integer too large for a float stays
                inside[key] *= _pick(rng, (-1, 0, 2, 0.5, 1e-9, 1e300))
        else:
            inside[key] = _pick(rng, (*_VALUES, *words))
    return json.dumps(root).encode()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each list or object in a JSON value with each of its keys."""
    keys = list(value) if isinstance(value, dict) else range(len(value))
    for key in keys if isinstance(value, dict | list) else ():
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])
