"""Reads that fail, end early, are interrupted or stall, for every cache and its JPEG index."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from .. import results
from .faults import EARLY_END, EINTR, EIO, EIO_ONCE, READ, SHORT_READS, STALL, WRITE, Fault, Shim
from .loads import SETUPS, Loaded, Setup, load, problems_of
from .tally import Tally
from .verbs import Place

VICTIM = 17  # the sample whose bytes cannot be read, in the fifth batch
FAULTS = (EIO, EIO_ONCE, EARLY_END, EINTR, SHORT_READS, STALL)
_SLACK = 6.0  # seconds of a loaded machine
_FAST = 10.0  # seconds within which an error must come
INDEX_FAULTS = (EIO, EARLY_END, EINTR, SHORT_READS, replace(STALL, seconds=30))
_INDEX_WRITES = (
    replace(EIO, ops=WRITE, name="EIO in writing"),
    replace(EIO, ops=WRITE, error=28, name="ENOSPC in writing"),
    replace(SHORT_READS, ops=WRITE, name="short writes"),
    replace(EINTR, ops=WRITE, name="EINTR in writing"),
)


def run(
    place: Place, shim: Shim, seed: int, *, quick: bool, only: str = ""
) -> Iterator[results.Line]:
    """Try every fault with every cache; yield a result line per fault."""
    timeout = 2.0 if quick else 10.0
    path = place.data / "train.beton"
    intact = load(place, path, Setup("extents", epochs=1)).samples
    for fault in FAULTS:
        tally = Tally("chaos", f"read: {fault.name}")
        if only in tally.kind:
            for setup in SETUPS[:: 2 if quick else 1]:
                for start in (0, 3) if fault is not STALL or not quick else (0,):
                    _read(place, shim, tally, fault, replace(setup, timeout=timeout), start, intact)
            yield tally.line()
    for fault in (*INDEX_FAULTS, *_INDEX_WRITES):
        tally = Tally("chaos", f"JPEG index: {fault.name}")
        if only in tally.kind and not (quick and fault.kind == "stall"):
            for setup in (Setup("extents"), Setup("ram")):
                _read_index(place, shim, tally, fault, replace(setup, timeout=timeout), intact)
            yield tally.line()


def victim_range(path: Path) -> tuple[int, int]:
    """Return the first byte of the victim's image, and the byte after it."""
    from dp4tl_ffcv import BetonIndex

    row = BetonIndex.open(path).extents([VICTIM])[0]
    return int(row["ptr"]), int(row["ptr"] + row["size"])


def _read(
    place: Place,
    shim: Shim,
    tally: Tally,
    fault: Fault,
    setup: Setup,
    first: int,
    intact: list[list[object]],
) -> None:
    """Load while a fault meets the victim from batch `first` on. Harmless faults meet all reads."""
    path = place.data / "train.beton"
    start, end = victim_range(path)
    if fault.name in ("short reads", "EINTR"):
        start, end = 0, 1 << 62

    def hook(number: int) -> None:
        if number == first:
            shim.start(fault, f"/{path.name}", start, end)

    found = load(place, path, setup, hook)
    shim.stop()
    if not shim.hits:
        return  # read before, by the cache that reads all at once
    problems = problems_of(found, intact, setup.epochs)
    problems += problems or _check_error(fault, setup, found, path)
    tally.add(f"{setup.name}, from batch {first}", found.happened, problems)


def _check_error(fault: Fault, setup: Setup, found: Loaded, path: Path) -> list[str]:
    """Return the problems of an error: what it must name, and when it must come."""
    must_complete = fault.name in ("short reads", "EINTR")
    if found.happened == "completed":
        allowed = must_complete or fault.most == 1
        return [] if allowed else [f"no error: {fault.name} was not noticed"]
    if must_complete:
        return [f"needless error: {found.error}"]
    problems = []
    limit = setup.timeout if fault.kind == "stall" else _FAST
    if found.seconds > limit + _SLACK:
        problems.append(f"late: after {found.seconds:.1f} s, not {limit} s: {found.error}")
    names = ["sample ", str(path), "byte"]
    if fault.kind != "stall":
        names[0] = f"sample {VICTIM}"
    if missing := [name for name in names if name not in found.error]:
        problems.append(f"unclear error: it lacks {missing}: {found.error}")
    return problems


def _read_index(
    place: Place,
    shim: Shim,
    tally: Tally,
    fault: Fault,
    setup: Setup,
    intact: list[list[object]],
) -> None:
    """Load while the file of the JPEG index cannot be read, or cannot be written."""
    folder = place.work / "indexed"
    for each in (folder, place.work / "cache"):  # where an index is kept if not next to the beton
        shutil.rmtree(each, ignore_errors=True)
        each.mkdir()
    for source in place.data.glob("train.beton*"):
        if fault.ops == READ or source.suffix != ".jpegs":
            shutil.copy(source, folder)
    with shim.injected(fault, ".jpegs"):
        found = load(place, folder / "train.beton", setup)
        hits = shim.hits
    if not hits:
        return
    problems = problems_of(found, intact, setup.epochs)
    if not problems and found.happened == "error" and fault.kind != "stall":
        problems = [f"needless error: {found.error}"]
    if not problems and found.seconds > setup.timeout + _SLACK:
        problems = [f"hang: {found.seconds:.1f} s without a batch"]
    tally.add(f"{setup.name}, {hits} calls", found.happened, problems)
