"""Loaders and kernels in turn, in threads, and around forks, in each threading layer of numba."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from .. import results
from ..chaos.loads import Setup, digests, make_loader
from ..chaos.processes import Child
from ..chaos.tally import Tally
from ..chaos.verbs import Place

LAYERS = ("workqueue", "omp", "tbb")
_LONGEST = 40.0  # seconds
Samples = list[list[Any]]


class Meetings:
    """Ways to load epochs at the same time. Each method returns the epochs that it loaded."""

    def __init__(self, path: Path, setup: Setup) -> None:
        self.path, self.setup = path, setup

    def _loader(self) -> Any:
        return make_loader(self.path, self.setup)

    def _load(self) -> Samples:
        return [sample for batch in self._loader() for sample in digests(batch)]

    def in_turn(self) -> list[Samples]:
        """Take the batches of three loaders in turn."""
        loaded: list[Samples] = [[], [], []]
        for batches in zip(*(self._loader() for _ in loaded), strict=True):
            for samples, batch in zip(loaded, batches, strict=True):
                samples += digests(batch)
        return loaded

    def in_threads(self) -> list[Samples]:
        """Load with one loader in each of three threads, while kernels count."""
        with ThreadPoolExecutor(5) as threads:
            loading = [threads.submit(self._load) for _ in range(3)]
            counting = [threads.submit(_use_kernels) for _ in range(2)]
            for task in counting:
                task.result()
            return [task.result() for task in loading]

    def beside_a_data_loader(self) -> list[Samples]:
        """Load while a DataLoader of torch has two worker processes."""
        import torch
        from torch.utils.data import DataLoader, TensorDataset

        numbers = TensorDataset(torch.arange(64))
        loaded: Samples = []
        others = DataLoader(numbers, batch_size=4, num_workers=2)
        for batch, _ in zip(self._loader(), others, strict=False):
            loaded += digests(batch)
        return [loaded]

    def fork_before(self) -> list[Samples]:
        """Fork, and load in both processes."""
        _in_fork(lambda: _check(self.path, [self._load()]))
        return [self._load()]

    def fork_after(self) -> list[Samples]:
        """Load and count, fork, and do the same in both processes."""
        first = self._load()
        _use_kernels()
        _in_fork(lambda: (_use_kernels(), _check(self.path, [self._load()])))
        return [first, self._load()]

    def fork_within(self) -> list[Samples]:
        """Fork in mid-epoch. The child loads an epoch of its own, and the parent goes on."""
        loader = self._loader()
        batches = iter(loader)
        loaded = digests(next(batches))
        _in_fork(lambda: _check(self.path, [self._load()]))
        for batch in batches:
            loaded += digests(batch)
        return [loaded]

    def fork_that_goes_on(self) -> list[Samples]:
        """Fork in mid-epoch. The child goes on with its parent's iterator: a clear error."""
        batches = iter(self._loader())
        loaded = digests(next(batches))

        def go_on() -> None:
            try:
                for _ in batches:
                    pass
            except RuntimeError as error:
                if "fork" in str(error):
                    return
                raise
            raise RuntimeError("a forked process took its parent's batches")

        _in_fork(go_on)
        for batch in batches:
            loaded += digests(batch)
        return [loaded]


MEETINGS = [name for name in vars(Meetings) if not name.startswith("_")]


def run(place: Place, seed: int, *, quick: bool, only: str = "") -> Iterator[results.Line]:
    """Let loaders meet in every threading layer; yield a result line per layer."""
    for layer in LAYERS:
        tally = Tally("concurrency", f"threads and forks: numba's layer {layer}")
        if only not in tally.kind:
            continue
        if layer == "tbb" and not _has_tbb():
            print(f"{tally.kind}: skipped, because the package tbb is not installed")
            continue
        # Numba chooses its layer once per process.
        caches = ["extents"] if quick else ["extents", "ram"]
        command = [sys.executable, "-m", __name__, place.data / "train.beton", place.work, *caches]
        done = subprocess.run(
            command, env={**os.environ, "NUMBA_THREADING_LAYER": layer}, text=True, check=False,
            stdout=subprocess.PIPE, timeout=len(MEETINGS) * len(caches) * _LONGEST,
        )  # fmt: skip
        if done.returncode:
            tally.add("all", "", [f"failed: status {done.returncode}: {done.stdout}"])
        for line in done.stdout.splitlines():
            tally.add(*json.loads(line))
        yield tally.line()


def main(path: Path, work: Path, *caches: str) -> None:
    """Let loaders meet in the layer that the environment names, each time in a fork."""
    import numba

    import dp4tl_ffcv.loading  # noqa: F401  # before forks, as it takes seconds

    _write_intact(path, work)
    for setup in map(Setup, caches):
        for meeting in MEETINGS:

            def meet(setup: Setup = setup, meeting: str = meeting) -> None:
                numba.set_num_threads(2)
                _check(path, getattr(Meetings(path, setup), meeting)())
                _use_kernels()
                wanted = os.environ["NUMBA_THREADING_LAYER"]
                if numba.threading_layer() != wanted:
                    raise RuntimeError(f"numba took the layer {numba.threading_layer()}")

            child = Child(meet, work / "log")
            status = child.wait(_LONGEST)
            problems = [f"orphan: {pid}" for pid in child.orphans()]
            if status is None:
                problems.append(f"hang: {child.text[-900:]}")
            elif status < 0:
                problems.append(f"crash: signal {-status}: {child.text[-900:]}")
            elif status:
                problems.append(f"failed: {child.text[-900:]}")
            print(json.dumps([f"{meeting}, {setup.name}", "right pixels", problems]), flush=True)


def _use_kernels() -> None:
    """Run kernels that use numba's threads."""
    from dp4tl_ffcv.kernels import class_histogram, class_sums

    labels = np.arange(1 << 20) % 7
    if class_histogram(labels, 7).sum() != labels.size:
        raise RuntimeError("wrong counts")
    features = np.ones((1 << 14, 16), dtype=np.float32)
    sums, _ = class_sums(features, labels[: len(features)], 7)
    if sums.sum() != features.size:
        raise RuntimeError("wrong sums")


def _in_fork(work: Callable[[], Any]) -> None:
    """Do something in a forked process, which must succeed."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException as error:
            os.write(2, f"in the fork: {type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    if status:
        code = os.waitstatus_to_exitcode(status)
        raise RuntimeError(f"the forked process ended with status {code}")


def _write_intact(path: Path, work: Path) -> None:
    """Record the samples of the intact file, in a process of its own."""

    def write() -> None:
        samples = [s for batch in make_loader(path, Setup("ram")) for s in digests(batch)]
        _intact(path).write_text(json.dumps(samples))

    if Child(write, work / "log").wait() != 0:
        raise RuntimeError((work / "log").read_text())


def _intact(path: Path) -> Path:
    return path.with_suffix(".samples")


def _check(path: Path, loaded: list[Samples]) -> None:
    expected = json.loads(_intact(path).read_text())
    for samples in loaded:
        if samples != expected:
            raise RuntimeError(f"wrong samples: {len(samples)} of {len(expected)}")


def _has_tbb() -> bool:
    from numba.np.ufunc import parallel

    try:
        parallel._check_tbb_version_compatible()
        from numba.np.ufunc import tbbpool  # noqa: F401
    except ImportError:
        return False
    return True


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
