"""Read every file that a run left in some folders, and compare two runs."""

import io
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Tree = dict[str, bytes]

# Facts of a run that another run of the same command has otherwise.
_TIMES = re.compile(r"seconds|_per_second|stall_share|environment")
_CONTINUED = ("resume", "continue", "start")  # events in the log of a run that was stopped


def read_tree(folders: Iterable[Path]) -> Tree:
    """Return the content of every file in some folders, by path."""
    found = {}
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.is_symlink() or not path.is_dir():
                found[str(path)] = path.read_bytes() if path.is_file() else b"no regular file"
    return found


def names(folders: Iterable[Path]) -> set[str]:
    """Return the paths of every file in some folders."""
    return {str(path) for folder in folders for path in folder.rglob("*") if not path.is_dir()}


def differences(found: Mapping[str, bytes], expected: Mapping[str, bytes]) -> list[str]:
    """Describe how the files of a run differ from those of an undisturbed run."""
    found = _index_in_place(found, expected)
    problems = [f"left behind: {path}" for path in sorted(found.keys() - expected.keys())]
    problems += [f"missing: {path}" for path in sorted(expected.keys() - found.keys())]
    for path in sorted(found.keys() & expected.keys()):
        if not same_content(path, found[path], expected[path]):
            problems.append(f"different content: {path}")
    return problems


def _index_in_place(found: Mapping[str, bytes], expected: Mapping[str, bytes]) -> Tree:
    """Show an index of JPEGs in the user's cache folder as if it were next to its beton.

    It is kept there if it could not be written next to the beton, which is no fault.
    """
    placed = dict(found)
    for missing in [path for path in expected.keys() - found.keys() if path.endswith(".jpegs")]:
        for path in found.keys() - expected.keys():
            if "/cache/dp4tl_ffcv/" in path and found[path] == expected[missing]:
                placed[missing] = placed.pop(path)
                break
    return placed


def same_content(path: str, found: bytes, expected: bytes) -> bool:
    """Return whether two files have the same content, apart from times."""
    if found == expected:
        return True
    try:
        return _compare(Path(path), found, expected)
    except Exception:  # a damaged file, of any kind
        return False


def _compare(path: Path, found: bytes, expected: bytes) -> bool:
    if path.suffix == ".json":
        return bool(_timeless(json.loads(found)) == _timeless(json.loads(expected)))
    if path.suffix == ".jsonl":
        return _rows(found) == _rows(expected)
    if path.suffix == ".pt":
        return _same_tensors(found, expected)
    if path.suffix == ".npz":
        with np.load(io.BytesIO(found)) as one, np.load(io.BytesIO(expected)) as other:
            names = set(one) - {"header"}
            return (
                set(one) == set(other)
                and _header(one) == _header(other)
                and all(np.array_equal(one[name], other[name]) for name in names)
            )
    return False


def _header(arrays: Mapping[str, Any]) -> Any:
    return _timeless(json.loads(str(arrays["header"]))) if "header" in arrays else None


def _rows(log: bytes) -> list[Any]:
    rows = [json.loads(line) for line in log.splitlines()]
    return [_timeless(row) for row in rows if row.get("event") not in _CONTINUED]


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if not _TIMES.search(k)}
    if isinstance(value, list):
        return [_timeless(each) for each in value]
    return value


def _same_tensors(found: bytes, expected: bytes) -> bool:
    import torch

    one, other = (
        torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
        for data in (found, expected)
    )
    return _equal(one, other)


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool((one == other).all()) if hasattr(one, "all") else bool(one == other)
