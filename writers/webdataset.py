"""Write betons from WebDataset shards: tar archives in which files of one name make a sample.

Each split is given as a folder of `*.tar`, a glob, or a brace pattern, which is checked for missing
shards: `--train 'shards/imagenet-train-{000000..000146}.tar'`. A sample is the files next to each
other whose paths are the same up to the first dot of the file name: `n01/0007.jpg` and
`n01/0007.cls`. Shards must not be compressed; they are not unpacked.

The class is the content of the `.cls` file, or a field of the `.json` file: an integer, or text.
Integers are class ids, named by `--class-names` or as they are; texts are numbered in the order of
`--class-names` or, without, of the alphabet. The identifier of an image is its position in the
shards of its split, in the order of their names.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from glob import glob
from itertools import groupby
from pathlib import Path
from sys import intern
from typing import Any

from dp4tl_ffcv import BetonIndex
from dp4tl_ffcv.utils import TarImages, TarMembers, list_tar, track

from .components.common import Options, check_class_ids, run, write_splits
from .components.files import IMAGE_SUFFIXES

Label = int | str


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """What to write."""

    train: str | None = None
    """Shards of the training split: a folder, a glob or a brace pattern (in quotes)."""
    val: str | None = None
    """Shards of the validation split."""
    test: str | None = None
    """Shards of the test split."""
    image: tuple[str, ...] = tuple(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES)
    """Extensions that an image may have; each sample must have one of them."""
    label: str = "cls"
    """Extension of the label; what ends in json is read as JSON."""
    json_field: str = "label"
    """The field of the JSON that is the label."""
    class_names: Path | None = None
    """Text file with a class name on each line, in the order of the class ids."""


@dataclass(frozen=True)
class Listing:
    """The images of a split, and the label of each as it is stored."""

    images: TarMembers
    labels: list[Label]


def write(config: Config) -> dict[str, BetonIndex]:
    """Write the betons and return the index of each split."""
    given = {"train": config.train, "val": config.val, "test": config.test}
    patterns = {split: pattern for split, pattern in given.items() if pattern is not None}
    if not patterns:
        raise ValueError(
            "`train`, `val` or `test` must name the shards of a split; got none. "
            "Pass --train 'FOLDER/NAME-{000000..000146}.tar' or the like."
        )
    listings = {
        split: _list(split, shards_of(split, pattern), config)
        for split, pattern in patterns.items()
    }
    ids, class_names = _number(listings, config.class_names)
    splits = {
        split: TarImages(listing.images, [ids[label] for label in listing.labels])
        for split, listing in listings.items()
    }
    return write_splits("webdataset", splits, class_names, config, None)


def shards_of(split: str, pattern: str) -> list[Path]:
    """Return the shards that `pattern` names.

    Raises:
        ValueError: there are none, or one of a brace pattern is missing.
    """
    if Path(pattern).is_dir():
        shards = sorted(Path(pattern).glob("*.tar"))
    elif Path(pattern).is_file():
        shards = [Path(pattern)]
    else:
        names = list(_expand(pattern))
        found = [sorted(glob(name)) if set(name) & set("*?[") else [name] for name in names]  # noqa: PTH207 -- a pattern may be absolute
        shards = [Path(name) for each in found for name in each]
    missing = next((shard for shard in shards if not shard.is_file()), None)
    if not shards or missing is not None:
        raise ValueError(
            f"`{split}` must name tar archives that are there, by a folder, a glob or a brace "
            f"pattern; got {pattern!r}, and there is no {str(missing or pattern)!r}. "
            "Check the path and the range."
        )
    return shards


def _expand(pattern: str) -> Iterator[str]:
    """Yield what a brace pattern stands for: `{08..10}` and `{a,b}`, any number of them."""
    found = re.search(r"\{([^{}]*)\}", pattern)
    if found is None:
        yield pattern
        return
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", found[1])
    if numbers is None:
        each: Iterable[str] = found[1].split(",")
    else:
        first, last = numbers.groups()
        padded = any(end[0] == "0" and end != "0" for end in (first, last))
        digits = max(len(first), len(last)) if padded else 0
        each = (str(n).zfill(digits) for n in range(int(first), int(last) + 1))
    for middle in each:
        yield from _expand(pattern[: found.start()] + middle + pattern[found.end() :])


def _list(split: str, shards: Sequence[Path], config: Config) -> Listing:
    parts, labels = [], []
    steps = track(shards, total=len(shards), description=f"list {split}", unit="shards")
    for shard in steps:
        members = list_tar(shard)
        images = []
        for key, files in _samples_of(members):
            try:
                images.append(_one_of(files, config.image))
                labels.append(_label_of(members.read(_one_of(files, (config.label,))), config))
            except ValueError as error:
                advice = _advice(key, members)
                raise ValueError(
                    f"`{split}` must have an image and a label in each sample; got {error} in "
                    f"{key!r} of {str(shard)!r}{advice}."
                ) from error
        parts.append(members.chosen(images))
    return Listing(TarMembers.joined(parts), labels)


def _samples_of(members: TarMembers) -> Iterator[tuple[str, list[tuple[str, int]]]]:
    """Yield key and files, as (extension, position), of each sample of a shard."""
    names = (re.fullmatch(r"((?:.*/)?[^./]+)\.([^/]+)", name) for name in members.names())
    # Hidden files do not match, nor do those without an extension; __NAME__ is about the shard.
    files = ((m[1], m[2].lower(), i) for i, m in enumerate(names) if m and m[1][:2] != "__")
    for key, group in groupby(files, key=lambda each: each[0]):
        yield key, [(extension, i) for _, extension, i in group]


def _advice(key: str, members: TarMembers) -> str:
    """Say what may be done about a sample that lacks a file."""
    if [each for each, _ in _samples_of(members)].count(key) == 1:
        return ". Name the extensions by --image and --label"
    return (
        ", and more of its files elsewhere in the shard. Pack the files of a sample together: "
        "tar --sort=name -cf SHARD.tar FOLDER"
    )


def _one_of(files: Sequence[tuple[str, int]], extensions: Sequence[str]) -> int:
    found = [i for extension, i in files if extension in extensions]
    if len(found) != 1:
        present = ", ".join(extension for extension, _ in files)
        raise ValueError(f"{len(found)} of {'/'.join(extensions)} among {present}")
    return found[0]


def _label_of(data: bytes, config: Config) -> Label:
    text = data.decode().strip()
    label: Any = int(text) if re.fullmatch(r"-?\d+", text) else intern(text)
    if config.label.endswith("json"):
        value = json.loads(text)
        label = value.get(config.json_field) if isinstance(value, dict) else None
    if isinstance(label, bool) or not isinstance(label, int | str) or label == "":
        raise ValueError(f"the label {label!r}")
    return label


def _number(
    listings: Mapping[str, Listing], file: Path | None
) -> tuple[dict[Label, int], list[str]]:
    """Return the class id of each label, and the class names."""
    labels = {label for listing in listings.values() for label in listing.labels}
    given = [line.strip() for line in file.read_text().splitlines() if line.strip()] if file else []
    numbers = {label for label in labels if isinstance(label, int)}
    texts = {label for label in labels if isinstance(label, str)}
    if numbers and texts:
        raise ValueError(
            f"`label` must be integers or texts throughout; got {min(numbers)} and "
            f"{min(texts)!r}. Mend the shards."
        )
    if numbers:
        check_class_ids("label", min(numbers), max(numbers))
        return {n: n for n in numbers}, given or [str(n) for n in range(max(numbers) + 1)]
    names = given or sorted(texts)
    unnamed = sorted(texts.difference(names))
    if unnamed:
        raise ValueError(
            f"`class_names` must name every class; got labels without a name, {unnamed[0]!r} "
            f"among {len(unnamed)}. Add them to {str(file)!r}."
        )
    return {name: label for label, name in enumerate(names)}, names


if __name__ == "__main__":
    run("webdataset", Config, write, __doc__)
