"""Datasets in parquet files, pickles, and lists of splits."""

import io
import json
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
from writers import cifar, coop, huggingface, waterbirds


class Parquets(DatasetTarget):
    name = "parquet: huggingface"
    writer = huggingface
    is_checked = False  # pages have no checksums unless their writer adds them

    def prepare(self, folder: Path) -> list[Sample]:
        features = {
            "image": {"_type": "Image"},
            "label": {"names": list(NAMES), "_type": "ClassLabel"},
        }
        labels = [0, 1, 2, 1]
        images = [{"bytes": numbered_jpeg(n), "path": f"{n}.jpg"} for n in range(len(labels))]
        table = pa.table({"image": images, "label": pa.array(labels)})
        noted = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": noted})
        truth = {(NAMES[label], numbered_jpeg(n)) for n, label in enumerate(labels)}
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
            samples.append(Sample(tree({f"data/{name}": data}), f"data/data/{name}", spans, truth))
        return samples


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
        name = "split_zhou_OxfordPets.json"
        data = json.dumps(rows, indent=1).encode()
        truth = {(NAMES[n % 3], numbered_jpeg(n)) for n in range(9)}
        return [Sample(tree({**files, name: data}), f"data/{name}", truth=truth)]

    def mutate(self, rng: np.random.Generator, sample: Sample, donor: Sample) -> bytes:
        """Mutate the JSON."""
        words = ("train", "val", "../8.jpg", "/etc/hostname", "8.jpg", "3", "owl")
        return mutated_text(rng, sample.data.decode(), words)

    def pairs_of(self, sample: Sample, data: bytes) -> Pairs:
        """Return the pairs that the mutated list names."""
        rows = [row for split in json.loads(data).values() for row in split]
        images = {name.rpartition("/")[2]: content for name, content in sample.files.items()}
        return {(label, images[path.rpartition("/")[2]]) for path, _, label in rows}


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
        sample = Sample(tree({**files, "metadata.csv": data}), "data/metadata.csv", truth=truth)
        return [sample]

    def mutate(self, rng: np.random.Generator, sample: Sample, donor: Sample) -> bytes:
        """Mutate the table."""
        words = ("img_id", "y", "split", "bird/3.jpg", "../bird/3.jpg", "/etc/hostname", "1,2")
        return mutated_text(rng, sample.data.decode(), words)

    def pairs_of(self, sample: Sample, data: bytes) -> Pairs:
        """Any image may have either class: the table has no checksum."""
        images = {image for _, image in sample.truth}
        return {(name, image) for name in waterbirds.CLASS_NAMES for image in images}
