"""Describe the fields of a beton from the descriptors in the file."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BetonError
from .format import FIELD_KINDS, FIELD_METADATA
from .rejected import damaged, foreign

# ffcv describes an array field by its shape, padded with zeros, and the length of its numpy type,
# which follows as JSON: `[["", "<f4"]]`.
_ARRAYS = np.dtype([("shape", "<u8", 32), ("type_length", "<u8")])
_ARRAY_KINDS = {"ndarray", "torch_tensor"}
_TYPE = re.compile(r"[<>|=]?[?a-zA-Z]\d*(\[\d*[a-zA-Z]+\])?")


class CustomFieldError(BetonError):
    """The metadata cannot be read, because the class of a custom field was not passed."""


@dataclass(frozen=True, slots=True)
class FieldInfo:
    """One field of a beton."""

    name: str
    kind: str
    type_id: int
    column: str
    """Name of its column in the metadata table: `f0`, `f1`, ..."""
    is_custom: bool
    """Whether the meaning of its records is unknown, because a class of the user reads them."""
    value_bytes: int | None = None
    """Bytes of each value of an array field; None for other fields."""


def describe_fields(
    descriptors: NDArray[Any], custom: Mapping[str, Any], path: Path
) -> tuple[tuple[FieldInfo, ...], list[np.dtype[Any]]]:
    """Return the fields and the type of each column of the metadata.

    Raises:
        CustomFieldError: `custom` lacks the class of a custom field.
        BetonError: a descriptor is corrupt.
    """
    fields: list[FieldInfo] = []
    columns = []
    for position, descriptor in enumerate(descriptors):
        name, type_id = _name_of(descriptor, position, path), int(descriptor["type_id"])
        if type_id not in FIELD_KINDS:
            raise foreign(path, f"its field {name!r} is of unknown type {type_id}")
        if any(field.name == name for field in fields):
            raise foreign(path, f"it has two fields called {name!r}")
        usual = FIELD_METADATA.get(type_id)
        if name in custom:
            dtype = _custom_metadata(custom[name], descriptor["arguments"], name, path)
        elif usual is None:
            raise CustomFieldError(
                f"{str(path)!r} has the custom field {name!r}. Pass the class that it was written "
                "with in `custom_fields`."
            )
        else:
            dtype = usual
        # numpy takes None as float64: that dtype equals None.
        is_custom = usual is None or dtype != usual
        kind, size = FIELD_KINDS[type_id], None
        if kind in _ARRAY_KINDS and not is_custom:
            size = _value_bytes(descriptor["arguments"], name, path)
        columns.append(dtype)
        fields.append(FieldInfo(name, kind, type_id, f"f{position}", is_custom, size))
    return tuple(fields), columns


def _name_of(descriptor: Any, position: int, path: Path) -> str:
    stored = descriptor["name"].tobytes()
    name = str(stored.decode("ascii", "replace").split("\0")[0])
    # Names are printed. ffcv decodes the bytes after the name too.
    if not stored.isascii() or not name.isprintable() or not name:
        raise foreign(path, f"the name of its field {position} is {stored.rstrip(bytes(1))!r}")
    return name


def _custom_metadata(
    field: Any, arguments: NDArray[np.uint8], name: str, path: Path
) -> np.dtype[Any]:
    try:
        dtype: np.dtype[Any] = np.dtype(field.from_binary(arguments).metadata_type)
    except Exception as error:  # code of the user's class
        raise BetonError(
            f"the class in `custom_fields` cannot read the arguments of the field {name!r} in "
            f"{str(path)!r}: {type(error).__name__}: {error}. Pass the class that the field was "
            "written with, or copy the file again."
        ) from error
    if dtype.hasobject or not dtype.itemsize:
        raise ValueError(
            f"The metadata of the custom field {name!r} must have a fixed size; its type is "
            f"{dtype}. Change the class in `custom_fields`."
        )
    return dtype


def can_be_loaded(dtype: np.dtype[Any], shape: Sequence[int]) -> bool:
    """Return whether ffcv can load arrays: not empty, and of numbers, as torch holds them."""
    return dtype.kind in "biufc" and dtype.isnative and bool(shape) and 0 not in shape


def _value_bytes(arguments: NDArray[np.uint8], name: str, path: Path) -> int:
    """Return the bytes of one array of a field, given the arguments in its descriptor."""
    header = arguments[: _ARRAYS.itemsize].view(_ARRAYS)[0]
    text = arguments[_ARRAYS.itemsize :][: int(header["type_length"])].tobytes()
    shape: list[int] = header["shape"].tolist()
    while shape and not shape[-1]:
        shape.pop()
    try:
        [[_, type_text]] = json.loads(text.decode("ascii"))
        if not _TYPE.fullmatch(type_text):
            raise ValueError(f"{type_text!r} is no type")
        dtype: np.dtype[Any] = np.dtype(type_text)
    except (ValueError, TypeError, RecursionError) as error:
        raise damaged(path, f"the type of the arrays in its field {name!r} is unknown") from error
    if not can_be_loaded(dtype, shape):
        raise damaged(
            path, f"its field {name!r} holds arrays of type {dtype} and shape {tuple(shape)}"
        )
    return int(math.prod(shape) * dtype.itemsize)
