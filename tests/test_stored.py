"""JSON and arrays from damaged or hostile files: ValueError, and memory bounded by the file."""

import hashlib
import io
import json
import os
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dp4tl_ffcv.stored import (
    check_entries,
    identity_of,
    map_array,
    open_file,
    parse_json,
    read_array,
    read_json,
    read_npz,
    read_text,
    sha256_of_file,
)
from tests.support.traps import Trap


def npy(shape: Any, dtype: Any = "<i8", data: bytes = b"", more: str = "") -> bytes:
    """Return an array file with any header and data."""
    text = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}{more}}}".ljust(117)
    return b"\x93NUMPY\1\0" + (118).to_bytes(2, "little") + text.encode() + b"\n" + data


def saved(values: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


NOT_ARRAYS = {
    "empty": b"",
    "only the magic": b"\x93NUMPY",
    "2**40 rows": npy((2**40,)),
    "2**70 rows": npy((2**70,)),
    "negative": npy((-1,)),
    "true rows": npy((True,), data=bytes(8)),
    "no rows of 2**63": npy((0, 2**63)),
    "30 digits": npy((10**30,)),
    "objects": npy((2,), "|O", b"cos\nsystem\n"),
    "truncated": npy((2,), data=bytes(15)),
    "too long": npy((2,), data=bytes(17)),
    "long text": npy((2,), "<U1000000000"),
    "empty text": npy((2**40,), "<U0"),
    "times": saved(np.array(["2020-01-01"], "M8[D]")),
    "records": saved(np.zeros(2, [("a", "i8")])),
    "nested": npy("(" * 50),
    "a call": npy("().__class__"),
    "more keys": npy((2,), data=bytes(16), more=", 'x': 1"),
    "version 3": b"\x93NUMPY\3\0\xff\xff\xff\xff" + b"x" * 100,
    "version 2, long": b"\x93NUMPY\2\0\xff\xff\xff\xff" + b"x" * 100,
    "version 4": b"\x93NUMPY\4\0",
}


@pytest.mark.parametrize("read", [read_array, map_array])
@pytest.mark.parametrize("content", NOT_ARRAYS.values(), ids=NOT_ARRAYS)
def test_a_file_without_an_array_of_numbers_is_a_value_error(
    content: bytes, read: Callable[[Path], Any], tmp_path: Path
) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(ValueError, match=r"^it(s| does| was)"):
        read(tmp_path / "a.npy")


@pytest.mark.parametrize("read", [read_array, map_array])
@pytest.mark.parametrize(
    "values",
    [
        np.arange(6).reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.array([1.5], dtype=">f4"),
        np.array(True),
        np.empty((0, 3), dtype=np.float16),
        np.random.default_rng(0).random((9, 1 << 15)),
    ],
    ids=lambda values: f"{values.dtype} {values.shape}",
)
def test_arrays_come_back_read_only(
    values: Any, read: Callable[[Path], Any], tmp_path: Path
) -> None:
    np.save(tmp_path / "a.npy", values)
    found = read(tmp_path / "a.npy")
    assert found.dtype == values.dtype
    np.testing.assert_array_equal(found, values)
    assert not found.flags.writeable


@pytest.mark.parametrize("kind", ["FIFO", "device", "folder"])
@pytest.mark.parametrize("read", [read_array, map_array, read_json, read_text, sha256_of_file])
def test_only_files_are_read(read: Callable[[Path], Any], kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a"
    {"FIFO": os.mkfifo, "device": lambda p: p.symlink_to("/dev/zero"), "folder": os.mkdir}[kind](
        path
    )
    with pytest.raises(OSError, match="it is a") as caught:
        read(path)
    assert caught.value.filename == str(path)


def test_an_error_while_reading_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    with pytest.raises(OSError, match="broken") as caught, open_file(tmp_path / "a"):
        raise OSError(5, "broken")
    assert caught.value.filename == str(tmp_path / "a")


def test_the_hash_is_of_all_bytes(tmp_path: Path) -> None:
    data = np.random.default_rng(0).bytes((1 << 20) + 1)
    (tmp_path / "a.bin").write_bytes(data)
    assert sha256_of_file(tmp_path / "a.bin") == hashlib.sha256(data).hexdigest()


def test_the_identity_changes_with_the_file_and_its_content(tmp_path: Path) -> None:
    path, other = tmp_path / "a", tmp_path / "b"
    assert identity_of(path) == ()
    found = set()
    for each in (path, other):
        each.write_bytes(b"1")
        found.add(identity_of(each))
    os.utime(path, ns=(0, 0))
    found.add(identity_of(path))
    path.write_bytes(b"12")
    os.utime(path, ns=(0, 0))
    with open_file(path) as stream:
        assert identity_of(stream.fileno()) == identity_of(path)
    assert len({*found, identity_of(path)}) == 4


def test_a_text_is_in_utf_8_and_of_limited_size(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("\ufeffcafé\n", encoding="utf-8")
    assert read_text(tmp_path / "a") == "café\n"
    (tmp_path / "a").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match="can't decode byte 0xe9"):
        read_text(tmp_path / "a")
    os.truncate(tmp_path / "a", (1 << 26) + 1)
    with pytest.raises(ValueError, match="it has more than 64 MiB"):
        read_text(tmp_path / "a")


def pack(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


HEADER = saved(np.array("{}"))


def test_a_compressed_file_is_refused_before_it_grows(tmp_path: Path) -> None:
    zeros = npy((1 << 23,), data=bytes(1 << 26))
    path = pack(tmp_path / "a.npz", {"header": HEADER, "a": zeros}, zipfile.ZIP_DEFLATED)
    del zeros
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="compressed"):
            read_npz(path, ("a",))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_reading_takes_memory_for_the_file_once(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", header=np.array("{}"), a=np.arange(1 << 20))
    tracemalloc.start()
    try:
        read_npz(tmp_path / "a.npz", ("a",))
        assert tracemalloc.get_traced_memory()[1] < 1.5 * (1 << 23)
    finally:
        tracemalloc.stop()


def test_members_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    """The table of members lets several of them start at the same byte."""
    content = saved(np.arange(1000))
    path = pack(tmp_path / "a.npz", {"header": HEADER, "a": content, "b": b""})
    data = bytearray(path.read_bytes())
    entries = [at for at in range(len(data)) if data[at : at + 4] == b"PK\1\2"]
    first, second = entries[1], entries[2]
    data[second + 16 : second + 28] = data[first + 16 : first + 28]  # checksum and sizes
    data[second + 42 : second + 46] = data[first + 42 : first + 46]  # place
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"larger than the file|not a complete"):
        read_npz(path, ("a", "b"))


def test_a_file_of_many_members_is_refused(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.npz", {"header": HEADER, **{str(n): b"" for n in range(2000)}})
    with pytest.raises(ValueError, match="too many arrays"):
        read_npz(path, ())


@pytest.mark.parametrize(
    "header", [npy((), "<U1", b"\0\0\x11\0"), saved(np.arange(3)), saved(np.array(["a", "b"]))]
)
def test_a_header_must_be_a_text(header: bytes, tmp_path: Path) -> None:
    path = pack(tmp_path / "a.npz", {"header": header})
    with pytest.raises(ValueError, match=r"not a text|decode"):
        read_npz(path, ())


@pytest.mark.parametrize(
    "text", ["", "{", "[" * 100_000, '{"a":' * 100_000, "1" * 5000, b"\xff\xfe{}"]
)
def test_a_text_without_json_is_a_value_error(text: Any) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # json's own messages
        parse_json(text)


def test_a_huge_json_is_refused_before_it_is_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dp4tl_ffcv.stored._MOST_JSON", 100)
    (tmp_path / "a.json").write_text("[" + "1," * 50 + "1]")
    with pytest.raises(ValueError, match="at most 100 are read"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("kind", "fitting", "others"),
    [
        (int, [0, -1, 10**30], [True, 1.0, "1", None, [], float("inf")]),
        (str, ["", "a"], [1, None, ["a"]]),
        (bool, [True], [0, None]),
        (str | None, [None, "a"], [1, []]),
        (list[int], [[], [1]], [[1.0], [True], (1,), {}, 1]),
        (dict[str, Any], [{}, {"a": [None]}], [[], None]),
        (list[dict[str, Any]], [[], [{}]], [[[]], {}]),
        (dict[str, str], [{"a": "b"}], [{"a": 1}]),
    ],
    ids=str,
)
def test_entries_have_their_types(kind: Any, fitting: list[Any], others: list[Any]) -> None:
    for value in fitting:
        assert check_entries({"a": value, "b": 1}, {"a": kind}) == {"a": value, "b": 1}
    for value in others:
        with pytest.raises(ValueError, match="'a' is not of the type"):
            check_entries({"a": value}, {"a": kind})
        with pytest.raises(ValueError, match="'a' is not of the type"):
            check_entries({"a": value}, {"a": kind}, optional=("a",))


def test_entries_must_be_there_unless_they_are_optional() -> None:
    with pytest.raises(ValueError, match="no entry 'a'"):
        check_entries({}, {"a": int})
    assert check_entries({}, {"a": int}, optional=("a",)) == {}
    for other in ([], None, 1, "a", json.loads("NaN")):
        with pytest.raises(ValueError, match="not an object"):
            check_entries(other, {})


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([Trap(tmp_path / "sprung")], dtype=object))
    with pytest.raises(ValueError, match="object"):
        read_array(tmp_path / "a.npy")
    assert not (tmp_path / "sprung").exists()
