"""Many loaders in one process: none of them spoils what numba keeps for the others."""

import subprocess
import sys
from typing import Any

import pytest

# ffcv's Loader has numba print KeyErrors on stderr when a second one is made or freed.
MANY = """
import gc, sys
import numpy as np
from dp4tl_ffcv import PrunedLoader, Selection, BetonIndex

path, os_cache = sys.argv[1], sys.argv[2] == "True"
index = BetonIndex.open(path)
for turn in range(12):
    selection = Selection.of_classes(index, [turn % 10, 3 + turn % 7][: 1 + turn % 2])
    loader = PrunedLoader(
        path, 6, os_cache=os_cache, selection=selection, relabel=True, order="random",
        num_workers=1 + turn % 2,
    )
    count = sum(len(labels) for _, labels, _ in loader)
    assert count == len(selection), (count, len(selection))
    if turn % 3 == 0:
        del loader
    gc.collect()
print("done")
"""


@pytest.mark.parametrize("os_cache", [True, False])
def test_many_loaders_are_made_and_freed_in_silence(os_cache: bool, colours: Any) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", MANY, str(colours.path), str(os_cache)],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr, done.returncode) == ("done\n", "", 0)
