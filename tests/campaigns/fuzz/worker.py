"""The process that runs cases. It reads shards from stdin and reports each case on a pipe.

A shard is a line of JSON: `{"target": "scores", "seed": 0, "first": 0, "stop": 500}`. A report is
`[case, outcome, growth in bytes]`, followed by fault, message and traceback where there is a fault.
The parent knows from the reports which case crashed the process or hangs.
"""

import json
import os
import resource
import shutil
import sys
import tempfile
import traceback
import warnings
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.campaigns.fuzz.judge import Memory, Sentinel, check_litter, outcome_of
from tests.campaigns.fuzz.target import FaultError, Sample, Target

_ROOM = 6 << 30  # bytes of address space that a case may take beyond the process's own
_WARM_UP = 12  # cases whose memory is not judged: they compile, and fill pools


class Bench:
    """Runs the cases of one target, in a folder of its own."""

    def __init__(self, target: Target, folder: Path, sentinel: Sentinel) -> None:
        self.target, self.sentinel, self.memory = target, sentinel, Memory()
        self.case_folder, self.temporary = folder / "case", folder / "tmp"
        self.temporary.mkdir(parents=True)
        tempfile.tempdir = os.environ["TMPDIR"] = str(self.temporary)
        target.secret, target.case_folder = sentinel.secret, self.case_folder
        making = folder / "make"
        making.mkdir()
        self.samples = target.prepare(making)
        shutil.rmtree(making)
        self._empty_temporary()
        rng = np.random.default_rng(0)
        for sample in self.samples:  # intact files must pass, or nothing that follows means much
            self._write(sample, sample.data)
            for _ in range(4):
                self._use(rng, sample, sample.data)

    def run(self, seed: int, case: int) -> list[Any]:
        """Run one case and return its report."""
        rng, sample, data = self.mutation(seed, case)
        self._write(sample, data)
        self.sentinel.reset()
        self.memory.reset()
        report: list[Any] = [case, "", 0]
        try:
            try:
                report[1] = self._use(rng, sample, data)
            except Exception as error:
                report[1] = outcome_of(error, self.target)
            report[2] = self.memory.growth()
            self.sentinel.check()
            self._check_memory(report[2], case)
            expected = {*sample.files, *sample.links}
            check_litter(self.case_folder, expected, self.temporary)
        except FaultError as error:
            report += [error.kind, str(error), traceback.format_exc()]
            self._empty_temporary()
        return report

    def mutation(self, seed: int, case: int) -> tuple[np.random.Generator, Sample, bytes]:
        """Return the generator, the sample and the mutated bytes of a case."""
        rng = np.random.default_rng([seed, zlib.crc32(self.target.name.encode()), case])
        sample = self.samples[int(rng.integers(len(self.samples)))]
        donor = self.samples[int(rng.integers(len(self.samples)))]
        return rng, sample, self.target.mutate(rng, sample, donor)

    def _use(self, rng: np.random.Generator, sample: Sample, data: bytes) -> str:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self.target.use(rng, self.case_folder, sample, data)

    def _write(self, sample: Sample, data: bytes) -> None:
        shutil.rmtree(self.case_folder, ignore_errors=True)
        self.case_folder.mkdir()
        for name, intact in sample.files.items():
            path = self.case_folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data if name == sample.attacked else intact)
        for name, to in sample.links.items():
            (self.case_folder / name).symlink_to(to)

    def _check_memory(self, growth: int, case: int) -> None:
        files = sum(path.stat().st_size for path in self.case_folder.rglob("*") if path.is_file())
        limit = 2 * files + self.target.free_bytes
        if growth > limit and case >= _WARM_UP:
            raise FaultError("memory", f"{growth >> 20} MiB for files of {files} bytes")

    def _empty_temporary(self) -> None:
        shutil.rmtree(self.temporary)
        self.temporary.mkdir()


def main(reports: int, folder: Path, targets: Mapping[str, Target]) -> None:
    """Run the shards that stdin names, and write reports to the file descriptor `reports`."""
    import torch

    torch.set_num_threads(1)
    sentinel = Sentinel(folder / "forbidden")
    benches: dict[str, Bench] = {}
    for line in sys.stdin:
        shard = json.loads(line)
        name = shard["target"]
        if name not in benches:
            benches = {name: Bench(targets[name], Path(tempfile.mkdtemp(dir=folder)), sentinel)}
            _limit_memory()
        _send(reports, ["ready"])
        for case in range(shard["first"], shard["stop"]):
            _send(reports, benches[name].run(shard["seed"], case))
        _send(reports, ["done"])


def _send(reports: int, report: Iterable[Any]) -> None:
    data = (json.dumps(list(report)) + "\n").encode()
    while data:
        data = data[os.write(reports, data) :]


def _limit_memory() -> None:
    """Let a case that asks for far too much memory fail instead of taking the machine's."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + _ROOM
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


if __name__ == "__main__":
    from tests.campaigns.fuzz.targets import TARGETS

    main(int(sys.argv[1]), Path(sys.argv[2]), TARGETS)
