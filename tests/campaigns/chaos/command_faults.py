"""Commands whose reads or writes fail: a clear error, and the repeated command completes."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np

from .. import results
from .disturbance import Undisturbed, disturb, ended, names_file, prepare
from .faults import EARLY_END, EINTR, EIO, READ, RENAME, SHORT_READS, SYNC, WRITE, Fault, Shim
from .tally import Tally
from .verbs import VERBS, Place, Verb

_FULL, _READ_ONLY = 28, 30  # ENOSPC, EROFS
WRITE_FAULTS = (
    replace(EIO, ops=WRITE, name="EIO"),
    replace(EIO, ops=WRITE, error=_FULL, name="ENOSPC"),
    replace(EIO, ops=SYNC, name="EIO in fsync"),
    replace(EIO, ops=RENAME, error=_READ_ONLY, name="EROFS in rename"),
    replace(SHORT_READS, ops=WRITE, bytes=50, name="short writes"),
    replace(EINTR, ops=WRITE, name="EINTR"),
)
READ_FAULTS = (EIO, EARLY_END, SHORT_READS, EINTR)
HARMLESS = ("short writes", "EINTR", "short reads")


def run(
    place: Place, shim: Shim, seed: int, *, quick: bool, only: str = ""
) -> Iterator[results.Line]:
    """Let every command's reads and writes fail; yield a result line per command."""
    for number, verb in enumerate(VERBS):
        tally = Tally("chaos", f"faults in reads and writes: {verb.name}", seed)
        if only not in tally.kind:
            continue
        rng = np.random.default_rng((seed, *verb.name.encode()))
        counted = Fault(name="count", kind="count", ops=WRITE | SYNC | RENAME)
        with shim.injected(counted, f"{place.out}/"):
            expected = prepare(place, verb)
        for trial in range(1 if quick else 3):
            faults = (*WRITE_FAULTS, *READ_FAULTS)
            if quick:  # another two for each command
                faults = (faults[(number + 1) % 6], faults[6 + number % 4])
            for fault in faults:
                _disturb(place, shim, tally, verb, expected, fault, trial, rng)
        yield tally.line()


def _disturb(
    place: Place,
    shim: Shim,
    tally: Tally,
    verb: Verb,
    expected: Undisturbed,
    fault: Fault,
    trial: int,
    rng: np.random.Generator,
) -> None:
    """Inject a fault from the n-th write or read on, and count the case if it met one."""
    is_read = fault.ops == READ
    # A write that is not the first of its kind: a third of the cases each.
    after = 0 if fault.name in HARMLESS else int(rng.integers((0, 4, 12)[trial] + 1))
    chosen = replace(fault, after=after)
    folder = place.data if is_read and not verb.copies else place.out
    how, meanwhile = partial(ended, verb), shim.injected(chosen, f"{folder}/")
    happened, printed, problems = disturb(place, verb, expected, how, meanwhile)
    if not shim.hits:
        return
    if happened == "failed" and not problems:
        if fault.name in HARMLESS:
            problems.append(f"needless error: {printed[-300:]}")
        elif not names_file(printed, folder, expected.files):
            problems.append(f"unclear error: it names no file: {printed[-300:]}")
    direction = "reading" if is_read else "writing"
    tally.add(f"{fault.name} in {direction} from call {after} on", happened, problems)
