"""What every writer shares: options, counts that are checked, and the command line.

A writer is a module with a `Config(Options)`, a `write(config)` that lists the samples of each
split and hands them to `write_splits`, and `run(...)` under `if __name__ == "__main__"`.
"""

import hashlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import tyro
from numpy.typing import NDArray

from dp4tl_ffcv import BetonIndex, image_fields, write_beton
from dp4tl_ffcv.utils import one_line_errors

MAX_CLASSES = 1 << 24
# None changes the bytes of a sample, so a run that ended early is continued under other values.
_NOT_RECORDED = ("out", "num_workers", "check_counts", "download", "on_error")


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to write; each writer's own options say what."""

    out: Path
    """Folder of the betons: SPLIT.beton, with a manifest beside each."""
    mode: Literal["jpg", "raw"] = "jpg"
    """Store JPEGs, or pixels as they are."""
    jpeg_quality: int = 90
    """1 to 100, for images that must be encoded; JPEGs that need no change keep their bytes."""
    max_resolution: int | None = None
    """Longer side in pixels above which images are shrunk."""
    short_side: int | None = None
    """Shorter side in pixels above which images are shrunk."""
    decode_check: bool = False
    """Decode also the JPEGs whose bytes are kept, to find damaged ones now."""
    seed: int = 0
    """Of the order of samples in the files."""
    shuffle: bool = True
    """Write the samples in random order; else in the order of the dataset."""
    num_workers: int | None = None
    """Processes; by default one per core. 0: no others."""
    on_error: Literal["raise", "skip"] = "raise"
    """What an unreadable image does: end the run, or be left out and listed in the manifest."""
    check_counts: bool = True
    """Images per split and classes must be as many as the dataset is known to have."""


@dataclass(frozen=True)
class Expected:
    """What the whole dataset is known to hold."""

    classes: int
    images: Mapping[str, int]
    """By split; splits that are not named are not checked."""


def write_splits(
    name: str,
    splits: Mapping[str, Sequence[tuple[Any, ...]]],
    class_names: Sequence[str],
    options: Options,
    expected: Expected | None,
) -> dict[str, BetonIndex]:
    """Check every split, then write `OUT/SPLIT.beton` of each.

    A split that an earlier run has written whole, from samples of the same names and labels and
    with the same options, is not written again.

    Args:
        name: of the writer.
        splits: samples (image, label, identifier) by split. Where an item is slow to get, the
            sequence should have `labels` and `name(i)`, as `ImageFiles` has: they are asked
            for every sample before anything is written. Where any order is slow to read, it
            should have `shuffled(seed)`, which returns the samples in a random order that is not.
        class_names: name of each class id.
        options: the writer's options.
        expected: what the dataset is known to hold; None where nothing is known.

    Raises:
        ValueError: counts that are not the expected ones, a split without images, or a label
            without a class name.
    """
    if expected is not None and options.check_counts:
        _check_counts(name, splits, class_names, expected)
    for split, samples in splits.items():
        _check_labels(split, _labels_of(samples), class_names)
    if options.shuffle:
        splits = {split: _shuffled(each, options.seed) for split, each in splits.items()}
    labels = {split: _labels_of(samples) for split, samples in splits.items()}
    arguments = {key: _plain(value) for key, value in asdict(options).items()}
    arguments = {key: value for key, value in arguments.items() if key not in _NOT_RECORDED}
    fields = image_fields(
        mode=options.mode,
        jpeg_quality=options.jpeg_quality,
        max_resolution=options.max_resolution,
        short_side=options.short_side,
        decode_check=options.decode_check,
    )
    written = {}
    for split, samples in splits.items():
        path = options.out / f"{split}.beton"
        listing = _digest(samples, labels[split])
        written_by = {"writer": name, "split": split, **arguments, "listing": listing}
        index = _already_written(path, written_by, class_names)
        if index is not None:
            say(f"{split}: already written; delete {path} to write it again")
            written[split] = index
            continue
        written[split] = write_beton(
            path,
            samples,
            fields,
            class_names=class_names,
            written_by=written_by,
            seed=options.seed if options.shuffle and not hasattr(samples, "shuffled") else None,
            num_workers=options.num_workers,
            on_error=options.on_error,
        )
    return written


def _already_written(
    path: Path, written_by: Mapping[str, Any], class_names: Sequence[str]
) -> BetonIndex | None:
    """Return the index of a whole beton that a run of the same arguments has left."""
    try:
        index = BetonIndex.open(path)
        manifest = index.manifest
    except (FileNotFoundError, ValueError):  # none, or damaged
        return None
    same = (
        manifest is not None
        and manifest.written_by == written_by
        and manifest.class_names == tuple(class_names)
        and not manifest.skipped  # the next run may read what this one could not
    )
    return index if same else None


C = TypeVar("C", bound=Options)


def run(
    name: str,
    config_class: type[C],
    write: Callable[[C], dict[str, BetonIndex]],
    description: str | None,
    arguments: Sequence[str] | None = None,
) -> None:
    """Be the whole command `python -m writers.NAME`.

    Args:
        name: of the writer.
        config_class: its options.
        write: what it does with them.
        description: for `--help`, the writer's docstring.
        arguments: of the command line; None takes this process's.
    """
    config = tyro.cli(config_class, description=description, args=arguments)
    with one_line_errors(f"writers.{name}"):
        written = write(config)
    for split, index in written.items():
        say(f"{split}: {index.num_samples} images, {index.num_classes} classes -> {index.path}")
        for line in _notices(index):
            say(f"  {line}")


def _notices(index: BetonIndex) -> Iterator[str]:
    """Say what a user should know of a beton: classes without images, and what was left out."""
    manifest = index.manifest
    if manifest is None:
        return
    pairs = zip(manifest.class_names, manifest.class_counts, strict=True)
    empty = [name for name, count in pairs if not count]
    if empty:
        more = f" and {len(empty) - 5} more" if len(empty) > 5 else ""
        yield f"no images of {', '.join(empty[:5])}{more}"
    for skipped in manifest.skipped:
        yield f"left out {skipped['name']}: {skipped['error']}"


def check_no_others(out: Path, others: Iterable[str]) -> None:
    """Refuse a folder that holds splits beside which those of this run would not be disjoint.

    Args:
        out: folder of the betons.
        others: the splits that a run with other options may have left there.

    Raises:
        ValueError: there is one of them.
    """
    stale = [split for split in others if (out / f"{split}.beton").exists()]
    if stale:
        raise ValueError(
            f"`out` must not hold betons of another split; got {stale[0]}.beton, whose images may "
            "now be in a split of this run. Delete it, or write to another folder."
        )


def check_class_ids(name: str, *ids: int) -> None:
    """Refuse numbers that are no class ids: each id up to the largest gets a name and a count.

    Args:
        name: of what holds them.
        ids: the least and the largest, or either.

    Raises:
        ValueError: one is negative, or 2**24 or more.
    """
    for each in ids:
        if not 0 <= each < MAX_CLASSES:
            raise ValueError(
                f"`{name}` must hold class ids from 0 to {MAX_CLASSES - 1}; got {each}. "
                "Choose the column or file that numbers the classes from 0."
            )


def say(line: str) -> None:
    """Print a line; of a file name that is no text, the odd bytes are escaped."""
    encoding = sys.stdout.encoding or "utf-8"
    print(line.encode(encoding, "backslashreplace").decode(encoding))


def _check_counts(
    name: str,
    splits: Mapping[str, Sequence[tuple[Any, ...]]],
    class_names: Sequence[str],
    expected: Expected,
) -> None:
    wrong = [
        f"{len(samples)} images in {split} instead of {expected.images[split]}"
        for split, samples in splits.items()
        if len(samples) != expected.images.get(split, len(samples))
    ]
    if len(class_names) != expected.classes:
        wrong.append(f"{len(class_names)} classes instead of {expected.classes}")
    if wrong:
        raise ValueError(
            f"`{name}` must be complete; got {' and '.join(wrong)}. "
            "Get the missing files, or pass --no-check-counts to write what is there."
        )


def _check_labels(split: str, labels: NDArray[np.int64], class_names: Sequence[str]) -> None:
    if not labels.size:
        raise ValueError(f"`{split}` must hold at least one image; got none. Check the dataset.")
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest >= len(class_names):
        raise ValueError(
            f"`{split}` must have labels from 0 to {len(class_names) - 1}, the named classes; "
            f"got labels from {lowest} to {highest}. Check the class names."
        )


def _labels_of(samples: Sequence[tuple[Any, ...]]) -> NDArray[np.int64]:
    labels = getattr(samples, "labels", None)
    if labels is None:
        labels = [sample[1] for sample in samples]
    return np.asarray(labels, dtype=np.int64)


def _shuffled(samples: Sequence[tuple[Any, ...]], seed: int) -> Sequence[tuple[Any, ...]]:
    """Return samples in the random order that they make themselves, if they do."""
    return samples.shuffled(seed) if hasattr(samples, "shuffled") else samples


def _digest(samples: Sequence[tuple[Any, ...]], labels: NDArray[np.int64]) -> str:
    """Hash what is written, so that a run is not continued with another listing."""
    name_of = getattr(samples, "name", None)
    if not callable(name_of):
        name_of = str
    digest = hashlib.sha256(labels.astype("<i8").tobytes())
    for i in range(len(samples)):
        digest.update(os.fsencode(name_of(i)) + b"\0")
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    """Return `value` as JSON can hold it."""
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    return value if isinstance(value, bool | int | float | str | None) else str(value)
