"""The base of all targets whose input is a dataset folder that a writer turns into betons."""

import os
import shutil
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from dp4tl_ffcv import BetonIndex
from tests.campaigns.fuzz.betons import Plain
from tests.campaigns.fuzz.target import FaultError, Sample, Target
from writers.components.common import CountedOptions

Pairs = set[tuple[str, bytes]]
"""Class names and the stored bytes of images."""

NAMES = ("cat", "dog", "owl")


class DatasetTarget(Target):
    """A dataset in the folder `data`, of which one file is attacked."""

    writer: ClassVar[Any]
    options: ClassVar[dict[str, Any]] = {}
    is_checked: ClassVar[bool] = True
    """Whether `pairs_of` knows all that the mutated bytes may give."""

    def use(self, rng: np.random.Generator, folder: Path, sample: Sample, data: bytes) -> str:
        """Write the betons and compare each label and image with the dataset."""
        out = folder / "out"
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        counted = issubclass(self.writer.Config, CountedOptions)
        options = {**self.options, **({"check_counts": False} if counted else {})}
        for key in ("root", "train_shards"):
            if key in self.writer.Config.__dataclass_fields__:
                options.setdefault(key, folder / "data")
        if "train_shards" in options:
            options["train_shards"] = str(options["train_shards"])
        config = self.writer.Config(out=out, num_workers=0, jpeg_index=False, **options)
        try:
            written = self.writer.write(config)
            pairs = {pair for index in written.values() for pair in stored_pairs(index)}
        except BaseException:
            if out.exists() and (left := sorted(each.name for each in out.iterdir())):
                unfinished = [name for name in left if name.startswith(".")]
                if unfinished:
                    raise FaultError("left behind", f"{unfinished}") from None
            raise
        finally:
            shutil.rmtree(out, ignore_errors=True)
            shutil.rmtree(folder / "cache", ignore_errors=True)
        allowed = self.pairs_of(sample, data)
        # A touched image may have become of a kind that is encoded again.
        touched = {name for name, _ in allowed - sample.truth}
        intact = {image for _, image in sample.truth}
        foreign = {
            (name, image)
            for name, image in pairs - allowed
            if image in intact or name not in touched
        }
        if foreign and (self.is_checked or data == sample.data):
            name, image = min(foreign)
            raise FaultError("wrong label or image", f"{name!r} has an image of {len(image)} bytes")
        if pairs == sample.truth:
            return "equal"
        return "read as the bytes say" if self.is_checked else "accepted, not compared"

    def pairs_of(self, sample: Sample, data: bytes) -> Pairs:
        """Return the labelled images that the mutated dataset may give."""
        return set(sample.truth)


def stored_pairs(index: BetonIndex) -> Pairs:
    """Return class name and stored image of each sample of a beton."""
    plain = Plain(index.path.read_bytes())
    names, labels = index.class_names(), index.labels()
    pairs = set()
    for number in range(len(index)):
        payload = plain.payload(number, "image")
        if payload is None:
            raise FaultError("damaged beton written", f"sample {number} has no bytes")
        pairs.add((names[labels[number]], payload))
    return pairs


def tree(files: dict[str, bytes]) -> dict[str, bytes]:
    return {f"data/{name}": data for name, data in files.items()}
