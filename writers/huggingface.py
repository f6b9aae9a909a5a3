"""Write betons from parquet files of an image dataset, as Hugging Face `datasets` publishes them.

ROOT (--root) is a local copy of a dataset's repository, or of one configuration's folder. The name
of a file or of its folder gives the split; validation, valid and dev are written as val:

    data/train-00000-of-00005.parquet      data/validation-00000-of-00001.parquet
    train.parquet                          train/0000.parquet
    README.md                              numbers of images per split, class names

The image column holds {bytes, path} or bytes. The label column holds class ids (ClassLabel or
integers). The names of the columns and of the classes come from the metadata in each file, or else
from README.md. This needs pyarrow. The identifier of an image is its row, counted through the
files of its split.

Parquet is decompressed by groups of rows, so the order of samples is not fully random: groups are
in random order, and images are shuffled within windows of 64 MiB (at least one group). Each worker
process holds one window in memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dp4tl_ffcv
from dp4tl_ffcv.utils import check_choice, open_file, parse_json, parse_yaml

from .components.common import CountedOptions, run, say, write_splits
from .components.files import is_hidden, split_of

_LARGEST_CARD = 1 << 20  # bytes of README.md that are read
# Errors for descriptions that are no YAML or JSON, or whose values have other types than expected.
_FAULTS = (ValueError, KeyError, TypeError, AttributeError, RecursionError)


@dataclass(frozen=True, kw_only=True)
class Config(CountedOptions):
    """Options of the writer."""

    root: Path
    """Folder of the parquet files, at any depth."""
    splits: tuple[str, ...] = ()
    """Splits to write, such as train val. Without --splits: all splits."""
    image_column: str | None = None
    """Column of the images, if the files have several."""
    label_column: str | None = None
    """Column of the labels, if the files have several."""


def write(config: Config) -> dict[str, dp4tl_ffcv.BetonIndex]:
    """Write the chosen splits and return the index of each."""
    from .components.parquet import ParquetImages

    files = files_of(config.root)
    chosen = [split_of(split) or split for split in config.splits]
    wanted = [check_choice("splits", split, sorted(files)) for split in chosen] or sorted(files)
    card = _card_of(config.root)
    found = {columns_of(path, card, config) for split in wanted for path in files[split]}
    if card.fault:  # and it was not needed
        say(f"ignored the description of the dataset in README.md, which is damaged ({card.fault})")
    if len(found) > 1:
        raise ValueError(
            f"Files in {str(config.root)!r} have different columns or class names. "
            "Pass the folder of one configuration as --root."
        )
    ((image, label, names),) = found
    splits = {split: ParquetImages.of(config.root, files[split], image, label) for split in wanted}
    highest = max((int(s.labels.max()) for s in splits.values() if len(s)), default=-1)
    names = names or tuple(map(str, range(highest + 1)))
    return write_splits("huggingface", splits, names, config, (len(names), card.counts))


def files_of(root: Path) -> dict[str, list[Path]]:
    """Return the parquet files below `root` by split, in order."""
    splits: dict[str, list[Path]] = {}
    names: dict[str, str] = {}
    for path in sorted(root.rglob("*.parquet")):
        if is_hidden(path.relative_to(root).as_posix()) or not path.is_file():
            continue
        stem = re.sub(r"-\d{5}-of-\d{5}(-[0-9a-f]+)?$", "", path.stem)
        name = path.parent.name if re.fullmatch(r"\d+", stem) else stem
        split = split_of(name) or name
        if names.setdefault(split, name) != name:
            raise ValueError(
                f"{str(root)!r} has two names for the split {split}: {names[split]!r} and "
                f"{name!r}. Move the files of one of them out of --root."
            )
        splits.setdefault(split, []).append(path)
    if not splits:
        raise ValueError(
            f"No parquet files in {str(root)!r}. --root must hold files such as "
            "data/train-00000-of-00005.parquet."
        )
    for split, files in splits.items():
        _check_complete(split, files)
    return splits


def _check_complete(split: str, files: Sequence[Path]) -> None:
    folders = sorted({str(path.parent) for path in files})
    if len(folders) > 1:
        raise ValueError(
            f"The split {split} is in {folders[0]!r} and in {folders[1]!r}. "
            "Pass the folder of one configuration as --root."
        )
    parts = [re.search(r"-(\d{5})-of-(\d{5})", path.stem) for path in files]
    found = [part.groups() for part in parts if part]
    wanted = [(f"{n:05}", found[0][1]) for n in range(int(found[0][1]))] if found else []
    if found and (found != wanted or not all(parts)):
        missing = [f"; {part} is missing" for part, total in wanted if (part, total) not in found]
        raise ValueError(
            f"The split {split} in {folders[0]!r} has {len(files)} files instead of "
            f"{len(wanted)} numbered ones{''.join(missing[:1])}. Download the dataset again."
        )


@dataclass(frozen=True)
class _Card:
    """The description of a dataset in README.md, empty if it has none."""

    features: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Columns of images and class ids, as parquet files describe them."""
    counts: dict[str, int] = field(default_factory=dict)
    """Images by split."""
    fault: str = ""
    """Why it cannot be read."""


def columns_of(path: Path, card: _Card, config: Config) -> tuple[str, str, tuple[str, ...]]:
    """Return the columns of images and labels in a file, and the class names, () if unknown."""
    from .components.parquet import open_parquet

    with open_parquet(path) as parquet:
        schema = parquet.schema_arrow
    with _described_in(path):
        metadata = parse_json((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = dict(metadata.get("info", {}).get("features") or {})
    if not features and card.fault:
        raise _damaged(config.root / "README.md", card.fault)
    features = features or card.features
    chosen = {}
    for what, kind, usual, given in (
        ("image", "Image", ("image", "img"), config.image_column),
        ("label", "ClassLabel", ("label", "labels"), config.label_column),
    ):
        with _described_in(path):
            of_kind = [name for name, each in features.items() if each.get("_type") == kind]
        candidates = [given] if given else of_kind or [n for n in schema.names if n in usual]
        if len(candidates) != 1 or candidates[0] not in schema.names:
            raise ValueError(
                f"Which column of {path} has the {what}s? Pass --{what}-column. "
                f"Candidates: {', '.join(candidates) or 'none'}; "
                f"columns of the file: {', '.join(schema.names)}."
            )
        chosen[what] = candidates[0]
    with _described_in(path):
        names = tuple(map(str, features.get(chosen["label"], {}).get("names") or ()))
    return chosen["image"], chosen["label"], names


def _card_of(root: Path) -> _Card:
    """Read README.md. It is empty for us unless it describes exactly one configuration."""
    path = root / "README.md"
    if not path.is_file():
        return _Card()
    with open_file(path) as stream:
        content = stream.read(_LARGEST_CARD)
    try:
        info = _info_in(content)
        return _Card(_features_of(info), _counts_of(info))
    except _FAULTS as error:
        return _Card(fault=" ".join(str(error).split()))  # on one line


def _info_in(card: bytes) -> dict[str, Any]:
    """Return `dataset_info` of the YAML between the lines `---` at the start of README.md."""
    text = card.decode(errors="replace")
    head = re.match(r"---\r?\n(.*?)\n---", text, flags=re.DOTALL)
    if head is None and text.startswith("---") and len(card) == _LARGEST_CARD:
        raise ValueError(f"its YAML has more than {_LARGEST_CARD >> 20} MiB")
    if head is None or "dataset_info:" not in head[1]:
        return {}
    info = parse_yaml(head[1])["dataset_info"]
    info = info[0] if isinstance(info, list) and len(info) == 1 else info
    return info if isinstance(info, dict) else {}


@contextmanager
def _described_in(path: Path) -> Iterator[None]:
    """Raise ValueError where the description of a dataset in `path` is not as expected."""
    try:
        yield
    except _FAULTS as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, why: object) -> ValueError:
    return ValueError(
        f"The description of the dataset in {path} is damaged ({why}). Download it again, or "
        "delete README.md if that is the file."
    )


def _features_of(card: dict[str, Any]) -> dict[str, dict[str, Any]]:
    features: dict[str, dict[str, Any]] = {}
    for each in card.get("features", ()):
        kind = each.get("dtype")
        if kind == "image":
            features[each["name"]] = {"_type": "Image"}
        elif isinstance(kind, dict) and "class_label" in kind:
            names = kind["class_label"]["names"]
            if isinstance(names, dict):  # by class id, which is a string
                names = [names[key] for key in sorted(names, key=int)]
            features[each["name"]] = {"_type": "ClassLabel", "names": names}
    return features


def _counts_of(card: dict[str, Any]) -> dict[str, int]:
    splits = card.get("splits", ())
    return {split_of(each["name"]) or each["name"]: int(each["num_examples"]) for each in splits}


if __name__ == "__main__":
    run(__name__)
