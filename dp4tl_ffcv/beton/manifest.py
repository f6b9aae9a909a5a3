"""The manifest `NAME.beton.json` next to a beton: class names, counts, how it was written."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..atomic import atomic_open, json_bytes
from ..stored import check_entries, read_json
from ..version import __version__


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Description of a beton, stored in the file `NAME.beton.json` next to it."""

    fields: dict[str, str]
    """Kind of each field by name, in the order of the file."""
    num_samples: int
    class_names: tuple[str, ...] = ()
    """Name of each class id; empty when unknown."""
    class_counts: tuple[int, ...] = ()
    """Samples of each class id."""
    label_field: str = "label"
    """Field of the class ids that `class_names` and `class_counts` describe."""
    written_by: dict[str, Any] = field(default_factory=dict)
    """The writer and its arguments."""
    skipped: tuple[dict[str, Any], ...] = ()
    """Samples that could not be read and were left out: `sample`, `name`, `error`."""
    tool: str = f"dp4tl_ffcv {__version__}"
    fingerprint: str = ""
    """Fingerprint of the beton that the manifest was written for."""
    content: str = ""
    """The beton's `BetonIndex.content`. Datasets with equal tables have one fingerprint."""


# Type of each entry of the file.
_ENTRIES = {
    "fields": dict[str, str],
    "num_samples": int,
    "class_names": list[str],
    "class_counts": list[int],
    "label_field": str,
    "written_by": dict[str, Any],
    "skipped": list[dict[str, Any]],
    "tool": str,
    "fingerprint": str,
    "content": str,
}
_OPTIONAL = ("label_field", "skipped", "content")  # which earlier versions did not write


def manifest_path(beton: str | os.PathLike[str]) -> Path:
    """Return the path of a beton's manifest: `.json` is appended to the name of the beton."""
    path = Path(beton)
    return path.with_name(path.name + ".json")


@contextmanager
def new_manifest(beton: str | os.PathLike[str], manifest: Manifest) -> Iterator[None]:
    """Write the manifest of a new beton, which the block renames to `beton`.

    The manifest is complete before the block and renamed after it. A writer that is killed between
    the two renames leaves `.NAME.beton.json.part`, which `BetonIndex.manifest` reads and
    `finish_manifest` renames.
    """
    with atomic_open(manifest_path(beton)) as stream:
        stream.write(json_bytes(asdict(manifest)))
        stream.flush()
        yield


def read_manifest(beton: str | os.PathLike[str]) -> Manifest | None:
    """Read the manifest next to a beton. Return None if there is none.

    Raises:
        ValueError: the file is not a manifest.
    """
    path = manifest_path(beton)
    if not path.exists():
        return None
    try:
        return load_manifest(path)
    except ValueError as error:
        raise ValueError(
            f"{str(path)!r} is not a beton's manifest ({error}). Delete it, or write the beton "
            "again."
        ) from error


def load_manifest(path: Path) -> Manifest:
    """Read a manifest file. Raise ValueError if it is not a manifest."""
    stored = check_entries(read_json(path), _ENTRIES, optional=_OPTIONAL)
    known = {name: stored[name] for name in _ENTRIES if name in stored}
    lists = {name: tuple(value) for name, value in known.items() if isinstance(value, list)}
    return Manifest(**{**known, **lists})
