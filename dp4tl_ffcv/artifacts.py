"""Files that pass between stages: written atomically, versioned, with provenance, never unpickled.

An artifact is an `.npz` of arrays and one JSON `header`, which holds the kind of file, the format
version and the provenance.
"""

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from .atomic import atomic_open
from .stored import check_entries, parse_json, read_npz
from .version import __version__

_FORMAT_VERSION = 1
# Facts that several kinds of artifacts keep in their provenance, if they know them.
_PROVENANCE = {
    "source_fingerprint": str | None,
    "clusters_sha256": str | None,
    "clusters": dict[str, Any],
    "silhouette": dict[str, Any] | None,
}


def save_artifact(
    path: str | os.PathLike[str],
    kind: str,
    arrays: Mapping[str, NDArray[Any]],
    header: Mapping[str, Any],
) -> None:
    """Write `arrays` and a JSON header (`header`, the kind and the versions) to an `.npz` file."""
    if Path(path).suffix != ".npz":
        raise ValueError(f"`path` must end in .npz; got {str(path)!r}.")
    full = {**header, "kind": kind, "format": _FORMAT_VERSION, "tool": f"dp4tl_ffcv {__version__}"}
    with atomic_open(path) as stream:
        np.savez(stream, header=np.array(json.dumps(full)), **arrays)  # type: ignore[arg-type]  # numpy's stub takes the dict for allow_pickle


def load_artifact(
    path: str | os.PathLike[str], kind: str, names: Collection[str]
) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Read the arrays `names` and the header of an artifact of `kind`, or raise ValueError."""
    try:
        header = check_entries(parse_json(read_npz(path, ())[1]), {"kind": str, "format": int})
        found, version = header["kind"], header["format"]
        is_readable = found == kind and version <= _FORMAT_VERSION
        arrays = read_npz(path, names)[0] if is_readable else {}
    except ValueError as error:
        raise _damaged(path, kind, error) from error
    if found != kind:
        raise ValueError(f"{str(path)!r} is a {found} file; a {kind} file is needed.")
    if not is_readable:
        raise ValueError(
            f"{str(path)!r} was written by a newer dp4tl_ffcv (format {version}). Update yours."
        )
    return arrays, header


def _damaged(path: str | os.PathLike[str], kind: str, error: Exception) -> ValueError:
    why = str(error).removesuffix(".")
    return ValueError(
        f"{str(path)!r} is damaged or not a {kind} file of dp4tl ({why}). Make it again."
    )


class Artifact:
    """Base class for dataclasses saved as one file of arrays and metadata."""

    __slots__ = ()
    KIND: ClassVar[str]
    ARRAYS: ClassVar[Mapping[str, tuple[Any, int]]]
    """Type and number of dimensions of each array."""
    FACTS: ClassVar[Mapping[str, Any]] = {"provenance": dict[str, Any]}
    """Type of each fact in the header, see `check_entries`."""
    OPTIONAL: ClassVar[tuple[str, ...]] = ()
    """Facts that files of earlier versions do not have."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file `path` (`.npz`), atomically."""
        arrays = {name: getattr(self, name) for name in self.ARRAYS}
        facts = {name: getattr(self, name) for name in self.FACTS}
        facts |= {name: dict(fact) for name, fact in facts.items() if isinstance(fact, Mapping)}
        save_artifact(path, self.KIND, arrays, facts)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a file that `save` wrote.

        Raises:
            ValueError: the file is damaged, or is another kind of file.
        """
        arrays, header = load_artifact(path, cls.KIND, cls.ARRAYS)
        try:
            check_entries(header, cls.FACTS, optional=cls.OPTIONAL)
            check_entries(header["provenance"], _PROVENANCE, optional=_PROVENANCE)
            for name, (dtype, ndim) in cls.ARRAYS.items():
                if (found := arrays[name]).dtype != dtype or found.ndim != ndim:
                    raise ValueError(f"its {name} are {found.dtype} of shape {found.shape}")
            return cls(**arrays, **{name: header[name] for name in cls.FACTS if name in header})
        except (ValueError, TypeError) as error:
            raise _damaged(path, cls.KIND, error) from error

    @classmethod
    def of(cls, given: Self | str | os.PathLike[str]) -> Self:
        """Load `given` if it is a path; else return it."""
        return cls.load(given) if isinstance(given, str | os.PathLike) else given

    def _freeze(self, **arrays: NDArray[Any]) -> None:
        for name, values in arrays.items():
            values.setflags(write=False)
            object.__setattr__(self, name, values)
