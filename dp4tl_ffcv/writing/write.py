"""Write betons from samples. An error in a sample is raised; ffcv's own writer would hang."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from ffcv.fields import IntField
from ffcv.types import TYPE_ID_HANDLER
from numpy.typing import NDArray

from ..beton.format import CUSTOM_TYPE, FIELD, LARGEST_PAGE, metadata_dtype
from ..beton.index import BetonIndex, class_limit
from ..beton.index_jpegs import index_written
from ..beton.manifest import Manifest
from ..validate import check_choice, check_int, resolve_num_workers
from .build import BuildPlan, build_beton
from .encode import Allocator, Batch, Encoded
from .fields import ImageField
from .values import check_arrays, storable

MIN_PAGE_SIZE = 1 << 21  # ffcv rejects smaller pages
_FORMAT = 1  # part of the key of unfinished files: increase it when the bytes of betons change

_TYPE_IDS: dict[Any, int] = {handler: type_id for type_id, handler in TYPE_ID_HANDLER.items()}
_TYPE_IDS[ImageField] = 2  # ffcv reads it as an RGBImageField


def image_fields(
    *,
    mode: str = "jpg",
    jpeg_quality: int = 90,
    max_resolution: int | None = None,
    short_side: int | None = None,
    decode_check: bool = False,
    baseline: bool = False,
) -> dict[str, Any]:
    """Return the fields `image`, `label` and `identifier` for `write_beton`.

    The arguments are those of `ImageField`.
    """
    image = ImageField(mode, jpeg_quality, max_resolution, short_side, decode_check, baseline)
    return {"image": image, "label": IntField(), "identifier": IntField()}


def write_beton(  # noqa: PLR0913  # options are named at the call
    out: str | os.PathLike[str],
    samples: Sequence[tuple[Any, ...]],
    fields: Mapping[str, Any],
    *,
    class_names: Sequence[str] = (),
    label_field: str = "label",
    written_by: Mapping[str, Any] | None = None,
    seed: int | None = 0,
    page_size: int | None = None,
    num_workers: int | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    jpeg_index: bool = True,
) -> BetonIndex:
    """Write `samples` to a beton that ffcv can read, and its manifest, atomically.

    A run that is killed or fails after 128 MiB or 5 s leaves the unfinished file `.NAME.part` and
    its journal. The same call continues the file, and the result has the same bytes as without the
    interruption. A call counts as the same if its arguments, the number of samples and four samples
    that were already written are equal.

    Memory: 32 encoded samples per worker; per sample its metadata and 24 bytes per field of
    variable length.

    Args:
        out: the beton to write. Its manifest is `out` with `.json` appended.
        samples: indexable. Each item is a tuple of one value per field. If there is a method
            `name(i)`, messages use the name that it returns for item i.
        fields: `image_fields()`, or ffcv field objects by name. A name has at most 16 characters,
            printable ASCII.
        class_names: name of each class id, or empty.
        label_field: integer field of the class ids. Empty if no field holds class ids.
        written_by: the writer's arguments, stored in the manifest.
        seed: seed of the random order in which samples are stored. None keeps their order.
        page_size: bytes per page, a power of two of at least 2 MiB. Each sample must fit into a
            page. None starts at 8 MiB and doubles the size until the largest sample fits.
        num_workers: processes that encode. None uses all cores, 0 encodes in this process.
        on_error: `raise` the first error of a sample, or `skip` samples with errors and list them
            in the manifest.
        jpeg_index: then index the JPEGs, as `index_jpegs` does, so that the first epoch of a
            loader decodes as fast as later ones. If that fails, there is a warning.

    Returns:
        The index of the new beton.

    Raises:
        ValueError: there are no samples, an argument is out of range, a sample cannot be encoded
            or does not fit into a page, or a label has no class name.
        RuntimeError: a worker process died.
        BlockingIOError: another process is writing to `out`.
    """
    _check_fields(fields, label_field)
    _check_names(class_names)
    if not len(samples):
        raise ValueError("`samples` is empty.")
    if page_size is not None and (
        not MIN_PAGE_SIZE <= page_size <= LARGEST_PAGE or page_size & (page_size - 1)
    ):
        raise ValueError(
            f"`page_size` must be a power of two from 2 MiB to 2 GiB; got {page_size}."
        )
    check_choice("on_error", on_error, ("raise", "skip"))
    order = np.arange(len(samples), dtype=np.int64)
    if seed is not None:
        order = np.random.default_rng(check_int("seed", seed, 0)).permutation(order)
    dtype = metadata_dtype([field.metadata_type for field in fields.values()])
    label_column = dict(zip(fields, dtype.names or (), strict=True)).get(label_field)
    names = tuple(class_names)
    given_name = getattr(samples, "name", None)
    name_of = given_name if callable(given_name) else "sample {}".format

    def check(batch: Batch) -> None:
        if label_column:
            _check_labels(batch, label_column, class_limit(len(samples)), len(names), name_of)

    def describe(index: BetonIndex, skipped: tuple[dict[str, Any], ...]) -> Manifest:
        labels = index.metadata[label_column] if label_column else None
        counts = () if labels is None else np.bincount(labels, minlength=len(names)).tolist()
        return Manifest(
            fields={field.name: field.kind for field in index.fields},
            num_samples=len(index),
            class_names=names,
            class_counts=tuple(counts),
            label_field=label_field,
            written_by=dict(written_by or {}),
            skipped=skipped,
            fingerprint=index.fingerprint,
            content=index.content,
        )

    plan = BuildPlan(
        descriptors=_descriptors(fields),
        dtype=dtype,
        order=order,
        encode=partial(_encode, samples, fields, dtype),
        key=_key(fields, label_field, names, written_by or {}, len(samples), seed, page_size),
        describe=describe,
        check=check,
        custom_fields={
            name: type(field) for name, field in fields.items() if type(field) not in _TYPE_IDS
        },
        page_size=page_size,
        skip_errors=on_error == "skip",
        name_of=name_of,
    )
    workers = resolve_num_workers(num_workers, at_least=0)
    written = build_beton(Path(out), plan, workers)
    if jpeg_index:
        index_written(written, workers)
    return written


def _encode(
    samples: Sequence[tuple[Any, ...]], fields: Mapping[str, Any], dtype: np.dtype[Any], number: int
) -> Encoded:
    sample = samples[number]
    if len(sample) != len(fields):
        raise ValueError(f"{len(sample)} values for {len(fields)} fields")
    row = np.zeros(1, dtype=dtype)
    malloc = Allocator()
    for column, field, value in zip(dtype.names or (), fields.values(), sample, strict=True):
        field.encode(row[column], storable(field, value), malloc)
    return Encoded(row, malloc.blobs)


def _check_labels(
    batch: Batch, column: str, limit: int, num_names: int, name_of: Callable[[int], str]
) -> None:
    labels = batch.rows[column]
    wrong = (labels < 0) | (labels >= (num_names or limit))
    if not wrong.any():
        return
    at = int(np.argmax(wrong))
    name, label = name_of(batch.numbers[at]), labels[at]
    if 0 <= label < limit:
        raise ValueError(
            f"The class id {label} of {name} has no name: `class_names` has {num_names}. Add the "
            "missing names."
        )
    raise ValueError(
        f"Cannot encode {name}: the class id {label} is not in [0, {limit}). Number the classes "
        "from 0. If the values are no class ids, name the field of the class ids as `label_field`, "
        "or pass label_field='' if there is none."
    )


def _check_names(class_names: Sequence[str]) -> None:
    for name in class_names:
        try:
            name.encode()
        except UnicodeEncodeError:  # of a folder whose name is in another encoding
            raise ValueError(
                f"The class name {name!r} is not text in UTF-8. Rename the class or its folder."
            ) from None


def _key(fields: Mapping[str, Any], *others: Any) -> str:
    """Return a digest of everything except the samples that determines the file."""
    kinds = {name: [type(field).__qualname__, vars(field)] for name, field in fields.items()}
    text = json.dumps([_FORMAT, kinds, *others], default=repr)
    return hashlib.sha256(text.encode()).hexdigest()


def _descriptors(fields: Mapping[str, Any]) -> NDArray[Any]:
    table = np.zeros(len(fields), dtype=FIELD)
    for row, (name, field) in zip(table, fields.items(), strict=True):
        row["type_id"] = _TYPE_IDS.get(type(field), CUSTOM_TYPE)
        row["name"][: len(name)] = np.frombuffer(name.encode("ascii"), dtype=np.uint8)
        row["arguments"] = np.frombuffer(field.to_binary().tobytes(), dtype=np.uint8)
    return table


def _check_fields(fields: Mapping[str, Any], label_field: str) -> None:
    if not fields:
        raise ValueError("`fields` is empty.")
    for name, field in fields.items():
        check_arrays(name, field)
        if not name.isascii() or not name.isprintable() or not 1 <= len(name) <= 16:
            raise ValueError(
                f"Field names must have 1 to 16 printable ASCII characters; got {name!r}."
            )
    if label_field in fields and type(fields[label_field]) is not IntField:
        raise ValueError(
            f"`label_field` must name an IntField; {label_field!r} is a "
            f"{type(fields[label_field]).__name__}."
        )
