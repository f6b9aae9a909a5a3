"""Finish or delete the manifest that a killed writer left next to a beton."""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..atomic import locked_part, part_path, publish
from .index import BetonIndex
from .manifest import load_manifest, manifest_path


def finish_manifest(
    beton: str | os.PathLike[str], custom_fields: Mapping[str, Any] | None = None
) -> None:
    """Put the manifest of a beton in its place if a killed writer left it unfinished.

    An unfinished manifest that does not describe the beton is deleted. If the beton cannot be read,
    nothing changes.
    """
    target = manifest_path(beton)
    part = part_path(target)
    if part.exists():
        with suppress(OSError, ValueError), locked_part(target) as stream:
            index = BetonIndex.open(beton, custom_fields=custom_fields)
            if _is_described_by_file(index, part):
                publish(stream, part, target)
            else:  # also an empty file, if another process has finished the manifest meanwhile
                part.unlink()


def _is_described_by_file(index: BetonIndex, manifest: Path) -> bool:
    with suppress(ValueError):  # half a file, or none of a manifest
        return index.is_described_by(load_manifest(manifest))
    return False
