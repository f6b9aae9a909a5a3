"""Choose which images a compacted beton stores as raw pixels within a budget of bytes."""

from bisect import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .plan import Retained


@dataclass(frozen=True, slots=True)
class ImagePlan:
    """How to store the images of one field. Arrays have one entry per sample `(M,)`."""

    column: str
    rows: NDArray[np.int64]
    """Row of each image in `Retained.extents`."""
    sizes: NDArray[np.int64]
    """New height and width `(M, 2)`."""
    shrunk: NDArray[np.bool_]
    raw: NDArray[np.bool_]
    """Whether the new beton stores raw pixels."""
    was_raw: NDArray[np.bool_]
    baseline: bool
    """Whether JPEGs are stored as baseline JPEGs."""

    @property
    def changed(self) -> NDArray[np.bool_]:
        """Whether each image is stored in another way than before."""
        is_rewritten = self.baseline & ~self.was_raw
        return np.asarray(self.shrunk | (self.raw != self.was_raw) | is_rewritten)

    @property
    def pixel_bytes(self) -> NDArray[np.int64]:
        """Bytes of each image as raw pixels."""
        return np.asarray(3 * self.sizes.prod(axis=1))


def choose_raw(
    budget: int,
    fields: Sequence[ImagePlan],
    ids: NDArray[np.int64],
    retained: Retained,
    sizes: NDArray[np.int64],
    placed: Callable[[NDArray[np.int64]], tuple[int, int]],
) -> list[NDArray[np.int64]]:
    """Choose as many images as fit into a file of `budget` bytes.

    Images that save the most decoding time per byte come first; among equal ones, those with lower
    `ids`. Samples that would need a larger page as pixels keep their JPEGs: with larger pages, the
    file size would no longer grow with the number of images chosen, which the search requires.

    `sizes` are the bytes of each extent if no image is chosen. `placed` returns page and file size
    for other sizes. Return the positions of the chosen images in the new order, for each field.
    """
    page_size, least = placed(sizes)
    if least > budget:
        raise ValueError(
            f"`raw_budget` of {budget} bytes is too small: even without raw images, the file has "
            f"{least} bytes. Raise the budget, or retain less."
        )
    candidates = [~field.raw for field in fields]
    samples = np.concatenate([np.flatnonzero(each) for each in candidates])
    owners = np.repeat(np.arange(len(fields)), [each.sum() for each in candidates])
    pairs = list(zip(fields, candidates, strict=True))
    rows = np.concatenate([field.rows[each] for field, each in pairs])
    pixels = np.concatenate([field.pixel_bytes[each] for field, each in pairs])
    as_pixels = sizes.copy()
    as_pixels[rows] = pixels
    extra = pixels - sizes[rows]
    # The pixels of a tiny image can be smaller than its JPEG.
    cost = np.where(extra > 0, sizes[rows] / np.maximum(extra, 1), np.inf)
    order = np.lexsort((owners, ids[samples], -cost))
    order = order[retained.rooms(as_pixels)[samples[order]] <= page_size]

    def spent(count: int) -> int:
        mixed, first = sizes.copy(), order[:count]
        mixed[rows[first]] = pixels[first]
        return placed(mixed)[1]

    chosen = order[: bisect(range(1, len(order) + 1), budget, key=spent)]
    return [samples[chosen[owners[chosen] == number]] for number in range(len(fields))]
