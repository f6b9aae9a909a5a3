"""The betons that are pruned, and those that they are pruned for."""

import os
from collections.abc import Sequence

from ..beton import BetonIndex
from ..beton.splits import split_path

Data = str | os.PathLike[str]


def betons_of(source: Data, target: Data | Sequence[Data]) -> tuple[BetonIndex, list[BetonIndex]]:
    """Open the source and the targets: betons, or folders with train.beton.

    Raises:
        ValueError: there is no target.
    """
    targets = [target] if isinstance(target, str | os.PathLike) else list(target)
    if not targets:
        raise ValueError("`target` is empty. Name at least one.")
    return (
        BetonIndex.open(split_path(source)),
        [BetonIndex.open(split_path(each)) for each in targets],
    )
