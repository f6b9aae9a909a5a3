"""`compact`: a beton of what a selection retains, which any unmodified ffcv recipe reads."""

import json
import os
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..beton import BetonIndex, Manifest
from ..beton.index import check_indices
from ..beton.manifest import manifest_path
from ..selection.selection import Selection
from .plan import SourceBeton, copy_samples, retain
from .transcode import ImageOptions, Transcoder, transcode_samples

_LAYOUTS = ("shuffled", "class")
_IMAGES = ("keep", "jpeg", "raw")
_LONGEST_SIDE = (1 << 16) - 1  # the metadata has 16 bits for it
_SIZE = re.compile(r"(\d+(?:\.\d+)?) *([KMGT]?)(i?)B?", re.IGNORECASE)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def compact(  # noqa: PLR0913  # each is an option of its own, and named at the call
    source: str | os.PathLike[str],
    selection: Selection | str | os.PathLike[str] | ArrayLike | None,
    out: str | os.PathLike[str],
    *,
    layout: Literal["shuffled", "class"] = "shuffled",
    seed: int = 0,
    relabel: bool = False,
    max_resolution: int | None = None,
    images: Literal["keep", "jpeg", "raw"] = "keep",
    raw_budget: int | str | None = None,
    fields: Collection[str] | None = None,
    jobs: int | None = None,
    custom_fields: Mapping[str, Any] | None = None,
) -> BetonIndex:
    """Write a beton of the retained samples of another, atomically.

    Samples are copied byte for byte unless an option asks for other images; no sample crosses a
    page. Long runs are copied by the kernel where it can, short ones, as a shuffled file has them,
    in blocks by threads, which is faster. The same arguments give the same bytes for any `jobs`.

    Memory: the tables of both files and about 200 bytes per retained extent.

    Args:
        source: the beton to copy from; it must not change meanwhile.
        selection: a `Selection`, the path of one, sample ids, or None for all samples.
        out: the beton to write, replaced if it exists; its manifest goes beside it.
        layout: `shuffled` (in an order drawn from `seed`) or `class` (by class, then by id).
        seed: of the shuffled order.
        relabel: number the retained classes from 0, as the selection does.
        max_resolution: longer side in pixels above which images are shrunk; None keeps them.
        images: `keep` them as they are stored, or store all as `jpeg` or as `raw` pixels.
        raw_budget: bytes of the whole file, or text such as `64GiB`: as many images are stored as
            raw pixels as fit, those first whose decoding costs most for the space it saves. Pages
            do not grow for it: images that no page holds as pixels stay as they are. Exact
            without `max_resolution`, near with it.
        fields: names of the fields to keep, for recipes that take no others; None keeps all. What
            is left out must be numbers, and not the class ids.
        jobs: threads that copy, or processes that encode; None takes one per core.
        custom_fields: class of each field of a custom type, by name, as for `BetonIndex.open`.

    Returns:
        The index of the finished file.

    Raises:
        StaleArtifactError: the selection was made for another beton.
        BetonError: the source is damaged, or changed while it was read.
        ValueError: nothing is retained, an option is out of range, `out` is the source or a
            folder, its file system has not enough room, or an image cannot be decoded that must
            be.
        RuntimeError: a worker process died.
        BlockingIOError: another process writes to `out`.
    """
    wanted = _image_options(images, max_resolution, raw_budget)
    _one_of("layout", layout, _LAYOUTS)
    if not _is_int(seed) or seed < 0:
        raise ValueError(f"`seed` must be an int of at least 0; got {seed!r}. Pass another.")
    options = {"layout": layout, "seed": int(seed), "relabel": bool(relabel), **asdict(wanted)}
    target, jobs = Path(out), _check_jobs(jobs)
    if target.exists() and target.samefile(source):
        raise ValueError(
            f"`out` must be another file than `source`; got {str(target)!r}. Name a new file."
        )
    if manifest_path(target).exists() and manifest_path(target).samefile(source):
        raise ValueError(
            f"`out` must not have its manifest where `source` lies; got {str(target)!r}. "
            "Name another file."
        )
    if target.is_dir():
        raise ValueError(f"`out` must name a file; got the folder {str(target)!r}. Add a name.")
    with SourceBeton(Path(source), custom_fields, fields) as opened:
        index = opened.index
        chosen, ids = _choose(selection, index, relabel)
        labels = _Labels(index, chosen, relabel)
        order = _order(ids, labels, layout, seed)
        retained = retain(index, order)
        labels.write(retained.metadata)
        if fields is not None:
            labels.check_kept(fields)
            options["fields"] = [field.name for field in opened.kept]
            retained = retained.with_columns(opened.dtype)
        written_by = {
            "writer": "compact",
            "source": Path(source).name,
            "source_fingerprint": index.fingerprint,
            **options,
            "selection": _provenance(chosen),
        }
        json.dumps(written_by, allow_nan=False)  # what cannot be kept is found before the work

        def describe(written: BetonIndex) -> Manifest:
            return Manifest(
                fields={field.name: field.kind for field in written.fields},
                num_samples=written.num_samples,
                class_names=labels.names,
                class_counts=labels.count(written),
                label_field=labels.named,
                written_by=written_by,
                fingerprint=written.fingerprint,
            )

        transcoder = Transcoder(opened, retained, order, wanted)
        if transcoder.changes:
            return transcode_samples(
                opened, transcoder, len(order), target, describe=describe, jobs=jobs
            )
        return copy_samples(opened, retained, target, describe=describe, jobs=jobs)


def _provenance(selection: Selection | None) -> dict[str, Any] | None:
    if selection is None:
        return None
    return {"digest": selection.digest(), "provenance": dict(selection.provenance)}


class _Labels:
    """The class ids of a beton, before and after.

    Args:
        index: the source.
        selection: what is retained, if it is a selection.
        relabel: number the classes as the selection does.
    """

    def __init__(self, index: BetonIndex, selection: Selection | None, relabel: bool) -> None:
        self._index = index
        self._field = "label" if selection is None else selection.label_field
        self._map = None if selection is None or not relabel else selection.label_map
        manifest = index.manifest
        # What the manifest names and counts: what it did, unless that gets other numbers.
        self.named = manifest.label_field if manifest and self._map is None else self._field
        self.names = index.class_names(self.named)
        self._num_classes = 0
        if self._map is not None and selection is not None:
            named = dict(enumerate(self.names))
            if named:
                kept = selection.classes.tolist()
                self.names = tuple(named.get(each, str(each)) for each in kept)
            self._num_classes = len(selection.classes)
        elif _holds_class_ids(index, self.named):
            self._num_classes = len(index.class_counts(self.named))

    def of(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the class id in the source of each of the samples `ids`."""
        return self._index.labels(self._field)[ids]

    def write(self, metadata: NDArray[Any]) -> None:
        """Put the new class ids into the metadata of retained samples."""
        if self._map is None:
            return
        column = metadata[self._index.field(self._field).column]
        mapped = self._map[column]
        if mapped.min() < 0:
            raise ValueError(
                f"`selection` must retain the class of each of its samples; got class "
                f"{column[mapped < 0][0]}, which it prunes. Make it with `select` or "
                "`Selection.of_indices`."
            )
        column[...] = mapped

    def check_kept(self, fields: Collection[str]) -> None:
        """Raise ValueError if the field that the manifest counts is left out."""
        if self._num_classes and self.named not in fields:
            raise ValueError(
                f"`fields` must keep the class ids, {self.named!r}; got {sorted(fields)}. Add it."
            )

    def count(self, written: BetonIndex) -> tuple[int, ...]:
        """Count the samples of each class of the new beton."""
        if not self._num_classes:
            return ()
        # Not the kernel, which takes longer to load than this takes for millions.
        counts = np.bincount(written.labels(self.named), minlength=self._num_classes)
        return tuple(counts.tolist())


def _holds_class_ids(index: BetonIndex, name: str) -> bool:
    is_int = any(field.name == name and field.kind == "int" for field in index.fields)
    return is_int and bool((index.column(name) >= 0).all())


def _choose(
    selection: Any, index: BetonIndex, relabel: bool
) -> tuple[Selection | None, NDArray[np.int64]]:
    """Return the selection, if there is one, and the ids that are retained, ascending."""
    if isinstance(selection, str | os.PathLike):
        selection = Selection.load(selection)
    if not isinstance(selection, Selection):
        every = np.arange(index.num_samples)
        ids = every if selection is None else np.unique(check_indices(selection, len(every)))
        if not ids.size:
            raise ValueError(
                "`selection` must retain at least one sample; got none. Keep more, or check "
                "what it was made of."
            )
        if not relabel:
            return None, ids
        selection = Selection.of_indices(index, ids)
    selection.check(index)
    return selection, np.unique(check_indices(selection.indices, index.num_samples))


def _order(ids: NDArray[np.int64], labels: _Labels, layout: str, seed: int) -> NDArray[np.int64]:
    if layout == "class":
        return ids[np.argsort(labels.of(ids), kind="stable")]
    return np.random.default_rng(seed).permutation(ids)


def _image_options(images: str, max_resolution: Any, raw_budget: Any) -> ImageOptions:
    _one_of("images", images, _IMAGES)
    if max_resolution is not None and (
        not _is_int(max_resolution) or not 1 <= max_resolution <= _LONGEST_SIDE
    ):
        raise ValueError(
            f"`max_resolution` must lie in 1 to {_LONGEST_SIDE} pixels; got {max_resolution!r}. "
            "Pass another, or leave it out."
        )
    if raw_budget is not None and images != "keep":
        raise ValueError(
            f"`raw_budget` must be given with `images` keep; got {images!r}. Leave one of them out."
        )
    budget = None if raw_budget is None else _num_bytes(raw_budget)
    side = None if max_resolution is None else int(max_resolution)
    return ImageOptions(images=images, max_resolution=side, raw_budget=budget)


def _num_bytes(size: Any) -> int:
    """Return the bytes of a number, or of text such as 64GiB, 500 MB or 1.5T."""
    found = _SIZE.fullmatch(size.strip()) if isinstance(size, str) else None
    if found:
        number, unit, binary = found.groups()
        with suppress(OverflowError):  # of more digits than any disk has bytes
            return int(float(number) * (1024 if binary else 1000) ** _POWERS[unit.upper()])
    if not _is_int(size) or size < 1:
        raise ValueError(
            f"`raw_budget` must be a number of bytes, or text such as 64GiB; got {size!r}. "
            "Pass the bytes that the file may take."
        )
    return int(size)


def _is_int(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise ValueError(f"`{name}` must be {' or '.join(choices)}; got {value!r}. Choose one.")
    return value


def _check_jobs(jobs: int | None) -> int:
    if jobs is None:
        return len(os.sched_getaffinity(0))
    if not _is_int(jobs) or jobs < 1:
        raise ValueError(f"`jobs` must be an int of at least 1; got {jobs!r}. Leave it out.")
    return jobs
