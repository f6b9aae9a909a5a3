"""The process of a peer: it answers commands on its standard input with lines of JSON.

`python -m benchmarks.peers.process MODULE JOB CORE` starts with the first batch of an epoch.
Nothing but the peer and what it needs is imported before that.
"""

import json
import os
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.harness.timing import tree_seconds
from benchmarks.peers.job import Job, read_job


def main(module: str, job_file: str, core: str) -> None:
    os.sched_setaffinity(0, {int(core)})
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever the peer prints
    peer: Any = import_module(module)
    job = read_job(Path(job_file))
    command = sys.stdin.readline().strip()
    if command == "prepare":
        peer.prepare(job)
        print(json.dumps({}), file=answers)
        return
    epochs, number = peer.load(job), 0
    if command == "check":
        from benchmarks.peers.check import check_epoch

        check_epoch(job, epochs(0))
        print(json.dumps({}), file=answers)
        return
    batches = iter(epochs(0))
    first = next(batches)
    print(json.dumps({"cpu": tree_seconds(os.getpid())}), file=answers)
    _finish(job, [first[1]], batches)
    print(json.dumps({}), file=answers)
    while sys.stdin.readline():
        number += 1
        started = time.perf_counter()
        _finish(job, [], iter(epochs(number)))
        print(json.dumps({"wall": time.perf_counter() - started}), file=answers)


def _finish(job: Job, labels: list[Any], batches: Any) -> None:
    """Load the rest of an epoch, and check which images it had."""
    from benchmarks.peers.check import as_ids, check_ids  # with numpy, after the first batch

    labels = [as_ids(each) for each in labels]
    for images, ids in batches:
        if len(images) != len(ids):
            raise RuntimeError(f"a batch has {len(images)} images and {len(ids)} ids")
        labels.append(as_ids(ids))
    check_ids(job, labels)


if __name__ == "__main__":
    main(*sys.argv[1:])
