"""The numbers of threads to run kernels with."""

from collections.abc import Iterator

import numba
import pytest

MOST = numba.config.NUMBA_NUM_THREADS


@pytest.fixture
def thread_counts() -> Iterator[list[int]]:
    """One, two and the largest number of threads. The number in use is restored afterwards."""
    before = numba.get_num_threads()
    yield sorted({1, min(2, MOST), MOST})
    numba.set_num_threads(before)
