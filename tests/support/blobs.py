"""Samples for the tests of `write_beton`: blobs of bytes and a label, which may fail or stop."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ffcv.fields import BytesField, IntField
from numpy.typing import NDArray

from dp4tl_ffcv import BetonIndex, write_beton
from tests.support.betons import PAGE_SIZE

FIELDS = {"blob": BytesField(), "label": IntField()}
COUNT = 400
ORDER = np.random.default_rng(0).permutation(COUNT)  # of the default seed


class Blobs(Sequence[Any]):
    """Blobs of several sizes. `errors` are raised at their numbers; `asked` lists who was read."""

    def __init__(
        self,
        count: int = COUNT,
        failing: Sequence[int] = (),
        salt: int = 0,
        errors: Mapping[int, BaseException] | None = None,
    ) -> None:
        self.count = count
        self.salt = salt
        self.errors = {
            **{int(number): OSError(f"no sample {number}") for number in failing},
            **(errors or {}),
        }
        self.asked: list[int] = []

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: Any) -> tuple[NDArray[np.uint8], int]:
        self.asked.append(number)
        if number in self.errors:
            raise self.errors[number]
        rng = np.random.default_rng((number, self.salt))
        return rng.integers(0, 256, 1000 + 150 * (number % 70), dtype=np.uint8), number % 7

    def name(self, number: int) -> str:
        return f"blob {number}"


def write_blobs(path: Path, samples: Sequence[Any], **options: Any) -> BetonIndex:
    options = {"page_size": PAGE_SIZE, "num_workers": 0, **options}
    return write_beton(path, samples, FIELDS, **options)
