"""Write betons from WebDataset shards: tar archives in which files that share a name make a sample.

Give each split as a folder of `*.tar`, a glob, or a brace pattern, whose shards must all exist:
`--train-shards 'shards/imagenet-train-{000000..000146}.tar'`. Neighbouring files whose paths are
equal up to the first dot of the file name make a sample, such as `n01/0007.jpg` and `n01/0007.cls`.
Shards must not be compressed, and are not extracted.

The label is the content of the `.cls` file, or a field of the `.json` file: an integer or text.
Integers are class ids. Text labels are numbered in the order of --class-names, or alphabetically.
The identifier of an image is its position in the shards of its split, sorted by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from glob import glob
from itertools import groupby
from pathlib import Path
from sys import intern
from typing import Any

import dp4tl_ffcv
from dp4tl_ffcv import utils
from dp4tl_ffcv.utils import check_int, parse_json

from .components.common import SPLITS, Options, check_class_id, run, write_splits
from .components.files import IMAGE_SUFFIXES

Label = int | str
Listing = tuple["utils.TarMembers", list[Label]]  # images of a split, and labels as stored


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """Options of the writer."""

    train_shards: str | None = None
    """Shards of the training split: a folder, or a glob or brace pattern in quotes."""
    val_shards: str | None = None
    """Shards of the validation split."""
    test_shards: str | None = None
    """Shards of the test split."""
    image: tuple[str, ...] = tuple(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES)
    """Possible extensions of the image. Each sample must have one of them."""
    label: str = "cls"
    """Extension of the label. A file whose extension ends in json is read as JSON."""
    json_field: str = "label"
    """JSON field of the label."""
    class_names: Path | None = None
    """Text file with a class name per line, in the order of the class ids."""


def write(config: Config) -> dict[str, dp4tl_ffcv.BetonIndex]:
    """Write each given split and return its index."""
    patterns = {split: getattr(config, f"{split}_shards") for split in SPLITS}
    listings = {
        split: _list(split, shards_of(split, pattern), config)
        for split, pattern in patterns.items()
        if pattern is not None
    }
    if not listings:
        raise ValueError(
            "Name the shards of at least one split by --train-shards, --val-shards or "
            "--test-shards, for example --train-shards 'FOLDER/NAME-{000000..000146}.tar'."
        )
    ids, class_names = _number(listings, config.class_names)
    splits = {
        split: utils.TarImages(images, [ids[label] for label in labels])
        for split, (images, labels) in listings.items()
    }
    return write_splits("webdataset", splits, class_names, config)


def shards_of(split: str, pattern: str) -> list[Path]:
    """Return the shards that `pattern` names, all of which exist."""
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
            f"--{split}-shards {pattern!r}: there is no {str(missing or pattern)!r}. Name tar "
            "archives by a folder, a glob or a brace pattern."
        )
    return shards


def _expand(pattern: str) -> Iterator[str]:
    """Expand `{08..10}` and `{a,b}`, any number of them, as a shell does."""
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
    for shard in utils.track(shards, total=len(shards), description=f"list {split}", unit="shards"):
        members = utils.list_tar(shard)
        images = []
        for key, files in _samples_of(members):
            try:
                images.append(_one_of(files, config.image))
                labels.append(_label_of(members.read(_one_of(files, (config.label,))), config))
            except ValueError as error:
                advice = "Name the extensions by --image and --label."
                if [each for each, _ in _samples_of(members)].count(key) > 1:
                    advice = (
                        "More of its files are elsewhere in the shard. Pack the files of a sample "
                        "together: tar --sort=name -cf SHARD.tar FOLDER"
                    )
                raise ValueError(f"Sample {key!r} of {shard} has {error}. {advice}") from error
        parts.append(members.chosen(images))
    return utils.TarMembers.joined(parts), labels


def _samples_of(members: utils.TarMembers) -> Iterator[tuple[str, list[tuple[str, int]]]]:
    """Yield key and files, as (extension, position), of each sample of a shard."""
    names = (re.fullmatch(r"((?:.*/)?[^./]+)\.([^/]+)", name) for name in members.names)
    # Hidden files and files without an extension do not match. __NAME__ describes the shard.
    files = ((m[1], m[2].lower(), i) for i, m in enumerate(names) if m and m[1][:2] != "__")
    for key, group in groupby(files, key=lambda each: each[0]):
        yield key, [(extension, i) for _, extension, i in group]


def _one_of(files: Sequence[tuple[str, int]], extensions: Sequence[str]) -> int:
    found = [i for extension, i in files if extension in extensions]
    if len(found) != 1:
        present = ", ".join(extension for extension, _ in files)
        raise ValueError(f"{len(found)} files {'/'.join(extensions)} instead of 1 among {present}")
    return found[0]


def _label_of(data: bytes, config: Config) -> Label:
    text = data.decode().strip()
    label: Any = int(text) if re.fullmatch(r"-?\d+", text) else intern(text)
    if config.label.endswith("json"):
        value = parse_json(text)
        label = value.get(config.json_field) if isinstance(value, dict) else None
    if isinstance(label, bool) or not isinstance(label, int | str) or label == "":
        raise ValueError(f"the label {label!r}, which is neither an integer nor text")
    return label


def _number(
    listings: Mapping[str, Listing], file: Path | None
) -> tuple[dict[Label, int], list[str]]:
    labels = {label for _, stored in listings.values() for label in stored}
    given = _names_in(file) if file else []
    numbers = {label for label in labels if isinstance(label, int)}
    texts = {label for label in labels if isinstance(label, str)}
    if numbers and texts:
        raise ValueError(
            f"The shards mix integer and text labels, such as {min(numbers)} and {min(texts)!r}. "
            "Use one kind of label."
        )
    if numbers:
        check_int("label", min(numbers), at_least=0)
        check_class_id("label", max(numbers), sum(len(each) for _, each in listings.values()))
        return {n: n for n in numbers}, given or [str(n) for n in range(max(numbers) + 1)]
    names = given or sorted(texts)
    unnamed = sorted(texts.difference(names))
    if unnamed:
        raise ValueError(f"{file} lacks {len(unnamed)} class names, such as {unnamed[0]!r}.")
    return {name: label for label, name in enumerate(names)}, names


def _names_in(file: Path) -> list[str]:
    try:
        lines = utils.read_text(file).splitlines()
    except ValueError as error:
        raise ValueError(
            f"--class-names {str(file)!r} is not a text file in UTF-8: {error}. Save it as UTF-8."
        ) from error
    return [line.strip() for line in lines if line.strip()]


if __name__ == "__main__":
    run(__name__)
