"""How the images of a compacted beton are stored, and which as pixels if its bytes are limited."""

from bisect import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .plan import Retained


@dataclass(frozen=True, slots=True)
class ImagePlan:
    """How the images of one field are to be stored; an entry `(M,)` per sample."""

    column: str
    rows: NDArray[np.int64]
    """Their extents."""
    sizes: NDArray[np.int64]
    """Height and width `(M, 2)` that they get."""
    shrunk: NDArray[np.bool_]
    raw: NDArray[np.bool_]
    """Stored as pixels in the end."""
    was_raw: NDArray[np.bool_]

    @property
    def made(self) -> NDArray[np.bool_]:
        """Which are not copied as they are."""
        made: NDArray[np.bool_] = self.shrunk | (self.raw != self.was_raw)
        return made

    @property
    def pixel_bytes(self) -> NDArray[np.int64]:
        """Bytes of the pixels of each."""
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
    """Choose the images that cost most to decode for the bytes they save, as many as fit.

    A page never grows for them: samples that would need a larger one as pixels keep their JPEGs.
    Pages that grew would cost all other samples their room at the ends of pages, and the file's
    bytes would no longer grow with the number of images chosen, as the search here needs.

    Args:
        budget: bytes of the whole file.
        fields: each field's images; those that stay JPEGs so far may be chosen.
        ids: of all samples `(M,)`; of images that cost the same, those of lower ids come first.
        retained: all samples.
        sizes: bytes of each extent `(R,)` if no candidate is chosen.
        placed: bytes per page, and of the file, for the bytes of each extent.

    Returns:
        The chosen ones' positions in the new order, for each field.

    Raises:
        ValueError: the budget is too small for any file.
        BetonError: no page can hold the largest sample.
    """
    page_size, least = placed(sizes)
    if least > budget:
        raise ValueError(
            f"`raw_budget` must be at least {least} bytes, which the file takes with its images as "
            f"they are; got {budget}. Raise it, or retain less."
        )
    packed = [~field.raw for field in fields]
    samples = np.concatenate([np.flatnonzero(each) for each in packed])
    owners = np.repeat(np.arange(len(fields)), [each.sum() for each in packed])
    pairs = list(zip(fields, packed, strict=True))
    rows = np.concatenate([field.rows[each] for field, each in pairs])
    pixels = np.concatenate([field.pixel_bytes[each] for field, each in pairs])
    as_pixels = sizes.copy()
    as_pixels[rows] = pixels
    extra = pixels - sizes[rows]
    # Pixels may even take less than a tiny JPEG.
    cost = np.where(extra > 0, sizes[rows] / np.maximum(extra, 1), np.inf)
    order = np.lexsort((owners, ids[samples], -cost))
    order = order[retained.rooms(as_pixels)[samples[order]] <= page_size]

    def spent(count: int) -> int:
        mixed, first = sizes.copy(), order[:count]
        mixed[rows[first]] = pixels[first]
        return placed(mixed)[1]

    chosen = order[: bisect(range(1, len(order) + 1), budget, key=spent)]
    return [samples[chosen[owners[chosen] == number]] for number in range(len(fields))]
