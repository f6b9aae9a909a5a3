"""Datasets that writers read: images, tars, parquet, pickles, lists of splits."""

import io
import json
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from dp4tl_ffcv import BetonIndex
from tests.campaigns.fuzz.betons import Plain
from tests.campaigns.fuzz.mutate import mutated, mutated_text
from tests.campaigns.fuzz.target import FaultError, Sample, Target
from tests.campaigns.fuzz.targets.checkpoints import mutated_pickle
from tests.support.files import numbered_jpeg, tar_of
from tests.support.images import as_file, picture
from tests.writers.support import python2
from writers import cifar, coop, huggingface, imagefolder, imagenet, waterbirds, webdataset
from writers.components.common import CountedOptions

Pairs = set[tuple[str, bytes]]
"""Class names and the stored bytes of images."""

_NAMES = ("cat", "dog", "owl")


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
        for key in ("root", "train"):
            if key in self.writer.Config.__dataclass_fields__:
                options.setdefault(key, folder / "data")
        if "train" in options:
            options["train"] = str(options["train"])
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
        return "equal" if pairs == sample.truth else "read as the bytes say"

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


def _tree(files: dict[str, bytes]) -> dict[str, bytes]:
    return {f"data/{name}": data for name, data in files.items()}


class ImageFiles(DatasetTarget):
    """A folder of images in several formats and modes, one of which is attacked."""

    name = "image file"
    writer = imagefolder

    def prepare(self, folder: Path) -> list[Sample]:
        image = picture(12, 18, 3)
        grey, alpha = image[:, :, 0], np.dstack([image, image[:, :, 0]])
        palette = Image.fromarray(image).convert("P")
        attacked = {
            "a.png": as_file(image, "PNG"), "b.png": as_file(grey, "PNG"),
            "c.png": as_file(alpha, "PNG"), "d.png": as_file(palette, "PNG"),
            "e.png": as_file(Image.fromarray(grey.astype(np.uint16) * 257), "PNG"),
            "f.jpg": as_file(image, "JPEG", quality=90), "g.jpg": as_file(grey, "JPEG"),
            "h.jpg": as_file(image, "JPEG", progressive=True),
            "i.webp": as_file(image, "WEBP", lossless=True), "j.bmp": as_file(image, "BMP"),
            "k.tif": as_file(image, "TIFF"),
            "l.tif": as_file(image, "TIFF", compression="tiff_lzw"),
            "m.ppm": as_file(image, "PPM"),
            "n.jpg": as_file(Image.fromarray(image).convert("CMYK"), "JPEG"),
        }  # fmt: skip
        others = {"cat/1.jpg": numbered_jpeg(1), "dog/2.jpg": numbered_jpeg(2)}
        return [
            Sample(_tree({**others, f"cat/{name}": data}), f"data/cat/{name}", truth=data)
            for name, data in attacked.items()
        ]

    def pairs_of(self, sample: Sample, data: bytes) -> Pairs:
        """Not used: images are encoded again."""
        raise NotImplementedError

    def use(self, rng: np.random.Generator, folder: Path, sample: Sample, data: bytes) -> str:
        """Write the images as pixels. The attacked one must be as its format's checks allow."""
        out = folder / "out"
        try:
            config = imagefolder.Config(
                out=out, root=folder / "data", num_workers=0, mode="raw", shuffle=False
            )
            written = imagefolder.write(config)
            pairs = stored_pairs(written["train"])
        finally:
            shutil.rmtree(out, ignore_errors=True)
        for name, label in (("cat/1.jpg", "cat"), ("dog/2.jpg", "dog")):
            pixels = np.asarray(Image.open(io.BytesIO(sample.files[f"data/{name}"])))
            if (label, pixels.tobytes()) not in pairs:
                raise FaultError("untouched value differs", name)
        # A PNG has checksums: its pixels are those of the intact file, or it is refused.
        if sample.attacked.endswith(".png"):
            return self._check_png(sample, data, pairs)
        return "decoded"

    @staticmethod
    def _check_png(sample: Sample, data: bytes, pairs: Pairs) -> str:
        image = Image.open(io.BytesIO(sample.data))
        if image.mode.startswith("I"):
            return "decoded"
        size = len(image.convert("RGB").tobytes())
        wanted = image.convert("RGB").tobytes()
        if data != sample.data and ("cat", wanted) not in pairs and len(pairs) == 3:
            found = [pixels for _, pixels in pairs if len(pixels) == size]
            if (
                found
                and _idat(data) == _idat(sample.data)
                and _header(data) == _header(sample.data)
            ):
                return "other colours"  # a palette or gamma of its own
            raise FaultError("damaged image written", sample.attacked)
        return "equal"


def _header(data: bytes) -> bytes:
    return data[:33]


def _idat(data: bytes) -> bytes:
    start = data.find(b"IDAT")
    return data[start - 4 : data.rfind(b"IEND")]


class WebDatasets(DatasetTarget):
    name = "tar: webdataset"
    writer = webdataset

    def prepare(self, folder: Path) -> list[Sample]:
        files: dict[str, bytes] = {}
        for number in range(6):
            files[f"{number:04}.jpg"] = numbered_jpeg(number)
            files[f"{number:04}.cls"] = _NAMES[number % 3].encode()
        samples = []
        for options in ({}, {"format": tarfile.PAX_FORMAT}, {"format": tarfile.GNU_FORMAT}):
            data = tar_of(files, **options)
            samples.append(
                Sample(_tree({"a.tar": data}), "data/a.tar", _tar_spans(data), _pairs_in_tar(data))
            )
        return samples

    def mutate(self, rng: np.random.Generator, sample: Sample, donor: Sample) -> bytes:
        """Mutate the archive as bytes or its headers, with fitting checksums."""
        return mutated_tar(rng, sample, donor)

    def pairs_of(self, sample: Sample, data: bytes) -> Pairs:
        """Return what Python's own reader of archives finds, and the intact images."""
        return _pairs_in_tar(data) | sample.truth


def _tar_spans(data: bytes) -> list[tuple[int, int]]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [(member.offset, 512) for member in tar]


_SIZES = (b"00000000000", b"77777777777", b"-0000000001", b"\x80" + b"\xff" * 10, b"\xff" * 11,
          b"00000001000", b"           ", b"0x10", b"8", b"00000000001")  # fmt: skip


def mutated_tar(rng: np.random.Generator, sample: Sample, donor: Sample) -> bytes:
    """Return an archive with damaged headers whose checksums fit, or damaged bytes."""
    if rng.random() < 0.3 or not sample.spans:
        return mutated(rng, sample.data, (), donor.data)
    data = bytearray(sample.data)
    for _ in range(1 + int(rng.integers(3))):
        at = sample.spans[int(rng.integers(len(sample.spans)))][0]
        header = data[at : at + 512]
        how = int(rng.integers(4))
        if how == 0:
            size = _SIZES[int(rng.integers(len(_SIZES)))]
            header[124:136] = size.ljust(12, b"\0")
        elif how == 1:
            header[156] = int(rng.choice(list(b"0123456789xgLKSVN\0\xff")))
        elif how == 2:
            names = (
                b"../../x.jpg",
                b"/etc/passwd.jpg",
                b"\xff\xfe.jpg",
                b"a" * 99,
                b"0000.jpg",
                b"",
            )
            header[:100] = names[int(rng.integers(len(names)))].ljust(100, b"\0")
        else:
            header = bytearray(mutated(rng, bytes(header))[:512].ljust(512, b"\0"))
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % (sum(header) & 0o777777)
        data[at : at + 512] = header
    return bytes(data)


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
        files = _tree({"ILSVRC2012_img_train.tar": data})
        return [Sample(files, "data/ILSVRC2012_img_train.tar", spans, truth)]

    def mutate(self, rng: np.random.Generator, sample: Sample, donor: Sample) -> bytes:
        """Mutate the headers of both levels, or bytes."""
        return mutated_tar(rng, sample, donor)


class Parquets(DatasetTarget):
    name = "parquet: huggingface"
    writer = huggingface
    is_checked = False  # pages have no checksums unless their writer adds them

    def prepare(self, folder: Path) -> list[Sample]:
        features = {
            "image": {"_type": "Image"},
            "label": {"names": list(_NAMES), "_type": "ClassLabel"},
        }
        labels = [0, 1, 2, 1]
        images = [{"bytes": numbered_jpeg(n), "path": f"{n}.jpg"} for n in range(len(labels))]
        table = pa.table({"image": images, "label": pa.array(labels)})
        noted = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": noted})
        truth = {(_NAMES[label], numbered_jpeg(n)) for n, label in enumerate(labels)}
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
            samples.append(Sample(_tree({f"data/{name}": data}), f"data/data/{name}", spans, truth))
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
        return [Sample(_tree(files), name, truth=truth) for name in attacked]

    def mutate(self, rng: np.random.Generator, sample: Sample, donor: Sample) -> bytes:
        """Mutate opcodes."""
        return mutated_pickle(rng, sample.data)


class SplitLists(DatasetTarget):
    name = "list of a split: coop"
    writer = coop
    options: ClassVar[dict[str, Any]] = {"name": "oxford_pets"}

    def prepare(self, folder: Path) -> list[Sample]:
        rows = {
            split: [[f"{n}.jpg", n % 3, _NAMES[n % 3]] for n in range(first, first + 3)]
            for split, first in (("train", 0), ("val", 3), ("test", 6))
        }
        files = {f"images/{n}.jpg": numbered_jpeg(n) for n in range(9)}
        name = "split_zhou_OxfordPets.json"
        data = json.dumps(rows, indent=1).encode()
        truth = {(_NAMES[n % 3], numbered_jpeg(n)) for n in range(9)}
        return [Sample(_tree({**files, name: data}), f"data/{name}", truth=truth)]

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
        sample = Sample(_tree({**files, "metadata.csv": data}), "data/metadata.csv", truth=truth)
        return [sample]

    def mutate(self, rng: np.random.Generator, sample: Sample, donor: Sample) -> bytes:
        """Mutate the table."""
        words = ("img_id", "y", "split", "bird/3.jpg", "../bird/3.jpg", "/etc/hostname", "1,2")
        return mutated_text(rng, sample.data.decode(), words)

    def pairs_of(self, sample: Sample, data: bytes) -> Pairs:
        """Any image may have either class: the table has no checksum."""
        images = {image for _, image in sample.truth}
        return {(name, image) for name in waterbirds.CLASS_NAMES for image in images}
