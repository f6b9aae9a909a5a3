"""`compact`: copy the retained samples of a beton into a new one that stock FFCV reads."""

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..beton import BetonIndex, Manifest
from ..beton.index import class_limit
from ..beton.index_jpegs import index_written
from ..beton.manifest import manifest_path
from ..errors import BetonError
from ..selection.selection import Selection
from ..validate import check_choice, check_int, parse_bytes, resolve_num_workers
from .copy_samples import copy_samples
from .plan import retain
from .source import SourceBeton
from .transcode import ImageOptions, Transcoder


def compact(  # noqa: PLR0913  # options are named at the call
    beton: str | os.PathLike[str] | BetonIndex,
    selection: Selection | str | os.PathLike[str] | ArrayLike | None,
    out: str | os.PathLike[str],
    *,
    layout: Literal["shuffled", "class"] = "shuffled",
    seed: int = 0,
    relabel: bool = False,
    max_resolution: int | None = None,
    images: Literal["keep", "jpeg", "raw"] = "keep",
    raw_budget: int | str | None = None,
    baseline: bool = False,
    fields: Collection[str] | None = None,
    num_workers: int | None = None,
    custom_fields: Mapping[str, Any] | None = None,
    jpeg_index: bool = True,
) -> BetonIndex:
    """Write the retained samples of a beton to a new beton, atomically.

    Samples are copied byte for byte unless an option changes their images. The same arguments give
    the same bytes for any `num_workers`.

    Memory: the tables of both files, and about 200 bytes per stored image or array.

    Args:
        beton: the beton to copy from. It must not change during the call.
        selection: a `Selection`, the path of one, sample ids, or None for all samples.
        out: the beton to write. An existing file is replaced; the manifest is written next to it.
        layout: `shuffled` samples in an order drawn from `seed`, or sorted by `class`, then by id.
        seed: seed of the shuffled order.
        relabel: number the retained classes from 0, as the selection does.
        max_resolution: longest side in pixels; larger images are shrunk. None keeps them.
        images: `keep` images as they are stored, or store all as `jpeg` or as `raw` pixels.
        raw_budget: largest size of the new file, in bytes or as text such as `64GiB`. As many
            images as fit are stored as raw pixels, starting with those that save the most decoding
            time per byte. Images too large for a page stay JPEGs. With `max_resolution`, the limit
            is approximate.
        baseline: store progressive JPEGs, and others that cannot be indexed because of their
            coding, as baseline JPEGs. These have the same pixels and metadata and decode about
            2.8 times faster, but have about 10 % more bytes than progressive ones.
        fields: names of the fields to keep, for recipes that accept no others. None keeps all.
            Only numbers can be left out, and not the class ids.
        num_workers: threads that copy, or processes that encode images. None uses all cores.
        custom_fields: class of each custom field, as for `BetonIndex.open`.
        jpeg_index: then index the JPEGs, as `index_jpegs` does, so that the first epoch of a
            loader decodes as fast as later ones. Indexes of images that keep their bytes are
            copied. If indexing fails, there is a warning.

    Returns:
        The index of the new beton.

    Raises:
        StaleArtifactError: the selection was made for another beton.
        BetonError: the beton is corrupt, or changed during the call.
        ValueError: nothing is retained, an option is out of range, `out` is the beton or a folder,
            the disk has too little space, or an image cannot be decoded.
        RuntimeError: a worker process died.
        BlockingIOError: another process is writing `out`.
    """
    budget = None if raw_budget is None else parse_bytes("raw_budget", raw_budget)
    image_options = ImageOptions(
        images=images,
        max_resolution=max_resolution,
        raw_budget=budget,
        baseline=bool(baseline),
    )
    options = {
        "layout": check_choice("layout", layout, ("shuffled", "class")),
        "seed": check_int("seed", seed, at_least=0),
        "relabel": bool(relabel),
        **asdict(image_options),
    }
    num_workers = resolve_num_workers(num_workers)
    target = Path(out)
    with SourceBeton(beton, custom_fields, fields) as source:
        index = source.index
        _check_target(target, index.path)
        chosen, ids = _choose(selection, index, relabel)
        label_field = "label" if chosen is None else chosen.label_field
        if layout == "class":
            order = ids[np.argsort(index.labels(label_field)[ids], kind="stable")]
        else:
            order = np.random.default_rng(seed).permutation(ids)
        retained = retain(index, order)
        if chosen is not None and relabel:
            _relabel(retained.metadata[index.field(label_field).column], chosen.label_map)
        relabelled = chosen if relabel else None
        label_field, names, num_classes = _class_ids(index, label_field, relabelled, len(ids))
        if fields is not None:
            if num_classes and label_field not in fields:
                raise ValueError(f"`fields` leaves out the class ids. Add {label_field!r}.")
            options["fields"] = [field.name for field in source.kept]
            retained = retained.with_columns(source.dtype)
        written_by = {
            "writer": "compact",
            "source": index.path.name,
            "source_fingerprint": index.fingerprint,
            **options,
            "selection": None
            if chosen is None
            else {"digest": chosen.digest(), "provenance": dict(chosen.provenance)},
        }
        json.dumps(written_by, allow_nan=False)  # an error now rather than after the copy

        def describe(written: BetonIndex) -> Manifest:
            source.file.check_unchanged()
            labels = written.column(label_field) if num_classes else ()
            return Manifest(
                fields={field.name: field.kind for field in written.fields},
                num_samples=written.num_samples,
                class_names=names,
                class_counts=tuple(np.bincount(labels, minlength=num_classes).tolist()),
                label_field=label_field,
                written_by=written_by,
                fingerprint=written.fingerprint,
                content=written.content,
            )

        transcoder = Transcoder(source, retained, order, image_options)
        if transcoder.changes:
            written = transcoder.write(target, describe, num_workers)
        else:
            written = copy_samples(source, retained, target, describe, num_workers)
    if jpeg_index:
        # Images of equal size may still differ. The checksum of a copied index then rejects it.
        is_same = written.allocations["size"] == retained.extents["size"]
        copied = (index, np.where(is_same, retained.extents["ptr"], 0))
        index_written(written, num_workers, copied)
    return written


def _class_ids(
    index: BetonIndex, label_field: str, relabelled: Selection | None, num_samples: int
) -> tuple[str, tuple[str, ...], int]:
    """Return the label field, class names and number of classes of the new beton's manifest.

    The number is 0 if the field holds no class ids, in the source or for as few samples.
    """
    if relabelled is not None:
        names, classes = index.class_names(label_field), relabelled.classes.tolist()
        named = dict(enumerate(names))
        new_names = tuple(named.get(each, str(each)) for each in classes) if names else ()
        return label_field, new_names, len(classes)
    # Without relabelling, the manifest describes the same field as before.
    field = index.manifest.label_field if index.manifest else label_field
    names = index.class_names(field)
    try:
        num_classes = len(index.class_counts(field))
    except BetonError:
        return field, names, 0
    is_countable = num_classes <= class_limit(num_samples, len(names))
    return field, names, num_classes if is_countable else 0


def _relabel(labels: NDArray[np.int64], label_map: NDArray[np.int64]) -> None:
    mapped = label_map[labels]
    if mapped.min() < 0:
        raise ValueError(
            f"`selection` retains samples of class {labels[mapped < 0][0]}, which it prunes. Make "
            "the selection with `select` or `Selection.of_indices`."
        )
    labels[...] = mapped


def _choose(
    selection: Any, index: BetonIndex, relabel: bool
) -> tuple[Selection | None, NDArray[np.int64]]:
    """Return the selection, if any, and the retained ids in ascending order."""
    if isinstance(selection, str | os.PathLike):
        selection = Selection.load(selection)
    if not isinstance(selection, Selection):
        given = np.arange(index.num_samples) if selection is None else selection
        ids = np.unique(index.check_ids("selection", given))
        if not ids.size:
            raise ValueError("`selection` retains no sample.")
        return (Selection.of_indices(index, ids) if relabel else None), ids
    selection.check(index)
    return selection, np.unique(index.check_ids("indices", selection.indices))


def _check_target(target: Path, source: Path) -> None:
    if target.is_dir():
        raise ValueError(f"`out` is the folder {str(target)!r}. Add a file name.")
    for path, role in ((target, "`out`"), (manifest_path(target), "the manifest of `out`")):
        if path.exists() and path.samefile(source):
            raise ValueError(f"{role} would overwrite {str(source)!r}. Name another file.")
