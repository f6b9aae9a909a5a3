"""Image files, one of which is attacked, written as pixels."""

import io
import shutil
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from tests.campaigns.fuzz.datasets import DatasetTarget, Pairs, stored_pairs, tree
from tests.campaigns.fuzz.target import FaultError, Sample
from tests.support.files import numbered_jpeg
from tests.support.images import as_file, picture
from writers import imagefolder

_NOT_COMPARED = "all images written, one not compared"


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
            "e.png": as_file(Image.fromarray(grey.astype(np.uint16) * 251), "PNG"),
            "f.jpg": as_file(image, "JPEG", quality=90), "g.jpg": as_file(grey, "JPEG"),
            "h.jpg": as_file(image, "JPEG", progressive=True),
            "i.webp": as_file(image, "WEBP", lossless=True), "j.bmp": as_file(image, "BMP"),
            "k.tif": as_file(image, "TIFF"),
            "l.tif": as_file(image, "TIFF", compression="tiff_lzw"),
            "m.ppm": as_file(image, "PPM"),
            "n.jpg": as_file(Image.fromarray(image).convert("CMYK"), "JPEG"),
            "o.gif": as_file(palette, "GIF"), "p.jp2": as_file(image, "JPEG2000"),
            "q.avif": as_file(image, "AVIF"),
            "r.tif": as_file(palette.convert("1"), "TIFF", compression="group4"),
        }  # fmt: skip
        others = {"cat/1.jpg": numbered_jpeg(1), "dog/2.jpg": numbered_jpeg(2)}
        return [
            Sample(tree({**others, f"cat/{name}": data}), f"data/cat/{name}", truth=data)
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
            count, pairs = len(written["train"]), stored_pairs(written["train"])
        finally:
            shutil.rmtree(out, ignore_errors=True)
        for name, label in (("cat/1.jpg", "cat"), ("dog/2.jpg", "dog")):
            pixels = np.asarray(Image.open(io.BytesIO(sample.files[f"data/{name}"])))
            if (label, pixels.tobytes()) not in pairs:
                raise FaultError("untouched value differs", name)
        if count != len(sample.files):
            raise FaultError("lost image", f"{count} of {len(sample.files)}: {sample.attacked}")
        # A PNG has checksums: its pixels are those of the intact file, or it is refused.
        if sample.attacked.endswith(".png"):
            return self._check_png(sample, data, pairs)
        return "equal" if data == sample.data else _NOT_COMPARED

    @staticmethod
    def _check_png(sample: Sample, data: bytes, pairs: Pairs) -> str:
        """Compare with the intact image, or else with another whole one that the damage made."""
        if ("cat", _pixels(sample.data)) in pairs:
            return "equal"
        whole = _whole_png(data)
        if whole is None:
            raise FaultError("damaged image written", sample.attacked)
        if ("cat", _pixels(whole)) not in pairs:
            raise FaultError("other pixels", sample.attacked)
        return "read as the bytes say"


def _pixels(png: bytes) -> bytes:
    image = Image.open(io.BytesIO(png))
    if image.mode.startswith("I"):  # 16 bits, which Pillow's `convert` cuts at 255
        return np.repeat((np.asarray(image) >> 8).astype(np.uint8), 3).tobytes()
    return image.convert("RGB").tobytes()


def _whole_png(data: bytes) -> bytes | None:
    """Return a PNG up to its end chunk, or None without an end or with a wrong checksum."""
    at = 8
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if zlib.crc32(data[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            return None
        if data[at + 4 : at + 8] == b"IEND":
            return data[:end]
        at = end
    return None
