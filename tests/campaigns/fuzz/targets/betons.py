"""Betons of every kind of field: opened, verified, loaded by each cache, read, compacted."""

import shutil
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from dp4tl_ffcv import (
    BetonError,
    BetonIndex,
    CenterCropRGBImageDecoder,
    PrunedLoader,
    compact,
    read_image,
    verify,
)
from dp4tl_ffcv.loading import CACHES
from tests.campaigns.fuzz import betons
from tests.campaigns.fuzz.betons import RESIZED, SIDE, Plain, Truth
from tests.campaigns.fuzz.mutate import Span, mutated
from tests.campaigns.fuzz.target import FaultError, Sample, Target

BETON = "a.beton"
_SEEDS = (1, 2, 3)


class BetonTarget(Target):
    """A beton whose whole file is attacked."""

    fields: ClassVar[tuple[str, ...]]
    parts: ClassVar[tuple[str, ...]] = ("header", "fields", "metadata", "table")
    cases = 34_000  # there are six, 204,000 betons in all

    def prepare(self, folder: Path) -> list[Sample]:
        """Return betons of different samples."""
        paths = [betons.write(folder / f"{seed}.beton", self.fields, seed) for seed in _SEEDS]
        return [
            Sample(
                {BETON: path.read_bytes()},
                BETON,
                self.spans(path),
                betons.truth_of(path.read_bytes()),
            )
            for path in paths
        ]

    def spans(self, path: Path) -> list[Span]:
        """Return the numbers to attack, each part as often as the others."""
        found = betons.spans_of(path)
        most = max(len(found[part]) for part in self.parts)
        return [span for part in self.parts for span in _stretched(found[part], most)]

    def use(self, rng: np.random.Generator, folder: Path, sample: Sample, data: bytes) -> str:
        """Load an epoch and compare it; now and then, do what else a user does with a beton."""
        path, extra = folder / BETON, int(rng.integers(8))
        try:
            index = BetonIndex.open(path)
        except BetonError:
            if extra < 2:
                _verify_finds(path)
            raise
        plain = Plain(data)
        if extra == 0:
            verify(path, decode=True, num_workers=0)
        elif extra == 1:
            _read_images(index, plain, sample.truth)
        elif extra == 2 and plain.count:
            _compact(rng, path, plain)
        return load(rng, path, plain, sample.truth)


def load(rng: np.random.Generator, path: Path, plain: Plain, truth: Truth, **options: Any) -> str:
    """Load an epoch in some order by some cache and compare every value with the bytes."""
    ids = np.arange(plain.count)
    if plain.count and rng.random() < 0.3:
        ids = np.sort(rng.permutation(ids)[: int(rng.integers(1, plain.count + 1))])
    images = [name for name, kind in plain.kinds.items() if kind == "rgb_image"]
    loader = PrunedLoader(
        path,
        int(rng.choice([2, betons.SAMPLES])),
        num_workers=1,
        indices=ids,
        order=str(rng.choice(["sequential", "random"])),
        cache=str(rng.choice(CACHES)),
        drop_last=False,
        pipelines={name: [CenterCropRGBImageDecoder((SIDE, SIDE), ratio=1.0)] for name in images},
        **{"jpeg_index": False, **options},
    )
    order = loader.next_traversal_order()
    # Copies: the memory of a batch is used again some batches later.
    batches = ([np.array(each) for each in batch] for batch in loader)
    rows = [row for batch in batches for row in zip(*batch, strict=True)]
    if len(rows) != len(ids) or sorted(order) != ids.tolist():
        raise FaultError("wrong samples", f"{len(rows)} samples of {len(ids)}")
    touched = 0
    for number, row in zip(np.asarray(order).tolist(), rows, strict=True):
        for name, value in zip(plain.kinds, row, strict=True):
            touched += compare(plain, truth, number, name, value)
    return "equal" if not touched else "read as the bytes say"


def compare(
    plain: Plain, truth: Truth, number: int, name: str, value: Any, exact: bool = False
) -> bool:
    """Raise `FaultError` if a value contradicts the bytes; return whether they were touched.

    `exact` is for JPEGs that `read_image` decoded.
    """
    is_touched = (
        number >= len(truth.records)
        or plain.kinds.get(name) != truth.kinds.get(name)
        or plain.raw(number, name) != truth.records[number][name]
    )
    where = f"{'read_image' if exact else 'loader'}, sample {number}, field {name!r}"
    try:
        intact = None if is_touched or exact else truth.values[number][name]
        wanted = plain.value(number, name, exact) if intact is None else intact
    except betons.DamagedError as error:
        raise FaultError("damaged value returned", f"{error}: {where}: {_start(value)}") from error
    if wanted is RESIZED:
        return True
    wanted = np.asarray(wanted)
    found = value[: wanted.size] if plain.kinds[name] in ("bytes", "json") else value
    if found.tobytes() != wanted.tobytes():
        kind = "touched value differs" if is_touched else "untouched value differs"
        message = f"{plain.kinds[name]}: {where}: {_start(found)} instead of {_start(wanted)}"
        raise FaultError(kind, message)
    return is_touched


def _start(values: Any) -> str:
    values = np.asarray(values)
    return f"{values.dtype}{list(values.shape)} {values.ravel()[:8].tolist()}"


def _verify_finds(path: Path) -> None:
    if verify(path, num_workers=0).is_sound:
        raise FaultError("verify finds nothing", "open refuses a file that verify finds sound")


def _read_images(index: BetonIndex, plain: Plain, truth: Truth) -> None:
    for name, kind in plain.kinds.items():
        if kind == "rgb_image":
            for number in range(len(index)):
                pixels = betons.centre(read_image(index, number, name))
                if pixels is not RESIZED:
                    compare(plain, truth, number, name, pixels, exact=True)


def _compact(rng: np.random.Generator, path: Path, plain: Plain) -> None:
    """Compact some samples, and check that the result holds their bytes."""
    ids = np.sort(rng.permutation(plain.count)[: int(rng.integers(1, plain.count + 1))])
    out = path.parent / "out"
    try:
        compact(path, ids, out / "b.beton", num_workers=1, jpeg_index=False)
        found = Plain((out / "b.beton").read_bytes())
    except BaseException:
        if out.exists() and (left := sorted(each.name for each in out.iterdir())):
            raise FaultError("left behind", f"compact leaves {left}") from None
        raise
    finally:
        shutil.rmtree(out, ignore_errors=True)
    wanted = Counter(tuple(plain.payload(each, name) for name in plain.kinds) for each in ids)
    copied = Counter(
        tuple(found.payload(each, name) for name in found.kinds) for each in range(found.count)
    )
    if wanted != copied:
        raise FaultError("copied samples differ", f"samples {ids.tolist()}")


def _stretched(spans: list[Span], count: int) -> list[Span]:
    return [spans[at % len(spans)] for at in range(count)] if spans else []


class JpegBetons(BetonTarget):
    name = "beton: JPEG images"
    fields = ("jpg", "label")


class RawBetons(BetonTarget):
    name = "beton: raw images"
    fields = ("raw", "label")


class NumberBetons(BetonTarget):
    name = "beton: numbers"
    fields = ("label", "score")


class BytesBetons(BetonTarget):
    name = "beton: bytes and JSON"
    fields = ("blob", "info")


class ArrayBetons(BetonTarget):
    name = "beton: arrays and tensors"
    fields = ("vector", "tensor")


class WholeBetons(BetonTarget):
    name = "beton: every field"
    fields = ("jpg", "raw", "label", "score", "blob", "info", "vector", "tensor")


class AllocationTables(BetonTarget):
    """A beton of every field of which only the allocation table and its place are attacked."""

    name = "allocation table"
    fields = WholeBetons.fields
    parts = ("table",)
    cases = 20_000

    def mutate(self, rng: np.random.Generator, sample: Sample, donor: Sample) -> bytes:
        """Mutate the table as numbers, rows and bytes."""
        at, data = int.from_bytes(sample.data[16:24], "little"), sample.data
        other = int.from_bytes(donor.data[16:24], "little")
        spans = [(start - at, size) for start, size in sample.spans]
        return data[:at] + mutated(rng, data[at:], spans, donor.data[other:])


class JpegPayloads(BetonTarget):
    """A beton of JPEGs of which one image's bytes are attacked, within its byte range."""

    name = "JPEG payload"
    fields = ("jpg", "label")
    cases = 20_000

    def mutate(self, rng: np.random.Generator, sample: Sample, donor: Sample) -> bytes:
        """Mutate the bytes of one image, and cut or pad them to their old size."""
        rows, others = Plain(sample.data).table, Plain(donor.data).table
        start, size = (int(rows[int(rng.integers(len(rows)))][each]) for each in ("ptr", "size"))
        first = int(others[0]["ptr"])
        jpeg = mutated(rng, sample.data[start : start + size], (), donor.data[first : first + 2000])
        jpeg = jpeg[:size].ljust(size, b"\0")
        return sample.data[:start] + jpeg + sample.data[start + size :]
