"""Export and import lists of sample ids: `.npy`, DP4TL's `.indices` and `.txt`."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..artifacts import atomic_open
from ..beton import BetonIndex
from .selection import Selection

EXPORT_SUFFIXES = (".npy", ".indices", ".txt")


def export_indices(
    selection: Selection | str | os.PathLike[str], out: str | os.PathLike[str]
) -> Selection:
    """Write the retained sample ids, ascending, for other loaders.

    These files do not record the beton that the ids belong to; the selection's own file does.

    Args:
        selection: the selection, or the path of its file.
        out: file to write. The suffix is `.npy` for a numpy array, `.indices` for a torch tensor
            that DP4TL's scripts load, or `.txt` for one id per line.

    Returns:
        The selection.
    """
    selection, suffix = Selection.of(selection), _check_suffix(out)
    with atomic_open(out) as stream:
        if suffix == ".npy":
            np.save(stream, selection.indices)
        elif suffix == ".txt":
            stream.write("".join(f"{index}\n" for index in selection.indices).encode())
        else:
            import torch  # loaded for this format alone

            torch.save(torch.from_numpy(selection.indices.copy()), stream)
    return selection


def import_indices(
    path: str | os.PathLike[str], beton: BetonIndex | str | os.PathLike[str]
) -> Selection:
    """Read sample ids that `export_indices` or DP4TL wrote, as a selection from `beton`."""
    suffix = _check_suffix(path)
    try:
        ids = _read(path, suffix)
    except Exception as error:  # each reader has its own exceptions for a damaged file
        if isinstance(error, OSError) and error.filename is not None:
            raise  # the file cannot be opened
        raise ValueError(
            f"{str(path)!r} holds no sample ids in the format {suffix}. Export it again."
        ) from error
    return Selection.of_indices(beton, ids, provenance={"imported": Path(path).name})


def _read(path: str | os.PathLike[str], suffix: str) -> NDArray[Any]:
    if suffix == ".npy":
        return np.load(path, allow_pickle=False)  # type: ignore[no-any-return]  # np.load is untyped
    if suffix == ".txt":
        return np.array([int(line) for line in Path(path).read_text().split()], dtype=np.int64)
    import torch  # loaded for this format alone

    return np.asarray(torch.load(path, weights_only=True))


def _check_suffix(path: str | os.PathLike[str]) -> str:
    suffix = Path(path).suffix
    if suffix not in EXPORT_SUFFIXES:
        raise ValueError(
            f"{str(path)!r} must end in .npy, .indices or .txt, which names the format."
        )
    return suffix
