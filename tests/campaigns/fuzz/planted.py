"""Targets that break the promise, one in each way, to show that the campaign notices."""

import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dp4tl_ffcv import PrunedLoader
from tests.campaigns.fuzz import worker
from tests.campaigns.fuzz.mutate import mutated
from tests.campaigns.fuzz.target import Sample, Target
from tests.campaigns.fuzz.targets.betons import WholeBetons
from tests.campaigns.fuzz.targets.indexed_images import IndexedJpegs


class Planted(Target):
    """A file that says which case it is, and is used by the method `case`."""

    def prepare(self, folder: Path) -> list[Sample]:
        return [Sample({"number": b"intact"}, "number")]

    def mutate(self, rng: np.random.Generator, sample: Sample, donor: Sample) -> bytes:
        return b"mutated"

    def use(self, rng: np.random.Generator, folder: Path, sample: Sample, data: bytes) -> str:
        if data == b"mutated":
            self.case(folder)
        return "equal"

    def case(self, folder: Path) -> None:
        raise NotImplementedError


class Crash(Planted):
    name = "crash"

    def case(self, folder: Path) -> None:
        os.kill(os.getpid(), 11)


class Hang(Planted):
    name = "hang"

    def case(self, folder: Path) -> None:
        time.sleep(600)


class Hog(Planted):
    name = "memory"

    def case(self, folder: Path) -> None:
        np.ones(200 << 20, dtype=np.uint8)


class Litter(Planted):
    name = "left behind"

    def case(self, folder: Path) -> None:
        (folder / "number.part").write_bytes(b"")


class Execute(Planted):
    name = "executed or read outside"

    def case(self, folder: Path) -> None:
        os.system("true")


class Outside(Planted):
    """Reads what nobody named, by a path that leads out of the folder."""

    name = "read outside"
    fault = "executed or read outside"

    def case(self, folder: Path) -> None:
        Path(os.path.relpath(self.secret)).read_bytes()


class Spin(Planted):
    name = "endless loop"
    fault = "hang"

    def case(self, folder: Path) -> None:
        while True:
            pass


class Foreign(Planted):
    name = "undocumented ValueError"

    def case(self, folder: Path) -> None:
        int("no number")  # numpy, json and others raise the same type


class ChangedBatches:
    """A loader that changes its batches in every case. The files stay intact."""

    def prepare(self, folder: Path) -> list[Sample]:
        self._is_changing = False
        return super().prepare(folder)

    def mutate(self, rng: np.random.Generator, sample: Sample, donor: Sample) -> bytes:
        self._is_changing = True
        return sample.data

    def use(self, rng: np.random.Generator, folder: Path, sample: Sample, data: bytes) -> str:
        original = PrunedLoader.__iter__
        if self._is_changing:
            PrunedLoader.__iter__ = lambda loader: map(
                partial(self.changed, loader), original(loader)
            )
        try:
            return super().use(rng, folder, sample, data)
        finally:
            PrunedLoader.__iter__ = original


class Swapped(ChangedBatches, WholeBetons):
    """A loader that returns two samples of a batch in each other's place."""

    name = "untouched value differs"

    def changed(self, loader: PrunedLoader, batch: Any) -> Any:
        return [np.asarray(values)[::-1] for values in batch]


class WrongIndex(ChangedBatches, IndexedJpegs):
    """Indexes of JPEGs that lead to other pixels."""

    name = "index that changes pixels"
    fault = "touched value differs"

    def changed(self, loader: PrunedLoader, batch: Any) -> Any:
        return [np.asarray(values) ^ np.uint8(loader._has_indexes) for values in batch]


class Held(Planted):
    """A target that holds, with outcomes that depend on the mutation."""

    name = "held"

    def mutate(self, rng: np.random.Generator, sample: Sample, donor: Sample) -> bytes:
        return mutated(rng, sample.data)

    def use(self, rng: np.random.Generator, folder: Path, sample: Sample, data: bytes) -> str:
        return f"{len((folder / 'number').read_bytes())} bytes"


PLANTED: dict[str, Target] = {
    target.name: target
    for target in (
        Crash(), Hang(), Spin(), Hog(), Litter(), Execute(), Outside(), Foreign(), Swapped(),
        WrongIndex(), Held(),
    )
}  # fmt: skip

if __name__ == "__main__":
    worker.main(int(sys.argv[1]), Path(sys.argv[2]), PLANTED)
