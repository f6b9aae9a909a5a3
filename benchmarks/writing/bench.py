"""Files and processes that the figures of the writing benchmark share."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.harness.bench import CORES, BaseBench
from benchmarks.harness.dataset import Images, prepare_files
from benchmarks.harness.rows import compare
from benchmarks.harness.worker import Worker, workers
from benchmarks.writing.sides import Job, Ours, Stock, class_of
from dp4tl_ffcv import BetonIndex

DETAILS = ("how", "flush", "images", "keep")
WARM_UP = 100  # images

row = partial(compare, other_name=Stock.name)


@dataclass(frozen=True, kw_only=True)
class Scale:
    passthrough: int = 3000
    resize: int = 1200
    """Files of 500 pixels."""
    compact: int = 16_384
    """Images of 500 pixels in the beton that is compacted byte for byte."""
    raw: int = 10_240
    """Images of 400 pixels in the beton that is compacted to raw images."""
    peak: tuple[int, int] = (10_000, 100_000)
    """Images of 64 pixels, in a listing that repeats the files."""
    distinct: int = 256
    """Different images of each kind."""
    writes: int = 5
    copies: int = 9
    epochs: int = 21
    peaks: int = 2
    """Rounds of measuring memory, each in new processes."""


SCALES = (Scale(),)
QUICK = (
    Scale(
        passthrough=600,
        resize=300,
        compact=1500,
        raw=2560,
        peak=(1000, 10_000),
        writes=5,
        copies=5,
        epochs=5,
        peaks=1,
    ),
)


class Bench(BaseBench[Scale]):
    @cached_property
    def outputs(self) -> Path:
        return Path(self.stack.enter_context(TemporaryDirectory(prefix="writing.", dir=self.data)))

    @cached_property
    def sides(self) -> list[Worker]:
        """One process per side, for all figures but memory."""
        return self.stack.enter_context(self.both())

    @property
    def small(self) -> Path:
        return prepare_files(self.images(self.scale.distinct, 64), self.data)

    @property
    def outs(self) -> tuple[Path, Path]:
        return self.outputs / "ours.beton", self.outputs / "other.beton"

    def images(self, num_samples: int, long_side: int) -> Images:
        return Images(num_samples=num_samples, long_side=long_side, distinct=self.scale.distinct)

    def files_in_memory(self, num_samples: int, long_side: int) -> Path:
        """Return a folder of files that are in the page cache."""
        files = prepare_files(self.images(num_samples, long_side), self.data)
        for path in files.iterdir():
            path.read_bytes()
        return files

    @contextmanager
    def both(self) -> Iterator[list[Worker]]:
        """Yield a new process for each side, after each has written a few images."""
        with workers(Ours, Stock) as sides:
            for side in sides:
                side.call("list_files", Job(files=self.small, num_samples=WARM_UP))
                side.call("write", self.outputs / "warm_up.beton")
            yield sides

    def check_written(self, job: Job, long_side: int) -> dict[str, Any]:
        """Check the images that both sides wrote, and return parameters of the row."""
        labels = np.sort(class_of(np.arange(job.num_samples)))
        sizes = []
        for out in self.outs:
            index = BetonIndex.open(out)
            images = index.column("image")
            sides = np.maximum(images["width"], images["height"])
            if not np.array_equal(np.sort(index.labels()), labels) or np.any(sides != long_side):
                raise RuntimeError(f"{out} has other labels or sizes than were written")
            sizes.append(float(index.sample_bytes().mean()))
        return {
            "images": job.num_samples,
            "workers": CORES,
            "ours_bytes_per_image": sizes[0],
            "other_bytes_per_image": sizes[1],
        }
