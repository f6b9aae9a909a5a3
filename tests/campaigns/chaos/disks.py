"""Full disks, folders that cannot be written, and a small or missing /dev/shm."""

import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace

from .. import results
from . import trees
from .disturbance import check_end, names_file, outcome_of
from .faults import Shim
from .loads import Loaded, Setup, load, problems_of
from .processes import Child
from .sandbox import SHARED, can_mount, mount, read_only, small_disk
from .tally import Tally
from .verbs import VERBS, Place, Verb, run_command

_SIZES = (16 << 10, 1 << 20, 17 << 20)  # bytes of a disk: a beton here takes 16 MiB
_LIMITED = "disk: limit on the size of files"
Check = Callable[[Place, Tally, Verb, trees.Tree], None]
_QUICK = ("write", "features", "select", "pretrain")


def run(
    place: Place, shim: Shim, seed: int, *, quick: bool, only: str = ""
) -> Iterator[results.Line]:
    """Try every command on full and read-only disks, and loaders; yield result lines."""
    kinds: dict[str, Callable[[Tally], None]] = {
        _LIMITED: lambda tally: _commands(place, tally, quick, _limited_files),
        "disk: full": lambda tally: _commands(place, tally, quick, _full_disk),
        "disk: read-only folder": lambda tally: _commands(place, tally, quick, _locked_folder),
        "disk: read-only folder of a beton": lambda tally: _read_only_beton(place, tally),
        "disk: small or missing /dev/shm": lambda tally: _shared_memory(place, tally),
    }
    for kind, check in kinds.items():
        if only in kind:
            if not can_mount() and kind != _LIMITED:
                print(f"{kind}: skipped, because file systems can be mounted by root only")
                continue
            tally = Tally("chaos", kind)
            check(tally)
            yield tally.line()


def _commands(place: Place, tally: Tally, quick: bool, check: Check) -> None:
    for verb in VERBS:
        if quick and verb.name not in _QUICK:
            continue
        place.clear(verb)
        place.run(verb)
        expected = place.files()
        check(place, tally, verb, expected)


def _full_disk(place: Place, tally: Tally, verb: Verb, expected: trees.Tree) -> None:
    """A command fails on a small disk, and completes once there is room."""
    for size in _SIZES:
        place.clear(verb)
        for path in place.out.iterdir():
            path.unlink()
        with small_disk(place.out, size):
            if verb.copies:
                if size < _SIZES[-1]:
                    continue
                place.copy_inputs(verb)
            happened, problems = _fails(place, place.start(verb))
            mount("-o", "remount,size=500m", place.out)
            if not problems:
                place.run(verb)
                problems = trees.differences(place.files(), expected)
            tally.add(f"{verb.name}, {size >> 10} KiB", happened, problems)


def _limited_files(place: Place, tally: Tally, verb: Verb, expected: trees.Tree) -> None:
    """A command fails at the limit on the size of files, and completes without one."""
    for size in _SIZES[:2]:

        def work(size: int = size) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
            run_command(place.words(verb))

        place.clear(verb)
        happened, problems = _fails(place, Child(work, place.work / "log"))
        if not problems:
            place.run(verb)
            problems = trees.differences(place.files(), expected)
        tally.add(f"{verb.name}, {size >> 10} KiB", happened, problems)


def _locked_folder(place: Place, tally: Tally, verb: Verb, expected: trees.Tree) -> None:
    place.clear(verb)
    before = place.names()
    with read_only(place.out):
        happened, problems = _fails(place, place.start(verb))
        left = place.names() - before
    if not problems and happened != "completed" and left:
        problems = [f"left behind: {sorted(left)}"]
    tally.add(verb.name, happened, problems)


def _fails(place: Place, child: Child) -> tuple[str, list[str]]:
    happened = outcome_of(child, child.wait())
    problems = check_end(child, happened, child.text)
    if happened == "failed" and not problems and not names_file(child.text, place.out, ()):
        problems = [f"unclear error: it names no file: {child.text[-300:]}"]
    return happened, problems


def _read_only_beton(place: Place, tally: Tally) -> None:
    """The JPEG index goes to the user's cache folder, or nowhere."""
    intact = load(place, place.data / "train.beton", Setup("extents", epochs=1)).samples
    for is_cached in (True, False):
        folder, cache = place.work / "locked", place.work / "cache"
        for each in (folder, cache):
            shutil.rmtree(each, ignore_errors=True)
            each.mkdir()
        shutil.copy(place.data / "train.beton", folder)
        with read_only(folder):
            if is_cached:
                found = load(place, folder / "train.beton", Setup("extents"))
                stored = bool(list(cache.rglob("*.jpegs")))
            else:
                with read_only(cache):
                    found = load(place, folder / "train.beton", Setup("extents"))
                    stored = True
        problems = problems_of(found, intact, 2)
        if not problems and (found.happened != "completed" or not stored):
            problems = [f"needless error: {found.error}"]
        where = "to the cache folder" if is_cached else "nowhere"
        tally.add(f"index {where}", found.happened, problems)


def _shared_memory(place: Place, tally: Tally) -> None:
    """Two ranks share memory: an error that says what to do, or another cache."""
    intact = load(place, place.data / "train.beton", Setup("extents", epochs=1)).samples
    for cache in ("ram", "auto"):
        for size in (16 << 10, 0):
            setup = replace(Setup(cache), epochs=1)
            found = _load_distributed(place, setup, size)
            problems = problems_of(found, intact, 1)
            if not problems and cache == "auto" and found.happened != "completed":
                problems = [f"needless error: {found.error}"]
            if not problems and cache == "ram":
                named = "/dev/shm" in found.error and "extents" in found.error
                problems = [] if named else [f"unclear error: {found.error or 'none'}"]
            tally.add(f"{cache}, {size >> 10} KiB", found.happened, problems)


def _load_distributed(place: Place, setup: Setup, size: int) -> Loaded:
    """Load as the only rank of a distributed run, with `size` bytes of shared memory."""
    import torch.distributed

    def join() -> None:
        store = torch.distributed.HashStore()
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)

    path = place.data / "train.beton"
    with small_disk(SHARED, size or 4096), nullcontext() if size else read_only(SHARED):
        return load(place, path, setup, before=join, distributed=True)
