"""Choose which images a compacted beton stores as raw pixels within a budget of bytes."""

from bisect import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .plan import Retained


@dataclass(frozen=True, slots=True)
class ImagePlan:
    """How to store the images of one field; arrays have one entry per sample `(M,)`."""

    column: str
    rows: NDArray[np.int64]
    """Rows of their extents."""
    sizes: NDArray[np.int64]
    """New height and width `(M, 2)`."""
    shrunk: NDArray[np.bool_]
    raw: NDArray[np.bool_]
    """Stored as raw pixels in the new beton."""
    was_raw: NDArray[np.bool_]

    @property
    def changed(self) -> NDArray[np.bool_]:
        """Whether each image is stored in another way than before."""
        changed: NDArray[np.bool_] = self.shrunk | (self.raw != self.was_raw)
        return changed

    @property
    def pixel_bytes(self) -> NDArray[np.int64]:
        """Bytes of each image as raw pixels."""
        num_bytes: NDArray[np.int64] = 3 * self.sizes.prod(axis=1)
        return num_bytes


def choose_raw(
    budget: int,
    fields: Sequence[ImagePlan],
    ids: NDArray[np.int64],
    retained: Retained,
    sizes: NDArray[np.int64],
    placed: Callable[[NDArray[np.int64]], tuple[int, int]],
) -> list[NDArray[np.int64]]:
    """Choose as many images as fit, those that cost most to decode per byte of pixels first.

    Samples that would need a larger page as pixels keep their JPEGs. With larger pages, all other
    samples would lose room at the ends of pages, and the file size would no longer grow with the
    number of images chosen, which the search here requires.

    Args:
        budget: bytes of the whole file.
        fields: images of each field; those not yet raw may be chosen.
        ids: sample ids `(M,)`; among equal images, lower ids are chosen first.
        retained: all samples.
        sizes: bytes of each extent `(R,)` if no image is chosen.
        placed: returns page size and file size, given the bytes of each extent.

    Returns:
        For each field, the positions of the chosen images in the new order.

    Raises:
        ValueError: the budget is too small for any file.
        BetonError: no page can hold the largest sample.
    """
    page_size, least = placed(sizes)
    if least > budget:
        raise ValueError(
            f"`raw_budget` of {budget} bytes is too small: without raw images the file takes "
            f"{least}. Raise it, or retain less."
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
    # The pixels of a tiny image can take fewer bytes than its JPEG.
    cost = np.where(extra > 0, sizes[rows] / np.maximum(extra, 1), np.inf)
    order = np.lexsort((owners, ids[samples], -cost))
    order = order[retained.rooms(as_pixels)[samples[order]] <= page_size]

    def spent(count: int) -> int:
        mixed, first = sizes.copy(), order[:count]
        mixed[rows[first]] = pixels[first]
        return placed(mixed)[1]

    chosen = order[: bisect(range(1, len(order) + 1), budget, key=spent)]
    return [samples[chosen[owners[chosen] == number]] for number in range(len(fields))]
