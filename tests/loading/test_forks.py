"""Loaders in several threads and processes, with each of numba's threading layers."""

import copy
import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from dp4tl_ffcv.loading.decoding.threads import call_in_threads, decoding_threads
from tests.support.loading import loader_of, run_script

SCRIPT = """
import os, sys, threading
import numba, numpy as np, torch
from ffcv.pipeline.compiler import Compiler
from dp4tl_ffcv import CenterCropRGBImageDecoder, PrunedLoader
from dp4tl_ffcv.loading.ffcv_adapter import compilation
from dp4tl_ffcv.loading.reading import file_reader
from ffcv.transforms import ToTensor

path, cache = sys.argv[1:]

def make():
    pipelines = {"image": [CenterCropRGBImageDecoder((8, 8), ratio=1.0), ToTensor()]}
    return PrunedLoader(path, 10, num_workers=2, cache=cache, drop_last=False, pipelines=pipelines)

def sums(batches):
    return [int(batch[0].long().sum()) for batch in batches]

loader = make()
expected = sums(loader)
batches = iter(loader)
started = sums([next(batches)])
assert [sums([a]) == sums([b]) for a, b in zip(make(), make())] == [True] * 12
found = []
threads = [threading.Thread(target=lambda: found.append(sums(make()))) for _ in range(3)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert found == [expected] * 3

class Numbers(torch.utils.data.Dataset):
    def __len__(self):
        return 40
    def __getitem__(self, at):
        return at

beside = torch.utils.data.DataLoader(Numbers(), batch_size=4, num_workers=2)
pairs = [(sums([batch])[0], len(numbers)) for batch, numbers in zip(loader, beside)]
assert pairs == [(each, 4) for each in expected[:10]], pairs

locks = file_reader._counting, compilation._lock
with locks[0], locks[1]:  # as if another thread held them
    child = os.fork()
if child == 0:
    try:
        next(batches)
    except RuntimeError as error:
        print("child:", error, flush=True)
    batches.close()
    assert sums(loader) == sums(make()) == expected
    print("child: done", flush=True)
    sys.exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert started + sums(batches) == expected
assert sums(loader) == expected
print("layer", numba.threading_layer())
"""


@pytest.mark.parametrize(
    ("layer", "cache"), [("workqueue", "extents"), ("omp", "ram"), ("tbb", "extents")]
)
def test_threads_and_forks(layer: str, cache: str, photos: Any) -> None:
    if layer == "tbb":
        pytest.importorskip("numba.np.ufunc.tbbpool", exc_type=ImportError)
    environment = {**os.environ, "NUMBA_THREADING_LAYER": layer}
    lines = run_script(SCRIPT, photos.path, cache, env=environment).splitlines()
    assert lines[-1] == f"layer {layer}"
    forked = "child: this process was forked during the epoch, and has no thread that loads"
    assert any(line.startswith(forked) for line in lines)
    assert "child: done" in lines


def test_a_loader_cannot_be_pickled_but_copied(colours: Any) -> None:
    loader = loader_of(colours, 10)
    with pytest.raises(TypeError, match="Make the loader in the process that uses it"):
        pickle.dumps(loader)
    assert copy.copy(loader).indices is loader.indices


def test_an_error_in_one_share_waits_for_the_others(tmp_path: Path) -> None:
    ended = []

    def share(number: int) -> None:
        if number == 0:
            raise MemoryError
        while not (tmp_path / "go").exists() and number == 1:
            (tmp_path / "go").touch()
        ended.append(number)

    def share_all() -> None:
        try:
            call_in_threads(share, 8)
        finally:
            assert sorted(ended) == list(range(1, 8))

    with decoding_threads(2), pytest.raises(MemoryError):
        share_all()
