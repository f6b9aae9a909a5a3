"""Datasets in tar archives, whose headers are attacked."""

import io
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from tests.campaigns.fuzz.datasets import NAMES, DatasetTarget, Pairs, tree
from tests.campaigns.fuzz.mutate import mutated
from tests.campaigns.fuzz.target import Sample
from tests.support.files import numbered_jpeg, tar_of
from writers import imagenet, webdataset

_SIZES = (b"00000000000", b"77777777777", b"-0000000001", b"\x80" + b"\xff" * 10, b"\xff" * 11,
          b"00000001000", b"           ", b"0x10", b"8", b"00000000001")  # fmt: skip


class WebDatasets(DatasetTarget):
    name = "tar: webdataset"
    writer = webdataset

    def prepare(self, folder: Path) -> list[Sample]:
        files: dict[str, bytes] = {}
        for number in range(6):
            files[f"{number:04}.jpg"] = numbered_jpeg(number)
            files[f"{number:04}.cls"] = NAMES[number % 3].encode()
        samples = []
        for options in ({}, {"format": tarfile.PAX_FORMAT}, {"format": tarfile.GNU_FORMAT}):
            data = tar_of(files, **options)
            samples.append(
                Sample(tree({"a.tar": data}), "data/a.tar", _tar_spans(data), _pairs_in_tar(data))
            )
        return samples

    def mutate(self, rng: np.random.Generator, sample: Sample, donor: Sample) -> bytes:
        """Mutate the archive as bytes or its headers, with fitting checksums."""
        return mutated_tar(rng, sample, donor, self.paths_outside("data"))

    def pairs_of(self, sample: Sample, data: bytes) -> Pairs:
        """Return what Python's own reader of archives finds, and the intact images."""
        return _pairs_in_tar(data) | sample.truth


class ImageNetTars(DatasetTarget):
    name = "tar: imagenet"
    writer = imagenet
    is_checked = False  # any bytes of the archive may become an image, and names are labels
    options: ClassVar[dict[str, Any]] = {"splits": ("train",)}

    def prepare(self, folder: Path) -> list[Sample]:
        wnids = ("n01440764", "n02012849", "n03126707")
        inner = {
            f"{wnid}.tar": tar_of(
                {f"{wnid}_{n}.JPEG": numbered_jpeg(10 * at + n) for n in range(2)}
            )
            for at, wnid in enumerate(wnids)
        }
        data = tar_of(inner)
        truth = {
            (wnid, numbered_jpeg(10 * at + n)) for at, wnid in enumerate(wnids) for n in range(2)
        }
        spans = _tar_spans(data)
        for member, _ in list(spans):
            spans += [(member + 512 + at, size) for at, size in _tar_spans(data[member + 512 :])]
        files = tree({"ILSVRC2012_img_train.tar": data})
        return [Sample(files, "data/ILSVRC2012_img_train.tar", spans, truth)]

    def mutate(self, rng: np.random.Generator, sample: Sample, donor: Sample) -> bytes:
        """Mutate the headers of both levels, or bytes."""
        return mutated_tar(rng, sample, donor, self.paths_outside("data"))


def mutated_tar(
    rng: np.random.Generator, sample: Sample, donor: Sample, outside: Sequence[str]
) -> bytes:
    """Return an archive with damaged headers whose checksums fit, or damaged bytes.

    Some members are named like the files `outside`, or are links to them.
    """
    if rng.random() < 0.3 or not sample.spans:
        return mutated(rng, sample.data, (), donor.data)
    data = bytearray(sample.data)
    for _ in range(1 + int(rng.integers(3))):
        at = sample.spans[int(rng.integers(len(sample.spans)))][0]
        header = data[at : at + 512]
        how = int(rng.integers(5))
        elsewhere = os.fsencode(outside[int(rng.integers(len(outside)))])
        if how == 0:
            size = _SIZES[int(rng.integers(len(_SIZES)))]
            header[124:136] = size.ljust(12, b"\0")
        elif how == 1:
            header[156] = int(rng.choice(list(b"0123456789xgLKSVN\0\xff")))
        elif how == 2:
            names = (
                b"../../x.jpg",
                elsewhere,
                b"\xff\xfe.jpg",
                b"a" * 99,
                b"0000.jpg",
                b"",
            )
            header[:100] = names[int(rng.integers(len(names)))].ljust(100, b"\0")
        elif how == 3:
            header[156] = int(rng.choice(list(b"12")))  # a hard or a symbolic link
            header[157:257] = elsewhere.ljust(100, b"\0")
        else:
            header = bytearray(mutated(rng, bytes(header))[:512].ljust(512, b"\0"))
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % (sum(header) & 0o777777)
        data[at : at + 512] = header
    return bytes(data)


def _tar_spans(data: bytes) -> list[tuple[int, int]]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [(member.offset, 512) for member in tar]


def _pairs_in_tar(data: bytes) -> Pairs:
    contents: dict[str, list[bytes]] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            for member in tar:
                if member.isreg():
                    stream = tar.extractfile(member)
                    contents.setdefault(member.name, []).append(stream.read() if stream else b"")
    except (tarfile.TarError, ValueError, OSError, EOFError):
        pass
    pairs = set()
    for name, images in contents.items():
        key, dot, kind = name.rpartition(".")
        if dot and kind.lower() in ("jpg", "jpeg", "png"):
            for label in contents.get(f"{key}.cls", []):
                pairs |= {(label.decode("utf-8", "replace").strip(), image) for image in images}
    return pairs
