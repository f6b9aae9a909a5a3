"""Export and import lists of sample ids: `.npy`, DP4TL's `.indices` and `.txt`."""

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..atomic import atomic_open
from ..beton import BetonIndex
from ..scoring.inputs import as_array
from ..stored import open_file, read_array
from ..validate import check_int_array
from .selection import Selection

_DIGITS, _ROOM = 12, 1 << 16  # bytes of text per sample id, and more for repeats

_HINT = " Pass positions in this beton, not identifiers or positions in a file of another order."

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
    """Read sample ids that `export_indices` or DP4TL wrote, as a selection from `beton`.

    A sample id is the sample's position in the beton. Other numbers, such as the identifiers that
    DP4TL's `get_label_and_indices.py` writes, select other images. Selections of whole classes show
    this, because then their samples do not fill the classes.

    Warns:
        UserWarning: some classes are retained only in part.
    """
    suffix, index = _check_suffix(path), BetonIndex.of(beton)
    try:
        ids = _read(Path(path), suffix, index.num_samples)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(
            f"{str(path)!r} holds no sample ids in the format {suffix}. Export it again."
        ) from error
    ids = check_int_array("indices", ids, below=index.num_samples, hint=_HINT)
    selection = Selection.of_indices(index, ids, provenance={"imported": Path(path).name})
    _warn_of_parts(selection, index, str(path))
    return selection


def _warn_of_parts(selection: Selection, index: BetonIndex, path: str) -> None:
    if not selection.classes.size:
        return
    counts = index.class_counts()
    kept = np.bincount(index.labels()[selection.indices], minlength=len(counts))
    parts = int(((kept > 0) & (kept < counts)).sum())
    if parts:
        warnings.warn(
            f"{path!r} covers {parts} of its {len(selection.classes)} classes only partly. If "
            f"whole classes were selected, the numbers are not positions.{_HINT}",
            stacklevel=3,
        )


def _read(path: Path, suffix: str, num_samples: int) -> NDArray[Any]:
    if suffix == ".npy":
        return read_array(path)
    if suffix == ".txt":
        with open_file(path) as stream:
            text = stream.read(_ROOM + (most := _DIGITS * num_samples))
        if len(text) == _ROOM + most:
            raise ValueError(f"it is too long for the ids of {num_samples} samples")
        return np.array([int(line) for line in text.decode().split()], dtype=np.int64)
    from ..scoring.surrogate.checkpoint_files import read_saved  # loads torch, for this format

    ids = as_array(read_saved(path))
    if ids.nbytes > path.stat().st_size:
        raise ValueError("its tensor repeats its elements")
    return ids


def _check_suffix(path: str | os.PathLike[str]) -> str:
    suffix = Path(path).suffix
    if suffix not in EXPORT_SUFFIXES:
        raise ValueError(
            f"{str(path)!r} must end in .npy, .indices or .txt, which names the format."
        )
    return suffix
