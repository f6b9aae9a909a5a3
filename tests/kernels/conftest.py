"""The numbers of threads to run kernels with."""

from collections.abc import Iterator

import pytest

from tests.support.threads import use_threads

COUNTS = (1, 2, 5)


@pytest.fixture
def thread_counts(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Yield each number of threads, while kernels use as many."""

    def each() -> Iterator[int]:
        for count in COUNTS:
            use_threads(monkeypatch, count)
            yield count

    return each()
