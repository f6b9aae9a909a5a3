"""Small betons for the targets, and what their bytes say, read without this project's reader.

A sample of a beton is *untouched* by a mutation if its record, its bytes and its rows in the
allocation table are as they were. A touched sample has the value that a plain reading of the
mutated bytes gives, or none, and then no reader may return anything for it.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ffcv.fields import BytesField, FloatField, IntField, JSONField, NDArrayField, TorchTensorField
from ffcv.libffcv import imdecode
from numpy.typing import NDArray

from dp4tl_ffcv import BetonIndex, ImageField, write_beton
from dp4tl_ffcv.beton import format
from dp4tl_ffcv.beton.format import pointers
from dp4tl_ffcv.jpeg import turbojpeg
from tests.campaigns.fuzz.mutate import Span

SIDE = 16  # pixels of the crops that loaders make
SAMPLES = 6
RESIZED = "resized"
"""The value of an image that a loader resizes, which a plain reading does not predict."""


def field_objects() -> dict[str, Any]:
    """Return a field of each kind."""
    return {
        "jpg": ImageField("jpg"),
        "raw": ImageField("raw"),
        "label": IntField(),
        "score": FloatField(),
        "blob": BytesField(),
        "info": JSONField(),
        "vector": NDArrayField(np.dtype("<f4"), (3, 2)),
        "tensor": TorchTensorField(torch.int16, (4,)),
    }


def write(path: Path, names: tuple[str, ...], seed: int) -> Path:
    """Write a beton of the fields `names` whose data follow its metadata without a gap."""
    rng = np.random.default_rng(seed)
    samples = [_sample(rng, number, names) for number in range(SAMPLES)]
    fields = {name: field for name, field in field_objects().items() if name in names}
    write_beton(path, samples, fields, num_workers=0, seed=None, jpeg_index=False)
    path.with_name(path.name + ".json").unlink()
    path.write_bytes(dense(path))
    return path


def _sample(rng: np.random.Generator, number: int, names: tuple[str, ...]) -> tuple[Any, ...]:
    values = {
        # Of several widths: a centre crop of SIDE pixels is never resized.
        "jpg": rng.integers(0, 256, (SIDE, SIDE + 8 * (number % 3), 3), dtype=np.uint8),
        "raw": rng.integers(0, 256, (SIDE + 2 * (number % 2), SIDE, 3), dtype=np.uint8),
        "label": number % 3,
        "score": rng.normal(),
        "blob": rng.integers(0, 256, 7 * number, dtype=np.uint8),
        "info": {"number": number, "text": "x" * number},
        "vector": rng.normal(size=(3, 2)).astype(np.float32),
        "tensor": torch.from_numpy(rng.integers(0, 99, 4).astype(np.int16)),
    }
    return tuple(value for name, value in values.items() if name in names)


def dense(path: Path) -> bytes:
    """Return a beton's bytes with the data moved up to the metadata, so that it is small."""
    index = BetonIndex.open(path)
    data = path.read_bytes()
    table = index.allocations.copy()
    metadata = index.metadata.copy()
    start = format.HEADER.itemsize + len(index.fields) * format.FIELD.itemsize + metadata.nbytes
    first, end = int(table["ptr"].min(initial=len(data))), int(index.header["alloc_table_ptr"])
    shift = np.uint64(first - start)
    table["ptr"] -= shift
    for field in index.fields:
        for column in pointers(metadata[field.column], field.kind):
            column -= shift
    used = int((table["ptr"] + table["size"]).max()) if len(table) else start
    header = format.header_bytes(len(index.fields), index.page_size, len(index), used)
    tables = data[format.HEADER.itemsize : start - metadata.nbytes] + metadata.tobytes()
    body = data[first : first + used - start] if len(table) else b""
    assert len(header + tables + body) == used <= end
    return header + tables + body + table.tobytes()


def spans_of(path: Path) -> dict[str, list[Span]]:
    """Return the numbers of a beton by part: header, fields, metadata, table."""
    index = BetonIndex.open(path)
    count, num_fields = len(index), len(index.fields)
    fields_at = format.HEADER.itemsize
    metadata_at = fields_at + num_fields * format.FIELD.itemsize
    table_at = int(index.header["alloc_table_ptr"])
    descriptors = [
        (fields_at + number * format.FIELD.itemsize + at, size)
        for number in range(num_fields)
        # Type, name, shape of an array, length of its numpy type, and its first letters.
        for at, size in (
            (0, 1),
            (1, 1),
            (2, 1),
            *((17 + 8 * n, 8) for n in (0, 1, 2, 31, 32)),
            *((281 + n, 1) for n in range(16)),
        )
    ]
    return {
        "header": _numbers(format.HEADER, 0, 1),
        "fields": descriptors,
        "metadata": _numbers(index.metadata.dtype, metadata_at, count),
        "table": _numbers(format.ALLOCATION, table_at, len(index.allocations)),
    }


def _numbers(dtype: np.dtype[Any], start: int, count: int) -> list[Span]:
    places = list(_leaves(dtype, start))
    return [(at + row * dtype.itemsize, size) for row in range(count) for at, size in places]


def _leaves(dtype: np.dtype[Any], at: int) -> Iterator[Span]:
    if dtype.names is None:
        yield at, dtype.itemsize
    for part, offset, *_ in (dtype.fields or {}).values():
        yield from _leaves(part, at + offset)


class DamagedError(Exception):
    """The bytes make no value that a reader may return."""


@dataclass(frozen=True)
class Truth:
    """The records, byte ranges and values of an intact beton."""

    kinds: dict[str, str]
    """Kind of each field by name."""
    records: list[dict[str, bytes]]
    """For each sample, the record, byte range and bytes of each field, concatenated."""
    values: list[dict[str, Any]]
    """For each sample, the value of each field as a loader returns it."""


def truth_of(data: bytes) -> Truth:
    """Return what an intact beton holds."""
    found = Plain(data)
    return Truth(
        found.kinds,
        [{name: found.raw(number, name) for name in found.kinds} for number in range(found.count)],
        [
            {name: found.value(number, name) for name in found.kinds}
            for number in range(found.count)
        ],
    )


class Plain:
    """A plain reading of a beton's bytes. `value` raises for what no reader may return."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.header = np.frombuffer(data, format.HEADER, 1)[0]
        num_fields, self.count = int(self.header["num_fields"]), int(self.header["num_samples"])
        at = format.HEADER.itemsize
        self.descriptors = np.frombuffer(data, format.FIELD, num_fields, at)
        names = [each["name"].tobytes().split(b"\0")[0].decode() for each in self.descriptors]
        types = [int(each["type_id"]) for each in self.descriptors]
        self.kinds = {n: format.FIELD_KINDS[t] for n, t in zip(names, types, strict=True)}
        self._fields = dict(zip(names, zip(range(num_fields), types, strict=True), strict=True))
        dtype = format.metadata_dtype([format.FIELD_METADATA[each] for each in types])
        self.metadata = np.frombuffer(
            data, dtype, self.count, at + num_fields * format.FIELD.itemsize
        )
        self.table = np.frombuffer(data, format.ALLOCATION, -1, int(self.header["alloc_table_ptr"]))

    def raw(self, number: int, name: str) -> bytes:
        """Return the description, record, byte range and bytes of a field of a sample."""
        record = self._record(number, name)
        start = self._pointer(record)
        described = self.descriptors[self._fields[name][0]].tobytes() + record.tobytes()
        if start is None:
            return bytes(described)
        size = self._stored(start, number)
        return bytes(described + str((start, size)).encode() + self._bytes(start, size or 0))

    def value(self, number: int, name: str, exact: bool = False) -> Any:
        """Return the value of a field of a sample, or raise `DamagedError`.

        With `exact`, a JPEG is decoded as `read_image` does: all of it, and by the exact transform.
        """
        kind, record = self.kinds[name], self._record(number, name)
        if kind in ("int", "float"):
            return record
        start = self._pointer(record)
        stored = self._stored(start, number)
        if kind in ("bytes", "json"):
            size = int(record["size"])
            if size == 0:
                return np.empty(0, np.uint8)
            if stored != size:
                raise DamagedError("the record and the table give other sizes")
            return np.frombuffer(self._bytes(start, size), np.uint8)
        if stored is None:
            raise DamagedError("the record points to no bytes of its sample")
        if kind == "rgb_image":
            return self._image(record, self._bytes(start, stored), exact)
        dtype, shape = _array_type(self.descriptors[self._fields[name][0]])
        if dtype.itemsize * int(np.prod(shape, dtype=object)) != stored:
            raise DamagedError("an array of another size")
        return np.frombuffer(self._bytes(start, stored), dtype).reshape(shape)

    def payload(self, number: int, name: str) -> bytes | None:
        """Return the bytes that a copy of the sample must have, None if the table lacks them."""
        record = self._record(number, name)
        start = self._pointer(record)
        if start is None:
            return bytes(record.tobytes())
        if self.kinds[name] in ("bytes", "json"):
            return self._bytes(start, int(record["size"]))
        stored = self._stored(start, number)
        return None if stored is None else self._bytes(start, stored)

    def _record(self, number: int, name: str) -> Any:
        return self.metadata[f"f{self._fields[name][0]}"][number]

    @staticmethod
    def _pointer(record: Any) -> int | None:
        for name in record.dtype.names or ():
            if name in ("ptr", "data_ptr"):
                return int(record[name])
        return int(record) if record.dtype == np.uint64 else None

    def _stored(self, start: int | None, number: int) -> int | None:
        """Return the bytes that the table gives a sample at a place, None if it gives none."""
        rows = self.table[(self.table["ptr"] == start) & (self.table["sample_id"] == number)]
        return int(rows["size"].max()) if len(rows) else None

    def _bytes(self, start: int | None, size: int) -> bytes:
        return self.data[start or 0 : (start or 0) + size]

    @staticmethod
    def _image(record: Any, stored: bytes, exact: bool) -> Any:
        height, width = int(record["height"]), int(record["width"])
        if record["mode"] == 1:
            if len(stored) != height * width * 3:
                raise DamagedError("a raw image of another size")
            return centre(np.frombuffer(stored, np.uint8).reshape(height, width, 3))
        if record["mode"] != 0:
            raise DamagedError("an image in an unknown mode")
        try:
            found = turbojpeg.read_header(stored)
            if (found.height, found.width) != (height, width):
                raise DamagedError("a JPEG of another size")
            if exact:
                return centre(turbojpeg.decode(stored))
        except ValueError as error:
            raise DamagedError(f"a JPEG that TurboJPEG rejects: {error}") from error
        # ffcv decodes as much as it can. A crop may be intact where the rest of the image is not.
        pixels = np.zeros((height, width, 3), dtype=np.uint8)
        imdecode(np.frombuffer(stored, np.uint8), pixels, height, width, height, width)
        return centre(pixels)


def centre(pixels: NDArray[np.uint8]) -> Any:
    """Return the centre crop that a loader makes without resizing, `RESIZED` if it resizes."""
    height, width = pixels.shape[:2]
    if min(height, width) != SIDE:
        return RESIZED
    top, left = (height - SIDE) // 2, (width - SIDE) // 2
    return pixels[top : top + SIDE, left : left + SIDE]


def _array_type(descriptor: Any) -> tuple[np.dtype[Any], tuple[int, ...]]:
    arguments = descriptor["arguments"]
    shape = np.trim_zeros(arguments[:256].view("<u8"), "b").tolist()
    length = int(arguments[256:264].view("<u8")[0])
    text = arguments[264 : 264 + length].tobytes().decode("ascii")
    return np.dtype([tuple(each) for each in json.loads(text)])["f0"], tuple(shape)
