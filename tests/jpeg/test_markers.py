"""Markers of a JPEG."""

import pytest

from dp4tl_ffcv.jpeg.markers import orientation_of


def test_a_lack_of_memory_is_not_taken_for_damaged_exif_data() -> None:
    def fail() -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        orientation_of(fail)  # type: ignore[arg-type]  # returns nothing
