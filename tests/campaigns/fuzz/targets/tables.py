"""Datasets in parquet files, pickles, and lists of splits."""

import io
import json
import os
import posixpath
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.campaigns.fuzz.datasets import NAMES, DatasetTarget, Pairs, tree
from tests.campaigns.fuzz.mutate import mutated_text
from tests.campaigns.fuzz.target import Sample
from tests.campaigns.fuzz.targets.checkpoints import mutated_pickle
from tests.support.files import numbered_jpeg
from tests.writers.support import python2
from writers import cifar, coop, huggingface, torchvision, waterbirds

_LABELS = (0, 1, 2, 1)
_OUTSIDE = 0.05  # share of the cases that name an image outside of the dataset


class Parquets(DatasetTarget):
    name = "parquet: huggingface"
    writer = huggingface
    is_checked = False  # pages have no checksums unless their writer adds them

    def prepare(self, folder: Path) -> list[Sample]:
        table = self._table([{"bytes": numbered_jpeg(n), "path": f"{n}.jpg"} for n in range(4)])
        truth = {(NAMES[label], numbered_jpeg(n)) for n, label in enumerate(_LABELS)}
        samples = []
        for options in (
            {},
            {"compression": "none", "use_dictionary": False, "write_page_checksum": True},
        ):
            stream = io.BytesIO()
            pq.write_table(table, stream, row_group_size=2, **options)
            data, name = stream.getvalue(), "train-00000-of-00001.parquet"
            footer = int.from_bytes(data[-8:-4], "little")
            spans = [(len(data) - 8, 4)] + [(len(data) - 8 - at, 1) for at in range(1, footer)]
            files, links = tree({f"data/{name}": data}), self.links_outside("data/data")
            samples.append(Sample(files, f"data/data/{name}", spans, truth, links))
        return samples

    def mutate(self, rng: np.random.Generator, sample: Sample, donor: Sample) -> bytes:
        """Mutate the bytes, or let a row name an image outside."""
        if rng.random() >= _OUTSIDE:
            return super().mutate(rng, sample, donor)
        images = [{"bytes": numbered_jpeg(n), "path": None} for n in range(3)]
        outside = self.name_outside(rng, "data/data")
        stream = io.BytesIO()
        pq.write_table(self._table([*images, {"bytes": None, "path": outside}]), stream)
        return stream.getvalue()

    @staticmethod
    def _table(images: list[dict[str, Any]]) -> pa.Table:
        kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
        label = {"names": list(NAMES), "_type": "ClassLabel"}
        features = {"image": {"_type": "Image"}, "label": label}
        table = pa.table({"image": pa.array(images, kind), "label": pa.array(_LABELS)})
        noted = json.dumps({"info": {"features": features}})
        return table.replace_schema_metadata({"huggingface": noted})


class CifarPickles(DatasetTarget):
    name = "pickle: cifar"
    writer = cifar
    is_checked = False  # labels and pixels in a pickle have no checksum
    options: ClassVar[dict[str, Any]] = {"name": "cifar10"}

    def prepare(self, folder: Path) -> list[Sample]:
        rng = np.random.default_rng(0)
        version = cifar.DATASETS["cifar10"].python
        names = [f"thing_{number}" for number in range(10)]
        files, truth = {}, set()
        for name in (*version.train, version.test):
            images = rng.integers(0, 256, (2, 3072), dtype=np.uint8)
            labels = rng.integers(0, 10, 2).tolist()
            content = {b"labels": labels, b"data": images, b"batch_label": b"a batch"}
            files[f"{version.folder}/{name}"] = python2(content)
            for label, planes in zip(labels, images, strict=True):
                pixels = planes.reshape(3, 32, 32).transpose(1, 2, 0)
                truth.add((names[label], pixels.tobytes()))
        content = {b"label_names": [each.encode() for each in names], b"num_vis": 3072}
        files[f"{version.folder}/{version.names}"] = python2(content)
        attacked = [f"data/{version.folder}/{name}" for name in ("data_batch_1", version.names)]
        return [Sample(tree(files), name, truth=truth) for name in attacked]

    def mutate(self, rng: np.random.Generator, sample: Sample, donor: Sample) -> bytes:
        """Mutate opcodes."""
        return mutated_pickle(rng, sample.data)


class SplitLists(DatasetTarget):
    name = "list of a split: coop"
    writer = coop
    options: ClassVar[dict[str, Any]] = {"name": "oxford_pets"}

    def prepare(self, folder: Path) -> list[Sample]:
        rows = {
            split: [[f"{n}.jpg", n % 3, NAMES[n % 3]] for n in range(first, first + 3)]
            for split, first in (("train", 0), ("val", 3), ("test", 6))
        }
        files = {f"images/{n}.jpg": numbered_jpeg(n) for n in range(9)}
        links = self.links_outside("data/images")
        name = "split_zhou_OxfordPets.json"
        data = json.dumps(rows, indent=1).encode()
        truth = {(NAMES[n % 3], numbered_jpeg(n)) for n in range(9)}
        return [Sample(tree({**files, name: data}), f"data/{name}", truth=truth, links=links)]

    def mutate(self, rng: np.random.Generator, sample: Sample, donor: Sample) -> bytes:
        """Mutate the JSON, or name an image outside."""
        if rng.random() < _OUTSIDE:
            rows = json.loads(sample.data)
            rows["train"][0][0] = self.name_outside(rng, "data/images")
            return json.dumps(rows).encode()
        words = ("train", "val", "../8.jpg", "/etc/hostname", "8.jpg", "3", "owl")
        return mutated_text(rng, sample.data.decode(), words)

    def pairs_of(self, sample: Sample, data: bytes) -> Pairs:
        """Return the pairs that the mutated list names."""
        rows = [row for split in json.loads(data).values() for row in split]
        named = [(posixpath.normpath(f"data/images/{path}"), label) for path, _, label in rows]
        return {(label, sample.files[path]) for path, label in named if path in sample.files}


class MetadataTables(DatasetTarget):
    name = "table of a split: waterbirds"
    writer = waterbirds

    def prepare(self, folder: Path) -> list[Sample]:
        lines = ["img_id,img_filename,y,split,place"]
        lines += [f"{n},bird/{n}.jpg,{n % 2},{n // 2 % 3},0" for n in range(9)]
        files = {f"bird/{n}.jpg": numbered_jpeg(n) for n in range(9)}
        data = ("\n".join(lines) + "\n").encode()
        names = waterbirds.CLASS_NAMES
        truth = {(names[n % 2], numbered_jpeg(n)) for n in range(9)}
        files = tree({**files, "metadata.csv": data})
        links = self.links_outside("data/bird")
        return [Sample(files, "data/metadata.csv", truth=truth, links=links)]

    def mutate(self, rng: np.random.Generator, sample: Sample, donor: Sample) -> bytes:
        """Mutate the table, or name an image outside."""
        if rng.random() < _OUTSIDE:
            name = posixpath.join("bird", self.name_outside(rng, "data/bird"))
            return sample.data.replace(b"bird/4.jpg", os.fsencode(name))
        words = ("img_id", "y", "split", "bird/3.jpg", "../bird/3.jpg", "/etc/hostname", "1,2")
        return mutated_text(rng, sample.data.decode(), words)

    def pairs_of(self, sample: Sample, data: bytes) -> Pairs:
        """Any image may have either class: the table has no checksum."""
        images = {image for _, image in sample.truth}
        return {(name, image) for name in waterbirds.CLASS_NAMES for image in images}


class TorchvisionLists(DatasetTarget):
    """A list that torchvision reads: our writer gets the paths that torchvision makes of it."""

    name = "list of a split: torchvision"
    writer = torchvision
    options: ClassVar[dict[str, Any]] = {"name": "FGVCAircraft", "splits": ("train",)}
    folder: ClassVar[str] = "fgvc-aircraft-2013b/data"

    def prepare(self, folder: Path) -> list[Sample]:
        files = {f"{self.folder}/images/{n}.jpg": numbered_jpeg(n) for n in range(6)}
        files[f"{self.folder}/variants.txt"] = "".join(f"{name}\n" for name in NAMES).encode()
        attacked = f"{self.folder}/images_variant_train.txt"
        files[attacked] = "".join(f"{n} {NAMES[n % 3]}\n" for n in range(6)).encode()
        truth = {(NAMES[n % 3], numbered_jpeg(n)) for n in range(6)}
        return [Sample(tree(files), f"data/{attacked}", truth=truth)]

    def mutate(self, rng: np.random.Generator, sample: Sample, donor: Sample) -> bytes:
        """Mutate the list, or name an image outside. torchvision adds `.jpg` to each name."""
        relative, absolute = self.paths_outside(f"data/{self.folder}/images")
        if rng.random() < _OUTSIDE:
            name = (relative, absolute)[int(rng.integers(2))]
            return sample.data.replace(b"2 ", os.fsencode(f"{name.removesuffix('.jpg')} "))
        words = (*NAMES, "3", "../images/4", absolute.removesuffix(".jpg"))
        return mutated_text(rng, sample.data.decode(), words)

    def pairs_of(self, sample: Sample, data: bytes) -> Pairs:
        """Any image may have any class: the list has no checksum."""
        return {(name, image) for name in NAMES for _, image in sample.truth}
