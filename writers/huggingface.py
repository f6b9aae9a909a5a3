"""Write betons from a folder of parquet files, as Hugging Face `datasets` publishes image datasets.

ROOT is a local copy of a dataset's repository, or of the folder of one of its configurations. The
split of a file is told by its name or its folder; validation, valid and dev are written as val:

    data/train-00000-of-00005.parquet      data/validation-00000-of-00001.parquet
    train.parquet                          train/0000.parquet
    README.md                              number of images of each split, names of the classes

Images are a column {bytes, path} or bytes, labels a column of class ids (ClassLabel or integers).
Both, and the class names, are found by what `datasets` notes in each file, else in README.md. This
needs pyarrow, and pyyaml where README.md says anything of that. The identifier of an image is its
row, counted through the files of its split.

Parquet is decompressed by groups of rows, so images are not shuffled one by one: groups are put in
random order, and their images are shuffled within windows of 64 MiB, one of which (or one group, if
that is larger) each process holds in memory.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dp4tl_ffcv import BetonIndex

from .components.common import Expected, Options, run, write_splits
from .components.files import is_hidden
from .components.parquet import ParquetImages, open_parquet

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "validation", "valid", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """What to write."""

    root: Path
    """Folder of the parquet files, which may lie in folders below it."""
    splits: tuple[str, ...] = ()
    """Which to write, such as train val; by default all that are there."""
    image_column: str | None = None
    """By default the one that holds images."""
    label_column: str | None = None
    """By default the one that holds class labels."""


@dataclass(frozen=True)
class Columns:
    """Where images and labels are, and what the classes are called."""

    image: str
    label: str
    names: tuple[str, ...]
    """Empty where nothing says."""


def write(config: Config) -> dict[str, BetonIndex]:
    """Write the betons and return the index of each split."""
    files = files_of(config.root)
    wanted = [SPLITS.get(split, split) for split in config.splits] or sorted(files)
    absent = [split for split in wanted if split not in files]
    if absent:
        raise ValueError(
            f"`splits` must be some of {', '.join(sorted(files))}, those in "
            f"{str(config.root)!r}; got {absent[0]!r}. Choose among them."
        )
    card = _card_of(config.root)
    found = {columns_of(path, card, config) for split in wanted for path in files[split]}
    if len(found) > 1:
        raise ValueError(
            f"`root` must hold one dataset; got files in {str(config.root)!r} that differ in their "
            "columns or class names. Pass the folder of one configuration."
        )
    (columns,) = found
    splits = {
        split: ParquetImages.of(files[split], columns.image, columns.label) for split in wanted
    }
    highest = max((int(s.labels.max()) for s in splits.values() if len(s)), default=-1)
    names = columns.names or tuple(map(str, range(highest + 1)))
    expected = Expected(classes=len(names), images=_counts_of(card))
    return write_splits("huggingface", splits, names, config, expected)


def files_of(root: Path) -> dict[str, list[Path]]:
    """Return the parquet files below `root` by split, in order.

    Raises:
        ValueError: there are none, some of a split are missing, or they are of several
            configurations.
    """
    splits: dict[str, list[Path]] = {}
    for path in sorted(root.rglob("*.parquet")):
        if is_hidden(path.relative_to(root).as_posix()):
            continue
        stem = re.sub(r"-\d{5}-of-\d{5}(-[0-9a-f]+)?$", "", path.stem)
        name = path.parent.name if re.fullmatch(r"\d+", stem) else stem
        splits.setdefault(SPLITS.get(name, name), []).append(path)
    if not splits:
        raise ValueError(
            "`root` must hold parquet files such as data/train-00000-of-00005.parquet; got none "
            f"in {str(root)!r}. Check the path."
        )
    for split, files in splits.items():
        _check_whole(split, files)
    return splits


def _check_whole(split: str, files: Sequence[Path]) -> None:
    folders = sorted({str(path.parent) for path in files})
    if len(folders) > 1:
        raise ValueError(
            f"`root` must hold one configuration of a dataset; got {split} in {folders[0]!r} and "
            f"in {folders[1]!r}. Pass the folder of one."
        )
    parts = [re.search(r"-(\d{5})-of-(\d{5})", path.stem) for path in files]
    found = [part.groups() for part in parts if part]
    wanted = [(f"{n:05}", found[0][1]) for n in range(int(found[0][1]))] if found else []
    if found and (found != wanted or not all(parts)):
        lacking = [f" without {part}" for part, _ in wanted if (part, found[0][1]) not in found]
        raise ValueError(
            f"`{split}` must be whole, with each of {len(wanted)} files once; got {len(files)}"
            f"{lacking[0] if lacking else ''} in {folders[0]!r}. Get the dataset again."
        )


def columns_of(path: Path, card: dict[str, Any], config: Config) -> Columns:
    """Find the columns of images and labels in a file.

    Raises:
        ValueError: there is none, or more than one, and the configuration names none.
    """
    with open_parquet(path) as parquet:
        schema = parquet.schema_arrow
    noted = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = noted.get("info", {}).get("features") or _features_of(card)
    chosen = {}
    for what, kind, usual, given in (
        ("image", "Image", ("image", "img"), config.image_column),
        ("label", "ClassLabel", ("label", "labels"), config.label_column),
    ):
        of_kind = [name for name, each in features.items() if each.get("_type") == kind]
        candidates = [given] if given else of_kind or [n for n in schema.names if n in usual]
        if len(candidates) != 1 or candidates[0] not in schema.names:
            raise ValueError(
                f"`{what}_column` must name the column of {what}s in {str(path)!r}; got "
                f"{' or '.join(candidates) or 'none'} among {', '.join(schema.names)}. "
                f"Pass --{what}-column."
            )
        chosen[what] = candidates[0]
    names = features.get(chosen["label"], {}).get("names") or ()
    return Columns(chosen["image"], chosen["label"], tuple(names))


def _card_of(root: Path) -> dict[str, Any]:
    """Return `dataset_info` at the head of README.md; nothing where it has more than one."""
    path = root / "README.md"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    head = re.match(r"---\n(.*?)\n---", text, flags=re.DOTALL)
    if head is None or "dataset_info:" not in head[1]:
        return {}
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise ValueError(
            f"`pyyaml` must be installed to read {str(path)!r}; got none. Run: pip install pyyaml"
        ) from error
    info = yaml.safe_load(head[1])["dataset_info"]
    info = info[0] if isinstance(info, list) and len(info) == 1 else info
    return info if isinstance(info, dict) else {}


def _features_of(card: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the card's features in the form that files have them."""
    features: dict[str, dict[str, Any]] = {}
    for each in card.get("features", ()):
        kind = each.get("dtype")
        if kind == "image":
            features[each["name"]] = {"_type": "Image"}
        elif isinstance(kind, dict) and "class_label" in kind:
            names = kind["class_label"]["names"]
            if isinstance(names, dict):  # from class id, a text, to name
                names = [names[key] for key in sorted(names, key=int)]
            features[each["name"]] = {"_type": "ClassLabel", "names": names}
    return features


def _counts_of(card: dict[str, Any]) -> dict[str, int]:
    splits = card.get("splits", ())
    return {SPLITS.get(each["name"], each["name"]): int(each["num_examples"]) for each in splits}


if __name__ == "__main__":
    run("huggingface", Config, write, __doc__)
