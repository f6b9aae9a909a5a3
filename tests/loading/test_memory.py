"""The memory manager gives compiled code the bytes at an address; many loaders in one process."""

from typing import Any

import numpy as np
import pytest

from dp4tl_ffcv.loading.caches import open_cache
from dp4tl_ffcv.loading.decoding.workspace import Workspace
from dp4tl_ffcv.loading.ffcv_adapter.memory import RetainedMemory
from dp4tl_ffcv.loading.reading.extents import retained_extents
from dp4tl_ffcv.loading.reading.file_reader import FileReader
from tests.support.loading import run_script

# ffcv's Loader has numba print KeyErrors on stderr when a second one is made or freed.
MANY = """
import gc, sys
import numpy as np
from dp4tl_ffcv import PrunedLoader, Selection, BetonIndex

path = sys.argv[1]
index = BetonIndex.open(path)
for turn in range(12):
    selection = Selection.of_classes(index, [turn % 10, 3 + turn % 7][: 1 + turn % 2])
    loader = PrunedLoader(
        path, 6, selection=selection, relabel=True, order="random", num_workers=1 + turn % 2,
        cache=("os", "extents", "ram")[turn % 3],
    )
    count = sum(len(labels) for _, labels, _ in loader)
    assert count == len(selection), (count, len(selection))
    if turn % 4 == 0:
        del loader
    gc.collect()
print("done")
"""


def test_many_loaders_are_made_and_freed_in_silence(colours: Any) -> None:
    assert run_script(MANY, colours.path, flags=["-W", "error::UserWarning"]) == "done\n"


def manager_of(dataset: Any, cache: str = "extents") -> RetainedMemory:
    extents = retained_extents(dataset.index, np.arange(0, 120, 5), {"image"})
    reader = FileReader(str(dataset.path))
    opened = open_cache(cache, reader, extents, read_ahead=1, shared_as=None)
    return RetainedMemory(dataset.index, opened, 17, lambda: Workspace(2, 100))


@pytest.mark.parametrize("when", ["before", "after"])
def test_there_is_no_state_outside_of_an_epoch(when: str, colours: Any) -> None:
    context = manager_of(colours).schedule_epoch([np.array([0, 5])])
    if when == "after":
        with context:
            pass
    with pytest.raises(RuntimeError, match=r"^`state` exists only within"):
        _ = context.state
    context.check()  # nothing to say
    context.start_batch(0)
