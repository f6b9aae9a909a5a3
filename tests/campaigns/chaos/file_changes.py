"""A beton, or the file of its JPEG index, that is changed while epochs are loaded from it."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from .. import results
from .faults import Shim
from .loads import SETUPS, Loaded, Setup, load, problems_of
from .read_faults import victim_range
from .tally import Tally
from .verbs import Place

MOMENTS = (0, 3, 9)  # batches before which the file is changed: the last is in the second epoch


def _cut(path: Path) -> None:
    os.truncate(path, sum(victim_range(path)) // 2)


def _empty(path: Path) -> None:
    os.truncate(path, 0)


def _replace_by_noise(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(os.urandom(path.stat().st_size))
    other.replace(path)


def _replace_by_beton(path: Path) -> None:
    other = path.with_name("other")
    shutil.copy(path.parent.parent / "data" / "val.beton", other)
    other.replace(path)


# Changes of the beton, and whether the old file is still read.
CHANGES: dict[str, tuple[Callable[[Path], None], bool]] = {
    "beton cut": (_cut, False),
    "beton emptied": (_empty, False),
    "beton replaced by noise": (_replace_by_noise, True),
    "beton replaced by another": (_replace_by_beton, True),
    "beton unlinked": (Path.unlink, True),
}
INDEX_CHANGES: dict[str, Callable[[Path], None]] = {
    "JPEG index cut": lambda path: os.truncate(path, path.stat().st_size - 1000),
    "JPEG index emptied": _empty,
    "JPEG index replaced by noise": _replace_by_noise,
    "JPEG index unlinked": Path.unlink,
}


def run(
    place: Place, shim: Shim, seed: int, *, quick: bool, only: str = ""
) -> Iterator[results.Line]:
    """Change files in mid-epoch with every cache; yield a result line per change."""
    intact = load(place, place.data / "train.beton", Setup("extents", epochs=1)).samples
    moments = MOMENTS[1:2] if quick else MOMENTS
    for name, (change, keeps_old) in CHANGES.items():
        tally = Tally("chaos", f"in mid-epoch: {name}")
        if only in tally.kind:
            for setup in SETUPS[:: 2 if quick else 1]:
                for moment in moments:
                    path, found = _load(place, setup, change, moment, "train.beton")
                    problems = problems_of(found, intact, setup.epochs)
                    problems += problems or _check(found, path, keeps_old)
                    tally.add(f"{setup.name}, before batch {moment}", found.happened, problems)
            yield tally.line()
    for name, change in INDEX_CHANGES.items():
        tally = Tally("chaos", f"in mid-epoch: {name}")
        if only in tally.kind:
            for setup in (Setup("extents"), Setup("ram")):
                for moment in moments:
                    _, found = _load(place, setup, change, moment, "train.beton.jpegs")
                    problems = problems_of(found, intact, setup.epochs)
                    if not problems and found.happened != "completed":
                        problems = [f"needless error: {found.error}"]
                    tally.add(f"{setup.name}, before batch {moment}", found.happened, problems)
            yield tally.line()


def _load(
    place: Place, setup: Setup, change: Callable[[Path], None], moment: int, changed: str
) -> tuple[Path, Loaded]:
    folder = place.work / "changed"
    for each in (folder, place.work / "cache"):
        shutil.rmtree(each, ignore_errors=True)
        each.mkdir()
    for source in place.data.glob("train.beton*"):
        shutil.copy(source, folder)

    def hook(number: int) -> None:
        if number == moment and not (folder / "done").exists():
            change(folder / changed)
            (folder / "done").touch()

    path = folder / "train.beton"
    found = load(place, path, setup, hook)
    if not (folder / "done").exists() and found.happened == "completed":
        raise RuntimeError(f"the epochs ended before batch {moment}")
    return path, found


def _check(found: Loaded, path: Path, keeps_old: bool) -> list[str]:
    if found.happened == "completed":
        return []  # all bytes were read before, or the old file is still open
    if keeps_old:
        return [f"needless error: {found.error}"]
    names = ("sample ", str(path), "byte")
    if missing := [name for name in names if name not in found.error]:
        return [f"unclear error: it lacks {missing}: {found.error}"]
    return [f"late: after {found.seconds:.1f} s"] if found.seconds > 10 else []
