"""The betons that are pruned, and those that they are pruned for."""

import os
from collections.abc import Sequence
from pathlib import Path

from ..beton import BetonIndex

Data = str | os.PathLike[str]


def betons_of(source: Data, target: Data | Sequence[Data]) -> tuple[BetonIndex, list[BetonIndex]]:
    """Open the source and the targets: betons, or folders with train.beton.

    Raises:
        ValueError: there is no target.
    """
    targets = [target] if isinstance(target, str | os.PathLike) else list(target)
    if not targets:
        raise ValueError("`target` is empty. Name at least one.")
    return _open(source), [_open(each) for each in targets]


def _open(data: Data) -> BetonIndex:
    path = Path(data)
    return BetonIndex.open(path / "train.beton" if path.is_dir() else path)
