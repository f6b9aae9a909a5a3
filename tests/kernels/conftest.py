"""What the kernel tests share: the numbers of threads to run with."""

from collections.abc import Iterator

import numba
import pytest

MOST = numba.config.NUMBA_NUM_THREADS


@pytest.fixture
def thread_counts() -> Iterator[list[int]]:
    """1, 2 and as many threads as there may be; the number that was set comes back after."""
    before = numba.get_num_threads()
    yield sorted({1, min(2, MOST), MOST})
    numba.set_num_threads(before)
