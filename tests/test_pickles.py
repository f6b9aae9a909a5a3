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


def encoded(value: bytes, codec: str) -> bytes:
    """Return instructions that encode the value of other instructions."""
    name = b"X" + struct.pack("<I", len(codec)) + codec.encode()
    return b"c_codecs\nencode\n" + value + name + b"\x86R."


@pytest.mark.parametrize(
    "value",
    [
        {"bytes": b"\xff" * 3000, "twice": [b"a", b"a"]},
        {"text": [1, -2, 2**40, 2**70, 0.5, None, True, False], "tuples": ((), (1,), (1, 2, 3, 4))},
        {"shared": SHARED, "set": {1, 2}, "ordered": OrderedDict(a=1), "complex": 1j},
        list(range(3000)),
    ],
    ids=["bytes", "plain", "called", "long"],
)
def test_the_end_of_a_pickle_of_protocol_2_is_found(value: Any) -> None:
    data = pickle.dumps(value, 2)
    _, end = scan_pickle(b"before" + data + b"after", 6)
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
    names, end = scan_pickle(data)
    assert end == len(data)
    assert "torch._utils._rebuild_tensor_v2" in names


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"}" + doubled(40) + b"Ns.", "would grow beyond ten times"),
        (b"]" + doubled(40) + b"a.", "would grow beyond ten times"),
        (b"(T\0\0\x10\0" + bytes(1 << 20) + b"q\0" + b"h\0" * 20 + b"t.", "would grow"),
        (b"})Ns.", "dictionary key other than text"),
        (b"}\x8a\x08" + bytes(8) + b"Ns.", "dictionary key other than text"),
        (b"](" + (b"\x8a\x08" + bytes(8)) * 10_001 + b"e.", "more than 10000 large integers"),
        (b"}r" + struct.pack("<I", 1 << 31) + b".", "stores object 2147483648 after 0 others"),
        (b")" * 2 + b"\x85" * 200 + b".", "nested more than 100 deep"),
        (b"]" * 200 + b"a" * 199 + b".", "nested more than 100 deep"),
        (b"c__builtin__\nset\n" + b")R" * 200 + b".", "nested more than 100 deep"),
        (b"]q\0h\0a.", "grows after it was used"),
        (b"]q\0\x85h\0K\x01a.", "grows after it was used"),
        (b"\x96" + struct.pack("<Q", 1 << 45) + b".", "has the instruction"),
        (b"\x8b" + struct.pack("<i", 2**31 - 1) + b".", "has the instruction"),
        (encoded(b"T\x01\0\0\0x", "hex"), "encodes something other than text"),
        (encoded(b"X\x01\0\0\0x", "utf-16"), "encodes something other than text"),
        (encoded(encoded(b"X\x01\0\0\0x", "latin1")[:-1], "latin1"), "encodes something other"),
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
