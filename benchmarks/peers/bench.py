"""Data, checks and processes that the figures of the peers benchmark share."""

from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

from benchmarks.harness.bench import BaseBench
from benchmarks.harness.dataset import Images, prepare, prepare_files, retain
from benchmarks.harness.memory import TreePeak, drop_from_cache, tree_read_bytes
from benchmarks.harness.rows import Row, alternate, compare, progress
from benchmarks.harness.timing import Timing
from benchmarks.peers.check import write_coded
from benchmarks.peers.job import Job
from benchmarks.peers.peer import OURS, Peer, Process, all_peers
from dp4tl_ffcv import BetonIndex

DETAILS = ("images",)
KEEP = 0.2
LONG_SIDE = 400
CODED, CODED_RETAINED = 640, 400  # more than a batch, and a short last batch


@dataclass(frozen=True, kw_only=True)
class Scale:
    samples: int = 10_240
    """Images of the full source."""
    distinct: int = 256
    """Different images."""
    rounds: int = 5
    """Epochs of each peer, and starts of each peer."""


SCALES = (Scale(),)
QUICK = (Scale(samples=2560),)


class Cold(NamedTuple):
    """An epoch of a new process whose files are not in the page cache."""

    read: int
    """Bytes read from the disk."""
    peak: int
    """Most memory of all processes, in bytes."""


class Bench(BaseBench[Scale]):
    @cached_property
    def peers(self) -> list[Peer]:
        """The installed peers, ours first, after each has passed the check."""
        found = []
        for peer in all_peers():
            if peer.missing:
                what = ", ".join(peer.missing)
                progress(f"    {peer.name} is skipped: {what} is not installed")
            else:
                progress(f"    checking {peer.title}")
                self._prepare(peer, self.coded)
                peer.run("check", self._write(self.coded, peer))
                self._prepare(peer, self.job)
                found.append(peer)
        return found

    @cached_property
    def folder(self) -> Path:
        return Path(self.stack.enter_context(TemporaryDirectory(prefix="peers.", dir=self.data)))

    @cached_property
    def job(self) -> Job:
        images = Images(
            num_samples=self.scale.samples, long_side=LONG_SIDE, distinct=self.scale.distinct
        )
        beton = prepare(images, self.data)
        ids = retain(BetonIndex.open(beton).labels(), KEEP)
        return Job(
            beton=beton,
            files=prepare_files(images, self.data),
            own=self.folder / "own",
            ids=tuple(ids.tolist()),
        )

    @cached_property
    def coded(self) -> Job:
        """A job over images that can be told apart."""
        folder = self.folder / "coded"
        ids = np.sort(np.random.default_rng(0).permutation(CODED)[:CODED_RETAINED])
        job = replace(
            self.job,
            beton=folder / "coded.beton",
            files=folder / "files",
            own=folder / "own",
            ids=tuple(ids.tolist()),
        )
        write_coded(job, CODED)
        return job

    @cached_property
    def starts(self) -> dict[str, list[Timing]]:
        """Seconds from the start of Python to the first batch, by peer."""
        calls = [partial(self._start, peer) for peer in self.peers]
        return self._by_name(alternate(*calls, rounds=self.scale.rounds))

    @cached_property
    def epochs(self) -> dict[str, list[Timing]]:
        """Images/s of whole epochs, by peer."""
        with ExitStack() as stack:
            calls = []
            for peer in self.peers:
                process = stack.enter_context(Process(peer, self._write(self.job, peer)))
                process.first_batch()
                process.finish_epoch()
                process.suspend()
                calls.append(process.epoch)
            timings = alternate(*calls, rounds=self.scale.rounds)
        rates = [[each.rate(len(self.job.ids)) for each in side] for side in timings]
        return self._by_name(rates)

    @cached_property
    def cold(self) -> dict[str, Cold]:
        return {peer.name: self._cold(peer) for peer in self.peers}

    @cached_property
    def retained_bytes(self) -> int:
        return int(BetonIndex.open(self.job.beton).sample_bytes()[list(self.job.ids)].sum())

    def rows(self, figure: str, unit: str, values: dict[str, list[Any]], **about: Any) -> list[Row]:
        """Compare each peer with ours. The keyword `floors` has floors by peer."""
        floors = about.pop("floors", {})
        more = {
            "images": len(self.job.ids),
            "samples": self.scale.samples,
            "keep": KEEP,
            "retained_bytes": self.retained_bytes,
            **about,
        }
        return [
            compare(
                figure, unit, values[OURS], values[peer.name], peer.title,
                floor=floors.get(peer.name), peer=peer.name, **more,
            )
            for peer in self.peers
            if peer.name != OURS
        ]  # fmt: skip

    def _by_name(self, results: Any) -> dict[str, Any]:
        return dict(zip((peer.name for peer in self.peers), results, strict=True))

    def _start(self, peer: Peer) -> Timing:
        with Process(peer, self._write(self.job, peer)) as process:
            return process.first_batch()

    def _cold(self, peer: Peer) -> Cold:
        job_file = self._write(self.job, peer)
        for path in self._backing(peer):
            drop_from_cache(path)
        with Process(peer, job_file) as process:
            with TreePeak(process.session) as memory:
                process.first_batch()
                process.finish_epoch()
            return Cold(tree_read_bytes(process.session), memory.start + memory.growth)

    def _backing(self, peer: Peer) -> list[Path]:
        folders = (self._own(self.job, peer), self.job.files)
        found = (path for each in folders for path in each.rglob("*"))
        return [self.job.beton, *(path for path in found if path.is_file())]

    def _own(self, job: Job, peer: Peer) -> Path:
        return job.own / peer.name

    def _write(self, job: Job, peer: Peer) -> Path:
        """Return the file that tells the peer's process its job."""
        own = self._own(job, peer)
        own.mkdir(parents=True, exist_ok=True)
        path = own.with_suffix(".json")
        replace(job, own=own).write(path)
        return path

    def _prepare(self, peer: Peer, job: Job) -> None:
        job_file = self._write(job, peer)
        if peer.prepares:
            peer.run("prepare", job_file)
