"""Bytes that the disk reads in an epoch, per byte of the retained samples.

The kernel counts them. Each row is the worst case of one file: over our caches, orders and kept
fractions. The other side has the same order and fraction. Classes are spread over the whole file.
"""

import gc
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.dataset import PAGE_SIZE
from benchmarks.harness.memory import drop_from_cache, tree_read_bytes
from benchmarks.harness.rows import Row
from benchmarks.harness.worker import workers
from benchmarks.loader.bench import ORDERS, Bench, params, single
from benchmarks.loader.sides import Ours, Setting, Side, Stock
from dp4tl_ffcv import BetonIndex, image_fields, write_beton

KEEP = (0.1, 0.2, 0.5, 1.0)
RAW_BYTES = 128 << 20  # pixels of a raw file
CLASSES = 100
SECTOR = 512
WAYS = {"extents": True, "ram": False}  # each cache, and whether that is `from_disk`


@dataclass(frozen=True)
class Shape:
    """Shape of the images in a raw file."""

    side: int
    is_square: bool

    def __str__(self) -> str:
        return f"raw, {self.side} px{', square' if self.is_square else ''}"


# Datasets of 32 and 64 pixels, such as CIFAR and Tiny ImageNet, are square: whole sectors.
SHAPES = tuple(Shape(side, is_square=square) for side, square in (
    (32, True), (32, False), (64, True), (64, False), (160, False), (400, False),
))  # fmt: skip


def measure(bench: Bench) -> Iterator[Row]:
    files = {"JPEG, 500 px": bench.paged}
    files |= {str(shape): write_raw(shape, bench.data) for shape in SHAPES}
    with workers(ColdOurs, ColdStock) as (ours, stock):
        for how, beton in files.items():
            cases = [
                (ours.call("read_cold", setting), setting)
                for keep, order, from_disk in product(KEEP, ORDERS, WAYS.values())
                for setting in [_setting(beton, keep, order, from_disk)]
            ]
            mine, setting = max(cases, key=lambda case: case[0]["read"])
            its = stock.call("read_cold", setting)
            about = params(setting, how=f"{how}, {mine['cache']}", least=_least(setting))
            about["warm"] = max(ours.call("read_warm", setting) for _, setting in cases)
            about["tables"] = mine["tables"]
            pair = (mine["read"], its["read"])
            unit = "bytes read / bytes retained"
            yield single("read_amplification_cold", unit, pair, **about)


def _setting(beton: Path, keep: float, order: str, from_disk: bool) -> Setting:
    return Setting(beton=beton, keep=keep, order=order, from_disk=from_disk, resolution=None)


def write_raw(shape: Shape, folder: Path) -> Path:
    """Return a beton of random pixels; write it if it is missing."""
    name = "_".join(str(shape).replace(",", "").split())
    path = folder / f"{name}_{RAW_BYTES}.beton"
    if not path.exists():
        rng = np.random.default_rng(shape.side)
        pixels = rng.integers(0, 256, 4 * shape.side**2, dtype=np.uint8)

        def samples() -> Iterator[tuple[Any, int, int]]:
            number = left = 0
            while left < RAW_BYTES:
                short = (
                    shape.side if shape.is_square else int(shape.side * rng.choice((3 / 4, 2 / 3)))
                )
                height, width = rng.permutation((shape.side, short)).tolist()
                image = pixels[number % shape.side :][: 3 * height * width]
                yield image.reshape(height, width, 3), int(rng.integers(CLASSES)), number
                number, left = number + 1, left + image.size

        write_beton(path, list(samples()), image_fields(mode="raw"), seed=None, page_size=PAGE_SIZE)
    return path


def _least(setting: Setting) -> float:
    """Return the bytes of the sectors that hold retained bytes, per retained byte."""
    found = np.sort(BetonIndex.open(setting.beton).extents(setting.retained()), order="ptr")
    begins, sizes = found["ptr"].astype(np.int64), found["size"].astype(np.int64)
    firsts, ends = begins // SECTOR, -(-(begins + sizes) // SECTOR)
    firsts[1:] = np.maximum(firsts[1:], ends[:-1])
    return float((ends - firsts).sum() * SECTOR / sizes.sum())


class _Cold(Side):
    """Counts what the disk reads, per byte retained."""

    def read_cold(self, setting: Setting) -> dict[str, Any]:
        """Return what an epoch reads, and what the constructor reads, from a file on the disk."""
        self.loader = None
        gc.collect()
        drop_from_cache(setting.beton)
        before = tree_read_bytes(os.getsid(0))
        self.open(setting)
        tables = tree_read_bytes(os.getsid(0)) - before
        drop_from_cache(setting.beton)
        read, retained = self._read(), self._retained(setting)
        if read < retained:
            raise RuntimeError(
                f"{setting.beton} stays in memory. Choose a --data folder on a disk."
            )
        cache = getattr(self.loader, "cache", None)
        return {"read": read / retained, "tables": tables / retained, "cache": cache}

    def read_warm(self, setting: Setting) -> float:
        """Return what an epoch reads from disk, with the file in the page cache.

        The kernel also counts other files, such as libraries: a few KB, now and then.
        """
        self.open(setting)
        with setting.beton.open("rb") as stream:
            while stream.read(PAGE_SIZE):
                pass
        return self._read() / self._retained(setting)

    def _read(self) -> int:
        before = tree_read_bytes(os.getsid(0))
        self.epoch()
        return tree_read_bytes(os.getsid(0)) - before

    def _retained(self, setting: Setting) -> int:
        return int(BetonIndex.open(setting.beton).sample_bytes()[setting.retained()].sum())


class ColdOurs(_Cold, Ours):
    pass


class ColdStock(_Cold, Stock):
    pass
