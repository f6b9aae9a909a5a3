"""Mutate every kind of file that this project reads, and check what becomes of it.

python -m tests.campaigns.fuzz                         the full form, about an hour
python -m tests.campaigns.fuzz --quick                 every kind, two minutes
python -m tests.campaigns.fuzz --only "JPEG payload" --seed 0 --case 17    one case again
"""

import argparse
import json
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue

from tests.campaigns import results
from tests.campaigns.fuzz import coverage
from tests.campaigns.fuzz.supervise import Campaign, Tally
from tests.campaigns.fuzz.targets import TARGETS

_SHOWN = 5  # faults of a target that are printed
_QUICK_SHARE, _QUICK_LEAST = 200, 30
_COVERAGE, _QUICK_COVERAGE = 300, 10  # seconds of the coverage-guided fuzzer


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the campaign and return its exit status."""
    options = _parser().parse_args(arguments)
    kinds = (*TARGETS, coverage.NAME)
    names = [name for name in kinds if not options.only or options.only in name]
    if not names:
        raise SystemExit(f"no kind of input has {options.only!r} in its name: {', '.join(kinds)}")
    root = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="dp4tl-fuzz-", dir=root if root.is_dir() else None))
    try:
        if options.case is not None:
            return _repeat(names[0], options.seed, options.case, folder)
        return _run(names, options, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(names: Sequence[str], options: argparse.Namespace, folder: Path) -> int:
    """Run kinds one after the other on all processes; in the short form, one kind a process."""
    end = time.monotonic() + 60 * options.minutes if options.minutes else None
    groups = options.jobs if options.quick else 1
    free: SimpleQueue[Campaign] = SimpleQueue()
    lines: list[results.Line] = []
    is_whole = not (options.quick or options.count or options.first or options.minutes)

    def run(name: str) -> None:
        campaign, start = free.get(), time.monotonic()
        try:
            tally = _tally(name, options, campaign, folder, end)
        finally:
            free.put(campaign)
        if tally is None:
            print(f"{name}: left out, because atheris is not installed", flush=True)
            if is_whole and not any(each["kind"] == name for each in results.read("fuzz")):
                left_out = _line(name, Tally(), options.seed, 0.0)
                results.keep(left_out | {"outcomes": {"left out: atheris is not installed": 0}})
            return
        line = _line(name, tally, options.seed, time.monotonic() - start)
        lines.append(line)
        print("\n".join([*_faults(name, tally, options.seed), results.summary(line)]), flush=True)
        if is_whole:
            results.keep(line)

    with ExitStack() as stack:
        for group in range(groups):
            campaign = Campaign(folder / str(group), options.seed, options.jobs // groups)
            free.put(stack.enter_context(campaign))
        with ThreadPoolExecutor(groups) as threads:
            for done in [threads.submit(run, name) for name in names]:
                done.result()
    return results.exit_status(lines)


def _tally(
    name: str,
    options: argparse.Namespace,
    campaign: Campaign,
    folder: Path,
    end: float | None,
) -> Tally | None:
    if name != coverage.NAME:
        return campaign.run(name, _cases(name, options), end)
    if not coverage.is_installed():
        return None
    seconds = _QUICK_COVERAGE if options.quick else _COVERAGE
    return coverage.run(seconds, options.seed, folder / "coverage")


def _cases(name: str, options: argparse.Namespace) -> range:
    count = options.count or TARGETS[name].cases
    if options.quick and not options.count:
        count = max(_QUICK_LEAST, count // _QUICK_SHARE)
    return range(options.first, options.first + count)


def _line(name: str, tally: Tally, seed: int, seconds: float) -> results.Line:
    return results.record(
        "fuzz",
        name,
        outcomes=tally.outcomes,
        faults=tally.faults,
        seconds=seconds,
        peak_bytes=tally.peak_bytes,
        seed=seed,
        figures={"slow once": tally.retried} if tally.retried else {},
    )


def _faults(name: str, tally: Tally, seed: int) -> Iterator[str]:
    """Yield the first faults of each class, how to see them again, and the counts by message."""
    counts: Counter[str] = Counter()
    for fault in tally.reports:
        key = f"{fault['fault']}: {re.sub('[0-9]+', '#', fault['message'])[:70]}"
        counts[key] += 1
        if counts[key] == 1 and len(counts) <= _SHOWN:
            yield f"FAULT {name}, case {fault['case']}: {fault['fault']}: {fault['message'][:600]}"
            command = f"python -m tests.campaigns.fuzz --only {json.dumps(name)} --seed {seed}"
            yield f"    {command} --case {fault['case']}"
    for key, count in counts.most_common():
        yield f"    {count:6,} {key!r}"


def _repeat(name: str, seed: int, case: int, folder: Path) -> int:
    """Run one case in a process of its own, and keep its files."""
    from tests.campaigns.fuzz.judge import Sentinel
    from tests.campaigns.fuzz.worker import Bench

    kept = Path(tempfile.mkdtemp(prefix=f"dp4tl-fuzz-case-{case}-"))
    bench = Bench(TARGETS[name], folder / "once", Sentinel(folder / "forbidden"))
    _, sample, data = bench.mutation(seed, case)
    for file, intact in sample.files.items():
        path = kept / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if file == sample.attacked else intact)
    print(f"{sample.attacked!r} is attacked; the files are in {kept}", flush=True)
    with Campaign(folder, seed, 1) as campaign:
        tally = campaign.run(name, range(case, case + 1))
    for fault in tally.reports:
        print(f"FAULT {fault['fault']}: {fault['message']}\n{fault['trace']}")
    print(results.summary(_line(name, tally, seed, 0.0)))
    return int(bool(tally.faults))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.campaigns.fuzz",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", help="part of the name of the kinds to run")
    parser.add_argument("--quick", action="store_true", help="the short form")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--count", type=int, help="cases of each kind")
    parser.add_argument("--case", type=int, help="run this case alone and keep its files")
    parser.add_argument("--minutes", type=float, help="begin no cases after this time")
    parser.add_argument("--jobs", type=int, default=2, help="worker processes")
    return parser


if __name__ == "__main__":
    sys.exit(main())
