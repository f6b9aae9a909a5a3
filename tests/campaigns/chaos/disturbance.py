"""A command that is disturbed and then repeated: what must hold between and after."""

import re
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from . import trees
from .processes import HANG, Child
from .verbs import Place, Verb

# A command fails with one line on stderr, which begins with its name.
_ERROR = re.compile(r"^dp4tl[^\n]*: \S[^\n]*$", re.MULTILINE)
_PROGRESS = re.compile(r"^.*\r", re.MULTILINE)


@dataclass
class Undisturbed:
    """The files that a command writes undisturbed, and the old file that it replaces."""

    files: trees.Tree
    """Every file after an undisturbed run."""
    old: bytes | None
    """The older result, if the command replaces one."""


def prepare(place: Place, verb: Verb) -> Undisturbed:
    """Run a command undisturbed. If it is to replace an older result, make that first."""
    old = _make_old(place, verb)
    place.run(verb)
    return Undisturbed(place.files(), old)


def disturb(
    place: Place,
    verb: Verb,
    expected: Undisturbed,
    how: Callable[[Child], str],
    meanwhile: AbstractContextManager[None],
) -> tuple[str, str, list[str]]:
    """Start a command, disturb it, and repeat it.

    Args:
        place: the folders.
        verb: the command.
        expected: what the command leaves undisturbed.
        how: disturbs the running command, waits for its end, and returns what happened:
            "killed", "failed", "completed" or "hang".
        meanwhile: entered before the command starts, and left when it has ended.

    Returns:
        What happened, what the disturbed command printed, and the problems.
    """
    _make_old(place, verb)
    with meanwhile:
        child = place.start(verb)
        happened = how(child)
    problems = [f"orphan: process {pid} lives on" for pid in child.orphans()]
    printed = child.text
    problems += check_end(child, happened, printed)
    problems += _check_result(place, verb, expected)
    again = place.start(verb, log="again")
    if again.wait(HANG) != 0:
        left = [path for path in sorted(place.names()) if path not in expected.files]
        problems.append(
            f"not completed: the repeated command ended with {again.status}: "
            f"{again.text[-600:]} (files: {left})"
        )
    else:
        problems += trees.differences(place.files(), expected.files)
    return happened, printed, problems


def check_end(child: Child, happened: str, printed: str) -> list[str]:
    """Return the problems of how a command ended by itself."""
    if happened == "hang":
        return [f"hang: {printed[-600:]}"]
    if happened == "failed":
        if child.status is not None and child.status < 0:
            return [f"crash: signal {-child.status}: {printed[-600:]}"]
        lines = _PROGRESS.sub("", printed)
        if "Traceback" in printed or not _ERROR.search(lines):
            return [f"no clear error: status {child.status}: {printed[-900:]}"]
    return []


def names_file(printed: str, folder: Path, files: Iterable[str]) -> bool:
    """Return whether an error names a path in a folder, or a file that belongs there."""
    known = {*files, *map(str, folder.rglob("*"))}
    names = {Path(path).name for path in known if path.startswith(str(folder))}
    names = {name for name in names if "." in name}  # a folder's name may be a word of the text
    return str(folder) in printed or any(name in printed for name in names)


def _make_old(place: Place, verb: Verb) -> bytes | None:
    place.clear(verb)
    if not verb.old:
        return None
    place.run(verb, verb.old)
    return (place.out / verb.result).read_bytes()


def _check_result(place: Place, verb: Verb, expected: Undisturbed) -> list[str]:
    """The result is the old one or the new one, or absent where there was none."""
    path = place.out / verb.result
    if not verb.result:
        return []
    found = path.read_bytes() if path.exists() else None
    if found in (expected.old, expected.files[str(path)]):
        return []
    size = "missing" if found is None else f"{len(found)} bytes"
    return [f"lost: {path.name} is neither the old nor the new one ({size})"]


def outcome_of(child: Child, status: int | None) -> str:
    """Return what happened to a command, given its status; None stands for one that hangs."""
    if status is None:
        return "hang"
    return {0: "completed", -9: "killed"}.get(status, "failed")


def ended(verb: Verb, child: Child) -> str:
    """Wait for a command; return what happened."""
    return outcome_of(child, child.wait(HANG))
