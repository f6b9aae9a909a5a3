"""Pickles that could take more time or memory than their size explains are refused."""

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from typing import Any

import pytest
import torch

from dp4tl_ffcv.utils import scan_pickle

HEAD = b"\x80\x02"
SHARED = [[1, 2]] * 3


def doubled(times: int) -> bytes:
    """Return instructions for a tuple of 2**times empty tuples."""
    steps = (b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(times))
    return b")" + b"".join(steps)


def encoded(value: bytes, codec: str, by: bytes = b"c_codecs\nencode\n") -> bytes:
    """Return instructions that encode the value of other instructions."""
    name = b"X" + struct.pack("<I", len(codec)) + codec.encode()
    return by + value + name + b"\x86R."


def keys(count: int, key: bytes) -> bytes:
    """Return instructions for a dictionary with `count` keys, all of the same instructions."""
    return b"}(" + (key + b"N") * count + b"u."


def call(function: str, arguments: bytes) -> bytes:
    """Return instructions that call a function with one argument."""
    return b"c" + function.replace(".", "\n").encode() + b"\n" + arguments + b"\x85R."


FLOATS = b"G" + bytes(8) + b"G" + bytes(8) + b"\x86"  # a tuple, whose hash can be any
IN_LISTS = b"](" + FLOATS * 11_000 + b"e"
BYTEARRAY = b"c__builtin__\nbytearray\n"


@pytest.mark.parametrize(
    "value",
    [
        {"bytes": b"\xff" * 3000, "twice": [b"a", b"a"]},
        {"text": [1, -2, 2**40, 2**70, 0.5, None, True, False], "tuples": ((), (1,), (1, 2, 3, 4))},
        {"shared": SHARED, "set": {1, 2}, "ordered": OrderedDict(a=1), "complex": 1j},
        list(range(3000)),
        {(1, 2): 3, ("a", (0.5, None)): 4, (): 5, 2**70: 6, b"a": 7, torch.int8: 8},
        {"byte arrays": [bytearray(b"\xff" * 300), bytearray()]},
        {(0.5, number): None for number in range(12_000)},
        [{(0.5, number, index) for index in range(20)} for number in range(3000)],
    ],
    ids=["bytes", "plain", "called", "long", "keys", "byte arrays", "many keys", "many sets"],
)
def test_the_end_of_a_pickle_of_protocol_2_is_found(value: Any) -> None:
    data = pickle.dumps(value, 2)
    end = scan_pickle(b"before" + data + b"after", 6)
    assert end == 6 + len(data)


def test_a_checkpoint_is_accepted_and_its_names_are_found() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.zeros(2, 3)).sum().backward()
    optimizer.step()
    stream = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, stream)
    with zipfile.ZipFile(stream) as archive:
        data = archive.read("archive/data.pkl")
    names: list[str] = []
    assert scan_pickle(data, accepts=lambda name: not names.append(name)) == len(data)  # type: ignore[func-returns-value]
    assert "torch._utils._rebuild_tensor_v2" in names


def test_a_name_that_is_not_accepted_is_refused_before_anything_else() -> None:
    names = "collections.OrderedDict", "argparse.Namespace"
    data = HEAD + b"".join(b"c%b\n" % name.replace(".", "\n").encode() for name in names) + b"\xff."
    with pytest.raises(ValueError, match=r"names argparse\.Namespace, at byte 27"):
        scan_pickle(data, accepts=lambda name: name != names[1])


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"}" + doubled(40) + b"Ns.", "would grow beyond ten times"),
        (b"]" + doubled(40) + b"a.", "would grow beyond ten times"),
        (b"(T\0\0\x10\0" + bytes(1 << 20) + b"q\0" + b"h\0" * 20 + b"t.", "would grow"),
        (b"}]Ns.", "key other than text"),
        (b"}]\x85Ns.", "key other than text"),
        (b"}ctorch\nSize\n)RNs.", "key other than text"),
        (keys(11_000, FLOATS), "too many keys"),
        (keys(11_000, FLOATS + b"\x85\x85"), "too many keys"),
        (keys(19_000, b"\x8a\x09" + bytes(9)), "too many keys"),
        (keys(17_000, b"(" + b"N" * 10 + b"t"), "too many keys"),
        (call("__builtin__.set", IN_LISTS), "too many keys"),
        (call("builtins.set", IN_LISTS), "too many keys"),
        (call("collections.Counter", IN_LISTS), "too many keys"),
        (call("builtins.set", b"](" + b"ctorch\nSize\n)R" * 19_000 + b"e"), "too many keys"),
        (b"ccollections\nOrderedDict\n)R" + IN_LISTS + b"b.", "too many keys"),
        (call("collections.OrderedDict", b"]" + IN_LISTS + b"a"), "too many keys"),
        (b"}r" + struct.pack("<I", 1 << 31) + b".", "stores object 2147483648 after 0 others"),
        (b")" * 2 + b"\x85" * 200 + b".", "nested more than 100 deep"),
        (b"]" * 200 + b"a" * 199 + b".", "nested more than 100 deep"),
        (b"c__builtin__\nset\n" + b")R" * 200 + b".", "nested more than 100 deep"),
        (b"]q\0h\0a.", "grows after it was used"),
        (b"]q\0\x85h\0K\x01a.", "grows after it was used"),
        (b"\x96" + struct.pack("<Q", 1 << 45) + b".", "has the instruction"),
        (b"\x8b" + struct.pack("<i", 2**31 - 1) + b".", "has the instruction"),
        (encoded(b"T\x01\0\0\0x", "hex"), "makes bytes from something"),
        (encoded(b"X\x01\0\0\0x", "utf-16"), "makes bytes from something"),
        (encoded(b"X\x01\0\0\0x", "utf-16", BYTEARRAY), "makes bytes from something"),
        (
            BYTEARRAY * 2 + encoded(b"X\x01\0\0\0x", "latin1")[:-1] + b"\x85R" * 2 + b".",
            "makes bytes",
        ),
        (BYTEARRAY + b"J\0\0\0\x40\x85R.", "makes bytes from something"),
        (
            b"ctorch._tensor\n_rebuild_from_type_v2\n(" + BYTEARRAY + b"q\0h\0K\x01\x85}tR.",
            "passes",
        ),
        (BYTEARRAY + b"q\0]h\0a.", "bytearray on instead of calling it, at"),
        (encoded(encoded(b"X\x01\0\0\0x", "latin1")[:-1], "latin1"), "makes bytes from something"),
        (b"T\xff\xff\xff\xffabc.", "is damaged"),
        (b"h\0.", "is damaged"),
        (b"K\x01(a.", "is damaged"),
        (b"t.", "is damaged"),
        (b"cnumpy\nndarray", "is damaged"),
        (b"K\x01", "is damaged"),
    ],
    ids=lambda part: part if isinstance(part, str) else f"{part[:12]!r}",
)
def test_a_pickle_that_could_take_more_than_its_size_is_refused(body: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        scan_pickle(HEAD + body)


def test_every_truncated_pickle_is_refused() -> None:
    data = pickle.dumps({"a": [1, (2, 3)], "b": OrderedDict(c=0.5)}, 2)
    scan_pickle(data)
    for end in range(len(data)):
        with pytest.raises(ValueError, match="is damaged at byte"):
            scan_pickle(data[:end])
