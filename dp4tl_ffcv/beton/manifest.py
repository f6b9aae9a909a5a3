"""The manifest `NAME.beton.json` next to a beton: class names, counts, how it was written."""

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..artifacts import write_json
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
}


def manifest_path(beton: str | os.PathLike[str]) -> Path:
    """Return the path of a beton's manifest: `.json` is appended to the name of the beton."""
    path = Path(beton)
    return path.with_name(path.name + ".json")


def write_manifest(beton: str | os.PathLike[str], manifest: Manifest) -> None:
    """Write the manifest of a beton, atomically."""
    write_json(manifest_path(beton), asdict(manifest))


def read_manifest(beton: str | os.PathLike[str]) -> Manifest | None:
    """Read the manifest of a beton. Return None if there is none.

    Raises:
        ValueError: the file is not a manifest.
    """
    path = manifest_path(beton)
    if not path.exists():
        return None
    try:
        stored = check_entries(read_json(path), _ENTRIES, optional=("label_field", "skipped"))
    except ValueError as error:
        raise ValueError(
            f"{str(path)!r} is not a beton's manifest ({error}). Delete it, or write the beton "
            "again."
        ) from error
    known = {name: stored[name] for name in _ENTRIES if name in stored}
    lists = {name: tuple(value) for name, value in known.items() if isinstance(value, list)}
    return Manifest(**{**known, **lists})
