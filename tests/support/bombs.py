"""Small checkpoint files that ask for much time or memory."""

import io
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

_ROWS = 1 << 30
_LEGACY = {"_use_new_zipfile_serialization": False}


def _saved(values: Any, **options: bool) -> bytes:
    stream = io.BytesIO()
    torch.save(values, stream, **options)
    return stream.getvalue()


def _members(archive: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def _packed(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return stream.getvalue()


def zipped(pickled: bytes, compression: int = zipfile.ZIP_STORED) -> bytes:
    """Return an archive of `torch.save` with another pickle."""
    members = _members(_saved({"a": torch.zeros(4)}))
    return _packed(members | {"archive/data.pkl": pickled}, compression)


def legacy(pickled: bytes) -> bytes:
    """Return a file of `torch.save` before torch 1.6 with another pickle and no storages."""
    data = _saved({}, **_LEGACY)
    starts = [0]
    stream = io.BytesIO(data)
    for _ in range(3):
        for _ in pickletools.genops(stream):
            pass
        starts.append(stream.tell())
    return data[: starts[3]] + pickled + pickle.dumps([], 2)


def _shared_tuples(depth: int) -> bytes:
    """Return instructions for a tuple whose hash takes 2 ** depth steps."""
    return b")" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(depth))


def _text(size: int) -> bytes:
    return b"X" + struct.pack("<I", size) + bytes(size)


def _tensor(shape: int, numel: int, view: bytes = b"") -> bytes:
    """Return instructions for a float tensor, with the size of its storage."""
    number = b"\x8a\x08%b"
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
        b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpu" + number % struct.pack("<q", numel)
        + view + b"tQK\x00" + number % struct.pack("<q", shape)
        + b"\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtR"
    )  # fmt: skip


def _with_size(archive: bytes, name: bytes, size: int) -> bytes:
    """Change the sizes of a member in the directory of an archive."""
    at = archive.rindex(name) - 46  # its entry, of which 46 bytes come before the name
    return archive[: at + 20] + struct.pack("<II", size, size) + archive[at + 28 :]


class _Call:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def _repeated(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return a large tensor of one number."""
    return torch.zeros(1, dtype=dtype).expand(*shape)


def _sparse() -> _Call:
    indices = _repeated(1, 1 << 36, dtype=torch.int64)
    parts = (indices, _repeated(1 << 36), (1 << 36,), None)
    return _Call(torch._utils._rebuild_sparse_tensor, torch.sparse_coo, parts)


def _compressed() -> list[_Call]:
    rows = torch.zeros(1 << 16, dtype=torch.int64)
    parts = (rows, rows[:0].clone(), torch.zeros(0), (len(rows) - 1, 1))
    return [_Call(torch._utils._rebuild_sparse_tensor, torch.sparse_csr, parts) for _ in range(200)]


def _quantized() -> _Call:
    scales = _repeated(1 << 28, dtype=torch.float64)
    storage = torch.quantize_per_tensor(torch.zeros(4), 1.0, 0, torch.qint8)._typed_storage()
    return _Call(
        torch._utils._rebuild_qtensor,
        storage, 0, (1 << 28,), (0,), (torch.per_channel_affine, scales, scales, 0), False, {},
    )  # fmt: skip


def _numpy_number() -> _Call:
    scalar = np.float64(0).__reduce__()[0]
    return _Call(scalar, _Call(np.dtype, f"V{1 << 30}"))  # type: ignore[arg-type]  # a function


_KEYED = b"\x80\x02}" + _shared_tuples(40) + b"Ns."
_CALL = b"\x80\x02}X\x01\x00\x00\x00a%bs."
_BYTES = b"c__builtin__\nbytearray\n\x8a\x05\x00\x00\x00\x00\x02\x85R"

BOMBS: dict[str, Callable[[], bytes]] = {
    "hash of a key, zip": lambda: zipped(_KEYED),
    "hash of a key, legacy": lambda: legacy(_KEYED),
    "byte array": lambda: zipped(_CALL % _BYTES),
    "nested": lambda: zipped(_CALL % (b"]" * 10**5 + b"a" * (10**5 - 1))),
    "compressed": lambda: zipped(_CALL % _text(1 << 27), zipfile.ZIP_DEFLATED),
    "size of a member": lambda: _with_size(_saved({}), b"archive/data.pkl", 1 << 31),
    "storage in a zip": lambda: zipped(_CALL % _tensor(4, _ROWS)),
    "storage in a legacy file": lambda: legacy(_CALL % _tensor(4, _ROWS, b"N")),
    "shape in a zip": lambda: zipped(_CALL % _tensor(_ROWS, 4)),
    "shape in a legacy file": lambda: legacy(_CALL % _tensor(_ROWS, 4, b"N")),
    "sparse, repeated": lambda: _saved({"a": _sparse()}),
    "sparse by rows, of one storage": lambda: _saved({"a": _compressed()}, **_LEGACY),
    "quantized, repeated": lambda: _saved({"a": _quantized()}),
    "numpy's number": lambda: _saved({"a": _numpy_number()}),
    "byte array by another function": lambda: _saved(
        {"a": _Call(torch._tensor._rebuild_from_type_v2, bytearray, bytearray, (1 << 30,), {})}
    ),
    "two pickles": lambda: _packed(
        {"archive/DATA.PKL": _KEYED, **_members(_saved({"a": torch.zeros(4)}))}
    ),
}  # fmt: skip
HEADERS = {
    "length of the header": struct.pack("<Q", 1 << 60) + b"{}",
    "nested header": struct.pack("<Q", 200_000) + b'{"a":' + b"[" * 199_995,
    "range of a tensor": (
        lambda header: struct.pack("<Q", len(header)) + header + bytes(8)
    )(b'{"a":{"dtype":"F32","shape":[1073741824],"data_offsets":[0,4294967296]}}'),
}  # fmt: skip


def write_bombs(folder: Path) -> Iterator[Path]:
    """Write each file and yield its path."""
    for name, make in BOMBS.items():
        path = folder / f"{name}.pt"
        path.write_bytes(make())
        yield path
    for name, header in HEADERS.items():
        path = folder / f"{name}.safetensors"
        path.write_bytes(header)
        yield path
