"""Two processes with gloo: their shares of an epoch, and their shared memory."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dp4tl_ffcv import Selection
from dp4tl_ffcv.loading.reading.shared_memory import FOLDER
from tests.support.loading import ids_of, loader_of

WORLD_SIZE = 2
ORDERS = ["sequential", "random", "quasi_random", "ffcv's own"]
CASES = [*(f"extents, {order}" for order in ORDERS), "ram, random"]
CLASSES = [6, 1, 3]
BATCH = 7
LONGEST = 300  # seconds for both processes, which take a few
# One rank loads two epochs in each case, then an epoch of other samples, and prints a line of JSON.
RANK = """
import json, sys
from datetime import timedelta
from functools import partial
from pathlib import Path
import numpy as np
import torch.distributed as dist
from dp4tl_ffcv import BetonIndex, CenterCropRGBImageDecoder, PrunedLoader, Selection
from ffcv.loader import OrderOption
from ffcv.transforms import ToTensor
from dp4tl_ffcv.loading.orders import random_order
from dp4tl_ffcv.loading.reading import shared_memory

path, meeting, folder, rank, world_size = *sys.argv[1:4], *map(int, sys.argv[4:])
shared_memory.FOLDER = Path(folder)
dist.init_process_group(
    "gloo", init_method=f"file://{meeting}", rank=rank, world_size=world_size,
    timeout=timedelta(seconds=120),
)
index = BetonIndex.open(path)
# Compiled code of the decoder is on disk.
options = {"num_workers": 1, "distributed": True, "pipelines": {
    "image": [CenterCropRGBImageDecoder((8, 8), ratio=1.0), ToTensor()], "identifier": None}}
first = Selection.of_classes(index, [6, 1, 3])
second = np.arange(61)


def epoch(loader):
    found = [
        (pixels[:, 0, 0, 0].numpy() // 2, labels.numpy().copy()) for pixels, labels in loader
    ]
    assert len(found) == len(loader)
    return [np.concatenate(part).ravel().tolist() for part in zip(*found)]


cases = {}
orders = {
    "sequential": "sequential", "random": "random", "quasi_random": "quasi_random",
    "ffcv's own": OrderOption.RANDOM, "dropping": partial(random_order, pad=False),
}
for cache, name in [*(("extents", name) for name in orders), ("ram", "random")]:
    loader = PrunedLoader(
        path, 7, order=orders[name], cache=cache, selection=first, drop_last=False, **options,
    )
    dist.barrier()
    ids, labels = epoch(loader)
    read = loader.bytes_read
    files = len(list(shared_memory.FOLDER.glob("dp4tl_ffcv-*")))
    dist.barrier()
    again = epoch(loader)[0]
    read_again = loader.bytes_read - read
    loader.set_selection(second)
    length = len(loader)
    dist.barrier()
    changed = epoch(loader)
    cases[f"{cache}, {name}"] = {
        "ids": ids, "labels": labels, "read": read, "again": again, "read_again": read_again,
        "length": length, "changed": changed, "files": files,
    }
    del loader
    dist.barrier()
relabelled = PrunedLoader(path, 6, order="random", selection=first, relabel=True, **options)
cases["relabel"] = {"epochs": [epoch(relabelled) for _ in range(2)]}
dist.barrier()
stopped = PrunedLoader(path, 7, order="random", seed=3, indices=second, **options)
batches = iter(stopped)
taken = [next(batches)[0][:, 0, 0, 0].numpy() // 2 for _ in range(2)]
cases["stopped"] = {"ids": np.concatenate(taken).tolist(), "state": stopped.state_dict()}
batches.close()
dist.barrier()
dist.destroy_process_group()
print(json.dumps(cases))
"""

Cases = list[dict[str, Any]]


@pytest.fixture(scope="module")
def ranks(colours: Any, tmp_path_factory: pytest.TempPathFactory) -> Cases:
    """The JSON objects that the ranks print, by cache and order."""
    meeting = tmp_path_factory.mktemp("gloo") / "meeting"
    with tempfile.TemporaryDirectory(dir=FOLDER, prefix="dp4tl-test-") as folder:
        arguments = [colours.path, meeting, folder]
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", RANK, *arguments, str(rank), str(WORLD_SIZE)],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for rank in range(WORLD_SIZE)
        ]  # fmt: skip
        try:
            ended = [process.communicate(timeout=LONGEST) for process in processes]
        finally:
            for process in processes:
                process.kill()
        for process, (_, errors) in zip(processes, ended, strict=True):
            assert process.returncode == 0, errors
        assert list(Path(folder).iterdir()) == []
    return [json.loads(output.splitlines()[-1]) for output, _ in ended]


@pytest.mark.parametrize("name", CASES)
def test_two_processes_share_every_epoch(name: str, ranks: Cases, colours: Any) -> None:
    selection = Selection.of_classes(colours.index, CLASSES)
    cases = [rank[name] for rank in ranks]
    for epoch in ("ids", "again"):
        shares = [case[epoch] for case in cases]
        assert [len(share) for share in shares] == [18, 18]
        np.testing.assert_array_equal(np.sort(np.concatenate(shares)), selection.indices)
    for case in cases:
        np.testing.assert_array_equal(case["labels"], colours.labels[case["ids"]])
    assert (cases[0]["ids"] != cases[0]["again"]) == ("sequential" not in name)
    # After set_selection: 31 of 61 samples, seven at a time.
    assert [case["length"] for case in cases] == [5, 5]
    shares = [case["changed"][0] for case in cases]
    assert [len(share) for share in shares] == [31, 31]
    assert set(np.concatenate(shares).tolist()) == set(range(61))  # one of them twice
    for case in cases:
        ids, labels = case["changed"]
        np.testing.assert_array_equal(labels, colours.labels[ids])


def test_the_remainder_of_the_shares_can_be_dropped(ranks: Cases) -> None:
    shares = [rank["extents, dropping"]["changed"][0] for rank in ranks]
    assert [len(share) for share in shares] == [30, 30]
    found = np.concatenate(shares).tolist()
    assert len(set(found)) == 60
    assert set(found) <= set(range(61))


def test_both_processes_renumber_the_classes_alike(ranks: Cases, colours: Any) -> None:
    for epochs in zip(*(rank["relabel"]["epochs"] for rank in ranks), strict=True):
        assert len(np.unique(np.concatenate([ids for ids, _ in epochs]))) == 36
        for ids, labels in epochs:
            np.testing.assert_array_equal(np.sort(CLASSES)[labels], colours.labels[ids])


def test_one_process_reads_what_two_processes_have_left(ranks: Cases, colours: Any) -> None:
    first, second = (rank["stopped"] for rank in ranks)
    assert first["state"] == second["state"]
    loader = loader_of(colours, 7, order="random", seed=3, indices=np.arange(61))
    loader.load_state_dict(first["state"])
    left = ids_of(loader, colours)
    assert len(first["ids"] + second["ids"]) == 28
    assert sorted(first["ids"] + second["ids"] + left) == list(range(61))


def test_the_processes_fill_the_shared_memory_together(ranks: Cases) -> None:
    cases = [rank["ram, random"] for rank in ranks]
    for case in cases:
        assert 18 * 3 * 16 * 16 <= case["read"] <= 18 * 4 * 512  # in whole sectors, at most
    assert [case["read_again"] for case in cases] == [0, 0]
    assert min(case["files"] for case in cases) >= 1


@pytest.mark.parametrize("order", ORDERS)
def test_each_process_reads_its_own_share(order: str, ranks: Cases) -> None:
    for case in (rank[f"extents, {order}"] for rank in ranks):
        for read in (case["read"], case["read_again"]):
            assert 18 * 3 * 16 * 16 <= read <= 120 * 3 * 16 * 16
