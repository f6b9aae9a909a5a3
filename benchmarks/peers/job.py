"""The job of all peers: crops of a subset of JPEG files, in random order."""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

Batch = tuple[Any, Any]
"""Images `(n, side, side, 3)` or `(n, 3, side, side)`, uint8 or float from 0 to 1, and ids."""
Epochs = Callable[[int], Iterable[Batch]]
"""Function that loads the epoch with a number, once each, in ascending order."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Random resized crops and flips of the retained images, once each per epoch."""

    beton: Path
    """All images, whose field `identifier` holds the id."""
    files: Path
    """Folder of the same images, `000000.jpg` and so on by id."""
    own: Path
    """Folder for files that a peer prepares."""
    ids: tuple[int, ...]
    """Ids of the retained images, ascending."""
    side: int = 160
    batch_size: int = 256
    scale: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest area of a crop, as fractions of the image."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest width / height of a crop."""
    seed: int = 0

    @property
    def paths(self) -> list[Path]:
        """The retained files, in the order of `ids`."""
        return [self.files / f"{number:06}.jpg" for number in self.ids]

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), default=str))


def read_job(path: Path) -> Job:
    fields = json.loads(path.read_text())
    for name in ("beton", "files", "own"):
        fields[name] = Path(fields[name])
    for name in ("ids", "scale", "ratio"):
        fields[name] = tuple(fields[name])
    return Job(**fields)
