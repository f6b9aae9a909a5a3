"""Mutations of `.npy` and `.npz` files that keep the container readable, so that they go deeper."""

import io
import json
import zipfile
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from tests.campaigns.fuzz.mutate import boundary, mutated, mutated_text
from tests.campaigns.fuzz.target import FaultError

_BOMB = 128 << 20  # bytes that a compressed member unpacks to
_ODD: tuple[Any, ...] = (
    [], [[0, 1]], 3, ["a", "b"], [1.5, 2.5], [np.nan, 1], [np.inf, 1], [1e300, 1], [1j, 2],
    [-1, 5], [2, 1, 1], [2**62, 1], np.array([2**64 - 1], np.uint64), [True, False],
    np.array(["2020-01-01"], "M8[D]"), np.zeros(2, [("a", "i8")]), np.array([None, {}], object),
    np.zeros((0, 3)), np.array([b"x"]), np.float16(2), np.zeros((2, 0)), np.arange(12),
)  # fmt: skip
_SHAPES = ("(2**40,)", "(-1,)", "(1 << 70,)", "(1099511627776,)", "(4294967296, 4294967296)",
           "(0, 9223372036854775808)", "()", "(2, 3)", "(True,)", "'x'", "(2,", "[2]")  # fmt: skip
_TYPES = (
    "'|O'",
    "'<U1000000000'",
    "[('a', '<i8')] * 2",
    "'<f4'",
    "'>i8'",
    "'|V0'",
    "'<M8[D]'",
    "1",
)


def npy(values: Any) -> bytes:
    """Return the `.npy` file of an array. Objects are pickled, as an attacker would."""
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.asarray(values), allow_pickle=True)
    return stream.getvalue()


def mutated_npy(rng: np.random.Generator, data: bytes) -> bytes:
    """Return a `.npy` file with another header, other values, or damaged bytes."""
    how = int(rng.integers(5))
    if how == 0:
        return npy(_ODD[int(rng.integers(len(_ODD)))])
    size = 10 + int.from_bytes(data[8:10], "little")
    if how == 1:
        return data[:size] + mutated(rng, data[size:], [(at, 8) for at in range(0, 64, 8)])
    if how == 2:
        return mutated(rng, data, [(8, 2), (6, 1), (7, 1)])
    text = data[10:size].decode("latin-1")
    if how == 3:
        shape, kind = rng.choice(_SHAPES), rng.choice(_TYPES)
        text = str({"fortran_order": bool(rng.integers(2))})[:-1]
        text += f", 'shape': {shape}, 'descr': {kind if rng.integers(2) else repr('<i8')}}}\n"
        head = text.encode()
    else:
        head = mutated_text(rng, text, ("shape", "descr", "fortran_order"))[:60_000]
    return data[:8] + len(head).to_bytes(2, "little") + head + data[size:]


def mutated_npz(rng: np.random.Generator, data: bytes, words: tuple[str, ...] = ()) -> bytes:
    """Return an `.npz` file of which one member, the JSON header or the zip itself is mutated."""
    if rng.random() < 0.3:
        directory = data.rfind(b"PK\x05\x06")
        spans = [(directory + at, size) for at, size in ((8, 2), (10, 2), (12, 4), (16, 4))]
        first = data.find(b"PK\x01\x02")
        spans += [(first + at, size) for at, size in ((10, 2), (16, 4), (20, 4), (24, 4), (42, 4))]
        spans += [(at, size) for at, size in ((8, 2), (14, 4), (18, 4), (22, 4), (26, 2))]
        return mutated(rng, data, spans)
    members = dict(_members(data))
    name = sorted(members)[int(rng.integers(len(members)))]
    how = rng.random()
    if how < 0.005:
        return _bomb(data, name)
    if how < 0.07:
        del members[name]
    elif how < 0.12:
        members[name] = members[sorted(members)[int(rng.integers(len(members)))]]
    elif name == "header.npy" and how < 0.9:
        text = str(np.load(io.BytesIO(members[name])))
        changed = mutated_text(rng, text, words).decode("utf-8", "replace")
        members[name] = npy(changed.replace("\ud800", "?"))
    else:
        members[name] = mutated_npy(rng, members[name])
    return _zipped(members, zipfile.ZIP_DEFLATED if rng.random() < 0.1 else zipfile.ZIP_STORED)


def check_artifact(artifact: Any, data: bytes, intact: bytes) -> str:
    """Return the outcome of an artifact that was loaded from `data`.

    Raise `FaultError` if numpy and json read other arrays or facts in these bytes.
    """
    arrays, header = plain_npz(data)
    for name in artifact.ARRAYS:
        if not np.array_equal(getattr(artifact, name), arrays[name]):
            raise FaultError("differs from a plain reading", name)
    for name in artifact.FACTS:
        fact = getattr(artifact, name)
        fact = dict(fact) if isinstance(fact, Mapping) else fact
        if name in header and json.dumps(fact) != json.dumps(header[name]):
            raise FaultError("differs from a plain reading", f"{name}: {fact!r}")
    wanted, wanted_header = plain_npz(intact)
    is_equal = header == wanted_header and all(
        np.array_equal(arrays[name], wanted[name]) for name in artifact.ARRAYS
    )
    return "equal" if is_equal else "read as the bytes say"


def plain_npz(data: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the arrays and the JSON header of an artifact, by numpy and json."""
    with np.load(io.BytesIO(data), allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    return arrays, json.loads(str(arrays.pop("header")))


def changed_values(rng: np.random.Generator, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return a copy of integers of which one is at a limit or that of another place."""
    changed = values.copy()
    if changed.size:
        at, to = rng.integers(changed.size, size=2)
        new = boundary(rng, 63, int(changed.flat[at]))
        changed.flat[at] = changed.flat[to] if rng.integers(2) else new
    return changed


@lru_cache(64)
def _members(data: bytes) -> tuple[tuple[str, bytes], ...]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return tuple((name, archive.read(name)) for name in archive.namelist())


@lru_cache(64)
def _bomb(data: bytes, name: str) -> bytes:
    """Return the file with a compressed member that takes far more memory than the file."""
    head = npy(np.zeros(0, np.int64)).replace(b"(0,)", b"(%d,)" % (_BOMB // 8))
    head = head[:8] + (len(head) - 10).to_bytes(2, "little") + head[10:]
    return _zipped(dict(_members(data)) | {name: head + bytes(_BOMB)}, zipfile.ZIP_DEFLATED)


def _zipped(members: Mapping[str, bytes], compression: int) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()
