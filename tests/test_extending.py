"""A method, an order, a cache, a writer and a recipe are added by one file each.

A copy of the repository with the new files is used from the command line.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dp4tl_ffcv import BetonIndex, Scores

ROOT = Path(__file__).resolve().parent.parent

METHOD = '''
"""Class sizes: the number of samples of each class."""

from pathlib import Path

from ...beton import BetonIndex
from ..scores import Scores
from . import Method


def class_sizes(beton):
    """Score classes by their sizes.

    Args:
        beton: source beton.
    """
    return Scores(scores=BetonIndex.of(beton).class_counts(), method="class_sizes")


METHOD = Method(function=class_sizes, flags={"beton": Path}, units=("class",))
'''
ORDER = '''def reverse_order(ids, *, seed=0, epoch=0, rank=0, world_size=1):
    """Return this rank's share of the ids, last first."""
    print("order: reverse")
    return ids[::-1][rank::world_size]


'''
CACHE = '''
"""The cache `extents`, which says that it was used."""

from .extents import Cache as ExtentsCache


class Cache(ExtentsCache):
    def start(self, *args):
        print("cache: talkative")
        return super().start(*args)
'''
WRITER = '''
"""Write a beton of grey squares."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dp4tl_ffcv import image_fields, write_beton

from .components.common import run


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options."""

    out: Path
    """Folder of the beton."""


def write(config):
    """Write train and return its index."""
    labels = [0] * 4 + [1] * 8
    samples = [(np.full((16, 16, 3), 20 * i, np.uint8), label, i) for i, label in enumerate(labels)]
    path = config.out / "train.beton"
    return {"train": write_beton(path, samples, image_fields(), class_names=["few", "many"])}


if __name__ == "__main__":
    run(__name__)
'''
RECIPE = '''
"""Train nothing, but count samples."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from dp4tl_ffcv import BetonIndex


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options."""

    train: Path
    """Beton."""


if __name__ == "__main__":
    config = tyro.cli(Config, description=__doc__)
    print(len(BetonIndex.open(config.train)), "samples")
'''
FILES = {
    "dp4tl_ffcv/scoring/methods/class_sizes.py": METHOD,
    "dp4tl_ffcv/loading/orders.py": ORDER,
    "dp4tl_ffcv/loading/caches/talkative.py": CACHE,
    "writers/grey_squares.py": WRITER,
    "train/count_samples.py": RECIPE,
}


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with the new files. Compiled code is copied too, to save time."""
    root = tmp_path_factory.mktemp("copy")
    for folder in ("dp4tl_ffcv", "train", "writers"):
        shutil.copytree(ROOT / folder, root / folder)
    for folder in ("train", "writers"):  # where the installed package has them
        (root / "dp4tl_ffcv" / folder).symlink_to(root / folder)
    for name, text in FILES.items():
        path = root / name
        path.write_text((path.read_text() if path.exists() else "") + text)  # an order is appended
    return root


COMMANDS = {
    "writers": "write --help",
    "writer": "write grey-squares --out betons",
    "methods": "score --help",
    "method": "score class-sizes --beton betons/train.beton --out sizes.npz",
    "recipes": "--help",
    "recipe": "count-samples --train betons/train.beton",
    "order and cache": "pretrain --train betons/train.beton --run run --arch resnet8_w16 "
    "--epochs 1 --resolution 16 --batch-size 4 --lr 0.1 --num-workers 1 --order reverse "
    "--cache talkative",
}
# One process runs all commands, because each process would import torch again.
CODE = """
import sys
from dp4tl_ffcv.cli import main
for line in sys.stdin:
    print("=== next command", flush=True)
    try:
        main(line.split())
    except SystemExit as error:
        assert not error.code, line
"""


@pytest.fixture(scope="module")
def shown(copy: Path) -> dict[str, str]:
    """The output of each command."""
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy)},
        input="\n".join(COMMANDS.values()),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return dict(zip(COMMANDS, done.stdout.split("=== next command")[1:], strict=True))


def test_each_new_file_is_found_and_used(copy: Path, shown: dict[str, str]) -> None:
    assert "grey-squares" in shown["writers"]
    assert BetonIndex.open(copy / "betons/train.beton").class_counts().tolist() == [4, 8]
    assert "class-sizes" in shown["methods"]
    scores = Scores.load(copy / "sizes.npz")
    assert (scores.method, scores.scores.tolist()) == ("class_sizes", [4, 8])
    assert "count-samples" in shown["recipes"]
    assert "12 samples" in shown["recipe"]
    assert "order: reverse" in shown["order and cache"]
    assert "cache: talkative" in shown["order and cache"]
