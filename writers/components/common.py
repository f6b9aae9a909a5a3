"""Options, checks and the command line of every writer."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

import dp4tl_ffcv  # loads each name when it is first used
from dp4tl_ffcv import utils
from dp4tl_ffcv.utils import check_int, one_line_errors, printable

from .draw import at_most, choose_classes, draw_missing

SPLITS = ("train", "val", "test")
# Options that a resumed run may change: they change no sample's bytes.
_NOT_RECORDED = ("out", "num_workers", "check_counts", "download", "on_error", "jpeg_index")
# Options that only choose samples. The digest of the listing changes with the samples.
_SHARDS = {f"{split}_shards" for split in SPLITS}
_IN_LISTING = {"val", "test", "classes", "max_per_class", *_SHARDS}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of every writer. A writer's `Config` adds its own."""

    out: Path
    """Folder for the betons SPLIT.beton and their manifests SPLIT.beton.json."""
    mode: Literal["jpg", "raw"] = "jpg"
    """Store images as JPEGs or as raw pixels."""
    jpeg_quality: int = 90
    """JPEG quality, 1 to 100. JPEGs that need no change keep their bytes."""
    max_resolution: int | None = None
    """Shrink images whose longer side has more pixels than this."""
    short_side: int | None = None
    """Shrink images whose shorter side has more pixels than this."""
    decode_check: bool = False
    """Also decode the JPEGs that keep their bytes, to find corrupt ones now."""
    baseline: bool = False
    """Store progressive JPEGs as baseline JPEGs with the same pixels, which decode faster."""
    seed: int = 0
    """Seed of the order of samples in the files, and of all random choices of samples."""
    shuffle: bool = True
    """Write samples in random order instead of the dataset's order."""
    num_workers: int | None = None
    """Worker processes. None: one per core. 0 works in this process."""
    on_error: Literal["raise", "skip"] = "raise"
    """Stop at an unreadable image, or skip it and list it in the manifest."""
    jpeg_index: bool = True
    """Index the JPEGs too (see `dp4tl index`), so that the first epoch is as fast as later ones."""


@dataclass(frozen=True, kw_only=True)
class DatasetOptions(Options):
    """Options of a writer that reads a dataset."""

    classes: tuple[str, ...] = ()
    """Names of the classes to write, numbered in this order. Without --classes: all classes."""
    max_per_class: int | None = None
    """Write at most this many random images of a class to train, and to val."""


@dataclass(frozen=True, kw_only=True)
class SplitOptions(DatasetOptions):
    """Options of a writer whose dataset may lack splits."""

    val: float | None = None
    """Fraction of each class to draw for val. None: 0.1 if the dataset has no splits, else 0."""
    test: float | None = None
    """Fraction of each class to draw for test. None: 0.1 if the dataset has no splits, else 0."""


@dataclass(frozen=True, kw_only=True)
class CountedOptions(DatasetOptions):
    """Options of a writer that knows the size of its dataset."""

    check_counts: bool = True
    """Require the dataset's known numbers of classes and of images per split."""


# Number of classes, and of images by split. A split that is not listed is not checked.
Expected = tuple[int, Mapping[str, int]]


def write_splits(
    name: str,
    splits: Mapping[str, Any],
    class_names: Sequence[str],
    options: Options,
    expected: Expected | None = None,
) -> dict[str, dp4tl_ffcv.BetonIndex]:
    """Check all splits, choose the samples, then write each split to `OUT/SPLIT.beton`.

    A split is skipped if an earlier run finished it with the same options, sample names and labels.

    Args:
        name: name of the writer.
        splits: samples (image, label, identifier) by split, in an order that is equal in each run.
            Besides the methods of sequences, they have `labels` and `name(i)`, as `ImageFiles` has.
            If a random order is slow to read, `shuffled(seed)` returns them in a faster one.
        class_names: name of each class id.
        options: the writer's options.
        expected: size of the dataset, for `CountedOptions`; None if it is not known.

    Raises:
        ValueError: the size is not the expected one, a split has no images, a label has no class
            name, or there is no class of a name in `options.classes`.
    """
    if expected is not None:
        check_counts(splits, class_names, expected, options)
    for split, samples in splits.items():
        _check_labels(split, samples.labels, class_names)
    chosen, class_names = _choose(splits, class_names, options)
    recorded = {key: value for key, value in asdict(options).items() if key not in _NOT_RECORDED}
    arguments = json.loads(json.dumps(recorded, default=str))
    fields = dp4tl_ffcv.image_fields(
        mode=options.mode,
        jpeg_quality=options.jpeg_quality,
        max_resolution=options.max_resolution,
        short_side=options.short_side,
        decode_check=options.decode_check,
        baseline=options.baseline,
    )
    written = {}
    for split, (samples, seed) in chosen.items():
        path = options.out / f"{split}.beton"
        written_by = {"writer": name, "split": split, **arguments, "listing": _digest(samples)}
        index = already_written(path, written_by, class_names)
        if index is not None:
            if options.jpeg_index:  # an earlier run may have been stopped before it
                utils.index_written(index, options.num_workers)
            written[split] = index
            continue
        written[split] = dp4tl_ffcv.write_beton(
            path,
            samples,
            fields,
            class_names=class_names,
            written_by=written_by,
            seed=seed,
            num_workers=options.num_workers,
            on_error=options.on_error,
            jpeg_index=options.jpeg_index,
        )
    return written


def _choose(
    splits: Mapping[str, Any], class_names: Sequence[str], options: Options
) -> tuple[dict[str, tuple[Any, int | None]], Sequence[str]]:
    """Return the samples to write and the seed of their order by split, and the class names."""
    chosen = {}
    for split, samples in splits.items():
        seed = options.seed if options.shuffle else None
        if seed is not None and hasattr(samples, "shuffled"):
            samples, seed = samples.shuffled(seed), None
        if isinstance(options, DatasetOptions):
            if options.classes:
                samples = choose_classes(split, samples, class_names, options.classes)
            if options.max_per_class is not None and split in ("train", "val"):
                samples = at_most(samples, options.max_per_class, options.seed)
        chosen[split] = samples, seed
    return chosen, getattr(options, "classes", ()) or class_names


def check_class_id(name: str, largest: int, num_samples: int) -> None:
    """Check the largest class id before each id up to it gets a name and a count."""
    check_int(name, largest, at_most=utils.class_limit(num_samples) - 1)


def already_written(
    path: Path, written_by: Mapping[str, Any], class_names: Sequence[str]
) -> dp4tl_ffcv.BetonIndex | None:
    """Return the index of a beton that an equal run finished, and say so; otherwise None."""
    utils.finish_manifest(path)
    try:
        index = dp4tl_ffcv.BetonIndex.open(path)
        manifest = index.manifest
    except (FileNotFoundError, ValueError):  # missing or damaged
        return None
    same = (
        manifest is not None
        and _compared(manifest.written_by) == _compared(written_by)
        and manifest.class_names == tuple(class_names)
        and not manifest.skipped  # this run may be able to read the skipped images
    )
    if not same:
        return None
    say(f"{path.stem}: already written; delete {path} to write it again")
    return index


def _compared(written_by: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in written_by.items() if name not in _IN_LISTING}


def run(module: str, arguments: Sequence[str] | None = None) -> None:
    """Run a writer as a command: parse its options, write, print each beton.

    Args:
        module: name of the writer's module; a writer passes its `__name__`.
        arguments: command-line arguments; None takes `sys.argv[1:]`.
    """
    import tyro

    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may not be text
    writer: Any = import_module(module)
    program = f"dp4tl write {writer.__spec__.name.rpartition('.')[2].replace('_', '-')}"
    config = tyro.cli(writer.Config, prog=program, description=writer.__doc__, args=arguments)
    with one_line_errors(config, program=program):
        written = writer.write(config)
    for name, index in written.items():
        say(f"{name}: {index.num_samples} images, {index.num_classes} classes -> {index.path}")
        for line in _notices(index):
            say(f"  {line}")


def say(line: str) -> None:
    """Print a line with escapes for the characters of names that are not printable."""
    print(printable(line))


def _notices(index: dp4tl_ffcv.BetonIndex) -> Iterator[str]:
    manifest = index.manifest
    if manifest is None:
        return
    counts = zip(manifest.class_names, manifest.class_counts, strict=True)
    empty = [name for name, count in counts if not count]
    if empty:
        more = f" and {len(empty) - 5} more" if len(empty) > 5 else ""
        yield f"no images of {', '.join(empty[:5])}{more}"
    for skipped in manifest.skipped:
        yield f"skipped {skipped['name']}: {skipped['error']}"


def check_no_stale(out: Path, splits: Iterable[str]) -> None:
    """Raise ValueError if `out` holds a beton of `splits`, from a run that split differently."""
    for split in splits:
        path = out / f"{split}.beton"
        if path.exists():
            raise ValueError(
                f"{path} is from an earlier run, and its images may now be in another split. "
                "Delete it, or choose another --out."
            )


def drawn_splits(splits: Mapping[str, Any], options: SplitOptions) -> dict[str, Any]:
    """Draw the splits that a dataset lacks, and check that none is left from an earlier draw."""
    drawn = draw_missing(splits, options.val, options.test, options.seed)
    check_no_stale(options.out, [split for split in SPLITS if split not in drawn])
    return drawn


def check_counts(
    splits: Mapping[str, Any], class_names: Sequence[str], expected: Expected, options: Options
) -> None:
    """Raise ValueError if the size is not the expected one, unless --no-check-counts is given."""
    if isinstance(options, CountedOptions) and not options.check_counts:
        return
    classes, images = expected
    found = {split: len(samples) for split, samples in splits.items()}
    wrong = [
        f"{count} images in {split} instead of {images[split]}"
        for split, count in found.items()
        if count != images.get(split, count)
    ]
    if len(class_names) != classes:
        wrong.append(f"{len(class_names)} classes instead of {classes}")
    if wrong:
        raise ValueError(
            f"The dataset is not complete: {', '.join(wrong)}. Get the missing files, or pass "
            "--no-check-counts."
        )


def _check_labels(split: str, labels: NDArray[np.int64], class_names: Sequence[str]) -> None:
    if not labels.size:
        raise ValueError(f"The split {split} has no images.")
    if labels.min() < 0 or labels.max() >= len(class_names):
        raise ValueError(
            f"The split {split} has labels from {labels.min()} to {labels.max()}, but the "
            f"{len(class_names)} class names are for labels 0 to {len(class_names) - 1}."
        )


def _digest(samples: Any) -> str:
    """Hash the labels and names, which are equal if a run continues another."""
    digest = hashlib.sha256(samples.labels.astype("<i8").tobytes())
    for i in range(len(samples)):
        digest.update(os.fsencode(samples.name(i)) + b"\0")
    return digest.hexdigest()
