"""Write betons from a folder of images: `ROOT/CLASS/*.jpg` or `ROOT/SPLIT/CLASS/*.jpg`.

A root whose sub-folders are called train, val and test is taken as already split. Otherwise the
images of each class are split at random by `--val` and `--test`. Classes are numbered in the order
of their names, and every split uses the same numbers.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import tyro
from PIL import Image, ImageOps

from dp4tl_ffcv import BetonIndex, image_fields, one_line_errors, write_beton

SPLITS = ("train", "val", "test")
SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}

Item = tuple[Path, int, int]  # file, class id, number of the image in the listing of its root


@dataclass(frozen=True, kw_only=True)
class Config:
    """What to write."""

    root: Path
    """Folder of class folders, or of train, val and test."""
    out: Path
    """Folder of the betons: train.beton, val.beton, test.beton."""
    val: float = 0.1
    """Share of each class for validation, where the root is not split."""
    test: float = 0.1
    """Share of each class for the test, where the root is not split."""
    seed: int = 0
    """Of the split."""
    max_resolution: int | None = None
    """Longer side in pixels above which images are shrunk."""
    jpeg_quality: int = 90
    """1 to 100."""


@dataclass(frozen=True)
class ImageFiles(Sequence[tuple[Image.Image, int, int]]):
    """Decodes one image when it is asked for."""

    items: list[Item]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, position: int) -> tuple[Image.Image, int, int]:  # type: ignore[override]  # writers ask for one at a time
        path, label, identifier = self.items[position]
        try:
            with Image.open(path) as image:
                return _to_rgb(ImageOps.exif_transpose(image)), label, identifier
        except Exception as error:  # Pillow raises several kinds for damaged and huge images
            raise ValueError(f"`{path}` must be a readable image; got {error}") from error


def write(config: Config) -> dict[str, BetonIndex]:
    """Write the betons and return the index of each split that has images."""
    splits, class_names = list_images(config)
    stale = [s for s in SPLITS if not splits.get(s) and (config.out / f"{s}.beton").exists()]
    if stale:
        raise ValueError(
            f"`out` must not hold betons of another split; got {stale[0]}.beton, whose images may "
            "now be in a split of this run. Delete it, or write to another folder."
        )
    fields = image_fields(jpeg_quality=config.jpeg_quality, max_resolution=config.max_resolution)
    arguments = {"writer": "imagefolder", **{k: str(v) for k, v in asdict(config).items()}}
    return {
        split: write_beton(
            config.out / f"{split}.beton",
            ImageFiles(items),
            fields,
            class_names=class_names,
            written_by={**arguments, "split": split},
        )
        for split, items in splits.items()
        if items
    }


def list_images(config: Config) -> tuple[dict[str, list[Item]], list[str]]:
    """Return the items of each split and the class names."""
    if not config.root.is_dir():
        raise ValueError(f"`root` must be a folder; got {str(config.root)!r}. Check the path.")
    present = [split for split in SPLITS if (config.root / split).is_dir()]
    others = [name for name in _folders(config.root) if name not in SPLITS]
    if present and others:
        raise ValueError(
            f"`root` must hold either splits or classes; got {', '.join(present)} beside "
            f"{others[0]!r} in {str(config.root)!r}. Move the classes into the splits, or rename."
        )
    roots = [config.root / split for split in present] or [config.root]
    class_names = sorted({name for root in roots for name in _folders(root)})
    ids = {name: label for label, name in enumerate(class_names)}
    listing = [
        [
            (path, ids[name])
            for name in _folders(root)
            for path in sorted((root / name).rglob("*"))
            if path.suffix.lower() in SUFFIXES and not _is_hidden(path.relative_to(root))
        ]
        for root in roots
    ]
    numbered = [
        [(path, label, number) for number, (path, label) in enumerate(items)] for items in listing
    ]
    if not any(numbered):
        raise ValueError(
            f"`root` must hold class folders with images; got none in {str(config.root)!r}. "
            f"Known suffixes: {', '.join(sorted(SUFFIXES))}."
        )
    if present:
        return dict(zip(present, numbered, strict=True)), class_names
    return _split(numbered[0], len(class_names), config), class_names


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # 16 bits of grey, which Pillow's convert turns white
        image = Image.fromarray(np.clip(np.asarray(image) // 256, 0, 255).astype(np.uint8))
    return image.convert("RGB")


def _folders(root: Path) -> list[str]:
    return sorted(part.name for part in root.iterdir() if part.is_dir() and part.name[0] != ".")


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _split(items: list[Item], num_classes: int, config: Config) -> dict[str, list[Item]]:
    if not (0 <= config.val < 1 and 0 <= config.test < 1 and config.val + config.test < 1):
        raise ValueError(
            f"`val` and `test` must be shares with a sum below 1; got {config.val} and "
            f"{config.test}. Leave some images for training."
        )
    splits: dict[str, list[Item]] = {split: [] for split in SPLITS}
    rng = np.random.default_rng(config.seed)
    by_class: list[list[Item]] = [[] for _ in range(num_classes)]
    for item in items:
        by_class[item[1]].append(item)
    for members in by_class:
        shuffled = [members[i] for i in rng.permutation(len(members))]
        num_val, num_test = (round(share * len(members)) for share in (config.val, config.test))
        splits["val"] += sorted(shuffled[:num_val])
        splits["test"] += sorted(shuffled[num_val : num_val + num_test])
        splits["train"] += sorted(shuffled[num_val + num_test :])
    return splits


def main() -> None:
    """Write the betons that the command line asks for."""
    config = tyro.cli(Config, description=__doc__)
    with one_line_errors("writers.imagefolder"):
        written = write(config)
    for split, index in written.items():
        print(f"{split}: {index.num_samples} images, {index.num_classes()} classes -> {index.path}")


if __name__ == "__main__":
    main()
