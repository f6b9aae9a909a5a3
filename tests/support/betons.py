"""Betons of every kind of field, written by ffcv and by us, and custom fields."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ffcv.fields import (
    BytesField,
    FloatField,
    IntField,
    JSONField,
    NDArrayField,
    RGBImageField,
    TorchTensorField,
)
from ffcv.fields.base import ARG_TYPE, Field
from ffcv.fields.basics import FloatDecoder, IntDecoder
from ffcv.fields.bytes import BytesDecoder
from ffcv.fields.rgb_image import SimpleRGBImageDecoder, encode_jpeg
from ffcv.loader import Loader, OrderOption
from ffcv.writer import DatasetWriter
from numpy.typing import NDArray

from dp4tl_ffcv import BetonIndex, write_beton
from dp4tl_ffcv.beton import format
from dp4tl_ffcv.beton.tables import load_tables

PAGE_SIZE = 1 << 21
NUM_SAMPLES = 24


class OpaqueField(Field):
    """Base of the custom fields: no arguments in the file, no decoder."""

    @classmethod
    def from_binary(cls, binary: Any) -> Field:
        return cls()

    def to_binary(self) -> Any:
        return np.zeros(1, dtype=ARG_TYPE)[0]

    def get_decoder_class(self) -> Any:
        raise NotImplementedError


class StampField(OpaqueField):
    """A time, and bytes of variable length or None."""

    metadata_type = np.dtype([("when", "<i8"), ("ptr", "<u8"), ("size", "<u8")])

    def encode(self, destination: Any, value: tuple[int, bytes | None], malloc: Any) -> None:
        destination["when"], payload = value
        if payload is not None:
            destination["ptr"], storage = malloc(len(payload))
            destination["size"] = len(payload)
            storage[:] = np.frombuffer(payload, dtype=np.uint8)


class HashField(OpaqueField):
    """64 bits that look like a pointer but are none."""

    metadata_type = np.dtype("<u8")

    def encode(self, destination: Any, value: int, malloc: Any) -> None:
        destination[0] = value


CUSTOM_FIELDS = {"stamp": StampField, "hash": HashField}


def every_field() -> dict[str, Any]:
    return {
        "score": FloatField(),
        "label": IntField(),
        "photo": RGBImageField(write_mode="jpg", jpeg_quality=90),
        "pixels": RGBImageField(write_mode="raw"),
        "blob": BytesField(),
        "info": JSONField(),
        "vector": NDArrayField(np.dtype("<f4"), (3, 2)),
        "tensor": TorchTensorField(torch.int16, (4,)),
        "stamp": StampField(),
        "hash": HashField(),
    }


def every_sample() -> list[tuple[Any, ...]]:
    """Samples whose raw images fill several pages; every fifth `blob` is empty."""
    rng = np.random.default_rng(11)
    return [
        (
            number / 7,
            (number * number) % 5,
            rng.integers(0, 256, (40 + number, 48, 3), dtype=np.uint8),
            rng.integers(0, 256, (256, 256, 3), dtype=np.uint8),
            rng.integers(0, 256, (number % 5) * 9, dtype=np.uint8),
            {"number": number},
            rng.normal(size=(3, 2)).astype(np.float32),
            torch.arange(number, number + 4, dtype=torch.int16),
            (-number, bytes([number]) * (number + 1)),
            number * 2**59 + number,
        )
        for number in range(NUM_SAMPLES)
    ]


def stored_bytes(sample: tuple[Any, ...]) -> dict[str, bytes]:
    """Return the bytes that each field stores outside of the metadata, in order."""
    _, _, photo, pixels, blob, info, vector, tensor, (_, payload), _ = sample
    return {
        "photo": encode_jpeg(photo, 90).tobytes(),
        "pixels": pixels.tobytes(),
        "blob": blob.tobytes(),
        "info": json.dumps(info).encode() + b"\0",
        "vector": vector.tobytes(),
        "tensor": tensor.numpy().tobytes(),
        "stamp": payload,
    }


@dataclass(frozen=True)
class Parts:
    """The tables of a beton, which a test may change."""

    header: Any
    descriptors: NDArray[Any]
    metadata: NDArray[Any]
    table: NDArray[Any]


@contextmanager
def damage(path: Path, custom_fields: Mapping[str, Any] | None = None) -> Iterator[Parts]:
    """Open the tables of a beton for changes."""
    tables = load_tables(path, custom_fields or {})  # which accepts damage that `open` rejects
    data = np.fromfile(path, dtype=np.uint8)
    fields_at, metadata = format.HEADER.itemsize, tables.metadata
    metadata_at = tables.data_start - metadata.nbytes
    yield Parts(
        data[:fields_at].view(format.HEADER)[0],
        data[fields_at:metadata_at].view(format.FIELD),
        data[metadata_at : tables.data_start].view(metadata.dtype),
        data[tables.data_end :].view(format.ALLOCATION),
    )
    data.tofile(path)


def put(path: Path, at: int, data: Any) -> None:
    """Overwrite bytes of a file."""
    with path.open("r+b") as stream:
        stream.seek(at)
        stream.write(data)


def write_stock(
    path: Path, samples: Any, fields: Mapping[str, Any], num_workers: int = 1, chunk: int = 100
) -> Path:
    """Write a beton with ffcv's own writer."""
    writer = DatasetWriter(str(path), fields, page_size=PAGE_SIZE, num_workers=num_workers)
    writer.from_indexed_dataset(samples, chunksize=chunk)
    return path


def write_ours(path: Path, samples: Any, fields: Mapping[str, Any], **options: Any) -> Path:
    """Write a beton with `write_beton`, in this process, in the order of the samples."""
    options = {"seed": None, "page_size": PAGE_SIZE, "num_workers": 0, **options}
    return write_beton(path, samples, fields, **options).path


DECODERS = {
    "int": IntDecoder,
    "float": FloatDecoder,
    "bytes": BytesDecoder,
    "rgb_image": SimpleRGBImageDecoder,
}


def read_with_ffcv(path: Path, os_cache: bool = True, **decoders: Any) -> list[dict[str, Any]]:
    """Return one array per field for each sample, as ffcv's own Loader yields them in order."""
    fields = {field.name: field.kind for field in BetonIndex.open(path).fields}
    pipelines = {name: [decoders.get(name) or DECODERS[kind]()] for name, kind in fields.items()}
    loader = Loader(
        str(path), batch_size=7, num_workers=1, os_cache=os_cache,
        order=OrderOption.SEQUENTIAL, drop_last=False, pipelines=pipelines,
    )  # fmt: skip
    return [
        {name: np.array(value) for name, value in zip(fields, row, strict=True)}
        for batch in loader
        for row in zip(*batch, strict=True)
    ]


@dataclass(frozen=True)
class Written:
    """A beton, its samples, and the bytes that each sample must have in the file."""

    path: Path
    samples: list[tuple[Any, ...]]
    stored: list[dict[str, bytes]]
    custom_fields: Mapping[str, Any]

    @property
    def index(self) -> BetonIndex:
        return BetonIndex.open(self.path, custom_fields=self.custom_fields)


@pytest.fixture(scope="session", params=["ffcv, 1 worker", "ffcv, 2 workers", "write_beton"])
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Written:
    """A beton of every field kind, by each writer."""
    path = tmp_path_factory.mktemp("written") / "every.beton"
    samples = every_sample()
    if request.param == "write_beton":
        write_beton(path, samples, every_field(), page_size=PAGE_SIZE, seed=None)
    else:
        workers = 2 if "2" in request.param else 1
        write_stock(path, samples, every_field(), workers, chunk=2)
    return Written(path, samples, [stored_bytes(sample) for sample in samples], CUSTOM_FIELDS)


@pytest.fixture
def stamps() -> dict[str, Any]:
    """Samples and fields of a beton with a custom field; every second sample has no bytes."""
    samples = [(0, (number, bytes(5) if number % 2 else None)) for number in range(6)]
    fields = {"label": IntField(), "stamp": StampField()}
    return {"samples": samples, "fields": fields}


@pytest.fixture(scope="session")
def tiny_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A beton of six 8 x 8 images, by ffcv's own writer."""
    images = np.random.default_rng(5).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    samples = [(image, number % 3) for number, image in enumerate(images)]
    fields = {"image": RGBImageField(write_mode="raw"), "label": IntField()}
    path = tmp_path_factory.mktemp("tiny") / "tiny.beton"
    return write_stock(path, samples, fields).read_bytes()


@pytest.fixture
def tiny(tmp_path: Path, tiny_bytes: bytes) -> Path:
    """A copy of the tiny beton that a test may damage."""
    path = tmp_path / "tiny.beton"
    path.write_bytes(tiny_bytes)
    return path


@pytest.fixture
def pictures() -> NDArray[np.uint8]:
    """Images of one size, more than a page of them."""
    return np.random.default_rng(6).integers(0, 256, (30, 200, 180, 3), dtype=np.uint8)
