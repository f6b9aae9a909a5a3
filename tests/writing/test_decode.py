"""Damaged images and files that are no images: an error per sample, never wrong pixels."""

import io
import os
import struct
import subprocess
import warnings
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps

from dp4tl_ffcv.writing import decode
from dp4tl_ffcv.writing.encode import Allocator
from dp4tl_ffcv.writing.fields import ImageField
from tests.support.images import as_file, picture
from tests.support.jpegs import of_scans

PIXELS = picture(40, 56)
ORIENTATION = 0x0112


def written(value: Any) -> NDArray[np.uint8]:
    """Return the pixels that a beton of raw images would hold."""
    field, malloc = ImageField(mode="raw"), Allocator()
    record = np.zeros(1, dtype=field.metadata_type)
    field.encode(record[0], value, malloc)
    return malloc.blobs[0].reshape(record["height"][0], record["width"][0], 3)


def by_pillow(content: bytes) -> NDArray[np.uint8]:
    image = Image.open(io.BytesIO(content))
    image.load()
    return np.asarray(image.convert("RGB"))


FORMATS = {
    "PNG": as_file(PIXELS, "PNG"),
    "PNG palette": as_file(Image.fromarray(PIXELS).quantize(64), "PNG"),
    "PNG alpha": as_file(Image.fromarray(PIXELS).convert("RGBA"), "PNG"),
    "GIF": as_file(Image.fromarray(PIXELS).quantize(64), "GIF"),
    "WebP": as_file(PIXELS, "WEBP"),
    "WebP lossless": as_file(PIXELS, "WEBP", lossless=True),
    "TIFF": as_file(PIXELS, "TIFF"),
    "TIFF LZW": as_file(PIXELS, "TIFF", compression="tiff_lzw"),
    "TIFF deflate": as_file(PIXELS, "TIFF", compression="tiff_adobe_deflate"),
    "BMP": as_file(PIXELS, "BMP"),
    "PPM": as_file(PIXELS, "PPM"),
    "JPEG 2000": as_file(PIXELS, "JPEG2000"),
    "AVIF": as_file(PIXELS, "AVIF"),
}


def damaged(content: bytes) -> Iterator[bytes]:
    """Yield the content cut, with a bit changed, and with zeros, each at 12 places."""
    for at in np.linspace(12, len(content) - 9, 12).astype(int).tolist():
        yield content[:at]
        yield content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]
        yield content[:at] + bytes(8) + content[at + 8 :]


@pytest.fixture(params=[False, True], ids=["strict", "lenient"])
def lenient(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Set the switch by which a library may tell Pillow to ignore damage."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", request.param)
    return bool(request.param)


@pytest.mark.parametrize("kind", FORMATS)
def test_damage_is_an_error_or_what_pillow_reads_strictly(
    kind: str, lenient: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = 0
    for content in damaged(FORMATS[kind]):
        if content == FORMATS[kind]:  # the bytes were zeros
            continue
        try:
            pixels = written(content)
        except Exception:  # `write_beton` names the sample, whatever the error
            errors += 1
            continue
        assert ImageFile.LOAD_TRUNCATED_IMAGES is lenient
        with monkeypatch.context() as patch:
            patch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", False)
            np.testing.assert_array_equal(pixels, by_pillow(content))
        if kind.startswith("PNG"):  # which has checksums: the damage is behind the pixels
            np.testing.assert_array_equal(pixels, by_pillow(FORMATS[kind]))
    assert errors >= 6


def test_damage_of_a_jpeg_that_pillow_decodes_is_detected() -> None:
    content = as_file(Image.fromarray(picture(200, 200)).convert("CMYK"), quality=95)
    assert written(content).shape == (200, 200, 3)
    broken = content[:-4000] + bytes(2000) + content[-2000:]
    by_pillow(broken)  # without an error
    with pytest.raises(ValueError, match="JPEG"):
        written(broken)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once_in_every_format(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    lossless = {"lossless": True} if kind == "WEBP" else {}
    content = as_file(PIXELS, kind, exif=exif, **lossless)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))))
    np.testing.assert_array_equal(written(content), expected)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "TIFF", "WEBP"])
def test_the_first_of_several_images_is_stored(kind: str) -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue")]
    lossless = {"lossless": True} if kind == "WEBP" else {}
    content = as_file(frames[0], kind, save_all=True, append_images=frames[1:], **lossless)
    assert (written(content) == (255, 0, 0)).all()


# Threads and forks.


def test_threads_decode_strictly_until_the_last_one_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    filters = list(warnings.filters)
    with ExitStack() as first, ExitStack() as second:
        first.enter_context(decode._STRICT)
        second.enter_context(decode._STRICT)
        first.close()  # not in the order of entering, as in threads
        with pytest.raises((OSError, ValueError)):
            written(FORMATS["PNG"][:-200])
        assert ImageFile.LOAD_TRUNCATED_IMAGES is False
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True
    assert warnings.filters == filters


def test_a_fork_during_decoding_leaves_no_strict_setting_or_lock_in_the_child(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)

    def check() -> None:
        assert ImageFile.LOAD_TRUNCATED_IMAGES is True
        np.testing.assert_array_equal(written(FORMATS["PNG"]), PIXELS)

    with decode._STRICT:  # as another thread holds it
        child = get_context("fork").Process(target=check)
        child.start()
        child.join(20)
        child.kill()
        child.join()
    assert child.exitcode == 0


# Files that are no images.


def test_a_file_that_is_not_regular_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.jpg")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    (tmp_path / "folder.jpg").mkdir()

    def read(name: str) -> None:
        with pytest.raises(OSError, match="not a file"):
            written(tmp_path / f"{name}.jpg")

    for name in ("fifo", "zero", "folder"):
        child = get_context("fork").Process(target=read, args=(name,))
        child.start()
        child.join(20)
        child.kill()  # if it waits or fills memory
        child.join()
        assert child.exitcode == 0, name


def test_links_to_regular_files_are_followed(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(FORMATS["PNG"])
    (tmp_path / "b.png").symlink_to(tmp_path / "a")
    np.testing.assert_array_equal(written(tmp_path / "b.png"), PIXELS)


def test_files_that_hold_no_image_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "hole.jpg").touch()
    os.truncate(tmp_path / "hole.jpg", (2 << 30) + 1)
    for name, why in (
        ("empty.jpg", "the file is empty"),
        ("hole.jpg", "2147483649 bytes, too large for an image"),
    ):
        with pytest.raises(ValueError, match=why):
            written(tmp_path / name)


def test_postscript_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: Any, **__: Any) -> None:
        raise AssertionError("a program was run")

    monkeypatch.setattr(subprocess, "Popen", run)
    content = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    assert Image.open(io.BytesIO(content)).format == "EPS"
    with pytest.raises(ValueError, match="not a known image format"):
        written(content)


def with_height(content: bytes, kind: str, height: int) -> bytes:
    """Return the file of 56 x 40 pixels with another height in its header."""
    if kind == "PNG":  # the header has a checksum
        header = content[12:20] + height.to_bytes(4, "big") + content[24:29]
        return content[:12] + header + zlib.crc32(header).to_bytes(4, "big") + content[33:]
    old, new = {
        "GIF": (struct.pack("<2H", 56, 40), struct.pack("<2H", 56, height)),
        "TIFF": (struct.pack("<2HIH", 257, 4, 1, 40), struct.pack("<2HII", 257, 4, 1, height)[:10]),
        "BMP": (struct.pack("<2i", 56, 40), struct.pack("<2i", 56, height)),
        "PPM": (b"56 40", b"56 %d" % height),
    }[kind]
    assert old in content
    return content.replace(old, new)


@pytest.mark.parametrize("kind", ["PNG", "GIF", "TIFF", "BMP", "PPM"])
def test_a_size_that_the_file_cannot_hold_is_refused_before_room_is_made(kind: str) -> None:
    content = as_file(Image.new("L", (56, 40)), kind)
    with pytest.raises(ValueError, match="bytes for 56 x 60000 pixels: truncated"):
        written(with_height(content, kind, 60_000))


def test_scans_are_limited_in_jpegs_that_turbojpeg_does_not_decode() -> None:
    assert decode.decode_with_pillow(of_scans(500)).shape == (8, 8, 3)
    with pytest.raises(ValueError, match="more than 500 scans"):
        decode.decode_with_pillow(of_scans(757))


@pytest.mark.parametrize("kind", ["PNG", "GIF", "TIFF", "WEBP", "AVIF", "JPEG2000", "BMP", "PPM"])
def test_even_images_of_any_format_are_decoded(kind: str) -> None:
    assert written(as_file(Image.new("L", (1500, 1200), 255), kind)).min() > 250


@pytest.mark.parametrize("code", ["packbits", "tiff_lzw", "tiff_adobe_deflate", "group4"])
def test_even_bitmaps_in_every_code_of_tiff_are_decoded(code: str) -> None:
    assert not written(as_file(Image.new("1", (6000, 5000)), "TIFF", compression=code)).any()


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    png = bytearray(FORMATS["PNG"])
    png[16:24] = struct.pack(">II", 20_000, 20_000)
    png[29:33] = struct.pack(">I", zlib.crc32(png[12:29]))
    jpeg = bytearray(as_file(PIXELS))
    frame = jpeg.index(b"\xff\xc0") + 5
    jpeg[frame : frame + 4] = struct.pack(">HH", 20_000, 20_000)
    for limit in (Image.MAX_IMAGE_PIXELS, None):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        for content in (bytes(png), bytes(jpeg)):
            with pytest.raises(ValueError, match=r"an image of .*more than 178956970"):
                written(content)
