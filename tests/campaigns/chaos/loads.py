"""Epochs of a loader in a process of its own, recorded batch by batch.

The oracle: every image that a loader yields is compared with the image of the same sample in the
intact file. The number of a sample is in its metadata, the image in its data.
"""

import hashlib
import inspect
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .processes import Child
from .verbs import Place

BATCH = 4
Hook = Callable[[int], None]


@dataclass(frozen=True)
class Setup:
    """How a loader reads."""

    cache: str
    jpeg_index: bool = True
    epochs: int = 2
    side: int = 32
    """Pixels of a side of the images."""
    at_once: bool = False
    """Let the cache "ram" read all bytes before the first batch, as it does with small files."""
    timeout: float = 10.0
    """Seconds without data after which the loader must raise an error."""

    @property
    def name(self) -> str:
        """The settings in words."""
        once = ", all at once" if self.at_once else ""
        return f"cache {self.cache}{once}, {'with' if self.jpeg_index else 'without'} JPEG index"


SETUPS = (
    Setup("extents"),
    Setup("extents", jpeg_index=False),
    Setup("ram"),
    Setup("ram", jpeg_index=False),
    Setup("ram", at_once=True),
)


@dataclass(frozen=True)
class Loaded:
    """The samples that a loader yielded, and how it ended."""

    happened: str
    """completed, error, crash or hang."""
    samples: list[list[Any]]
    """Number of each sample, and a digest of its pixels and label, in order."""
    error: str
    """Type and text of the error."""
    seconds: float
    """Longest time without a batch."""
    printed: str


def make_loader(path: Path, setup: Setup, **options: Any) -> Any:
    """Return a loader of images, labels and numbers, in the order of the file."""
    from ffcv.fields.basics import IntDecoder
    from ffcv.transforms import ToTensor

    from dp4tl_ffcv import CenterCropRGBImageDecoder, PrunedLoader
    from dp4tl_ffcv.loading.caches import ram

    if not setup.at_once:
        ram.AT_ONCE = 0
    if "timeout" in inspect.signature(PrunedLoader.__init__).parameters:
        options["timeout"] = setup.timeout
    pipelines = {
        "image": [CenterCropRGBImageDecoder((setup.side,) * 2, ratio=1.0), ToTensor()],
        "label": [IntDecoder()],
        "identifier": [IntDecoder()],
    }
    return PrunedLoader(
        path, BATCH, num_workers=1, order="sequential", drop_last=False, read_ahead=1,
        batches_ahead=1, cache=setup.cache, jpeg_index=setup.jpeg_index, pipelines=pipelines,
        **options,
    )  # fmt: skip


def digests(batch: Any) -> list[list[Any]]:
    """Return the number of every sample of a batch, and a digest of its pixels and label."""
    images, labels, numbers = (np.asarray(values) for values in batch)
    return [
        [int(number[0]), hashlib.sha256(image.tobytes() + label.tobytes()).hexdigest()]
        for image, label, number in zip(images, labels, numbers, strict=True)
    ]


def load(
    place: Place,
    path: Path,
    setup: Setup,
    hook: Hook | None = None,
    patience: float = 30.0,
    before: Callable[[], None] | None = None,
    **options: Any,
) -> Loaded:
    """Load epochs in another process.

    `hook` is called there before each batch, with its number; `before` at the start.
    """
    record = place.work / "record"
    record.unlink(missing_ok=True)

    def run() -> None:
        samples: list[list[Any]] = []
        longest, last, number, error = 0.0, time.monotonic(), 0, ""
        if before is not None:
            before()
        try:
            loader = make_loader(path, setup, **options)
            for _ in range(setup.epochs):
                batches = iter(loader)
                while True:
                    if hook is not None:
                        hook(number)
                    try:
                        batch = next(batches)
                    except StopIteration:
                        break
                    samples += digests(batch)
                    longest = max(longest, time.monotonic() - last)
                    last, number = time.monotonic(), number + 1
        except Exception as failure:
            error = f"{type(failure).__name__}: {failure}"
        longest = max(longest, time.monotonic() - last)
        record.write_text(json.dumps([samples, error, longest]))

    child = Child(run, place.work / "log")
    status = child.wait(patience)
    if status is None:
        return Loaded("hang", [], "", patience, child.text)
    if status != 0 or not record.exists():
        return Loaded("crash", [], "", 0.0, f"status {status}: {child.text}")
    samples, error, seconds = json.loads(record.read_text())
    return Loaded("error" if error else "completed", samples, error, seconds, child.text)


def problems_of(found: Loaded, intact: list[list[Any]], epochs: int) -> list[str]:
    """Compare what was yielded with the intact samples, in the order of the epochs."""
    if found.happened in ("hang", "crash"):
        return [f"{found.happened}: {found.printed[-900:]}"]
    expected = intact * epochs
    if found.happened == "completed" and len(found.samples) != len(expected):
        return [f"lost samples: {len(found.samples)} of {len(expected)} samples, and no error"]
    by_pixels = {pixels: number for number, pixels in intact}
    for at, (number, pixels) in enumerate(found.samples):
        if number != expected[at][0]:
            return [f"another order: sample {number} in place of {expected[at][0]}"]
        if pixels != expected[at][1]:
            other = by_pixels.get(pixels)
            if other is not None:
                return [f"another sample's pixels: sample {number} shows sample {other}"]
            return [f"wrong pixels: sample {number}"]
    return []
