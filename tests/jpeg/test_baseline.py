"""`to_baseline`: the same pixels and metadata, as a JPEG that can be indexed."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dp4tl_ffcv.jpeg.baseline import is_baseline, to_baseline
from dp4tl_ffcv.jpeg.crop import jpeg_scratch_bytes
from dp4tl_ffcv.jpeg.index_jpeg import index_jpeg
from dp4tl_ffcv.jpeg.markers import read_structure
from dp4tl_ffcv.jpeg.turbojpeg import JpegError, decode, encode, read_header
from tests.support.images import jpeg, picture

UNUSUAL = {
    "progressive": {"progressive": True},
    "4:4:4": {"progressive": True, "subsampling": 0},
    "4:2:2": {"progressive": True, "subsampling": 1},
    "restarts": {"restart_marker_blocks": 3},
    "optimised": {"progressive": True, "optimize": True, "quality": 92},
    "profile": {"progressive": True, "icc_profile": bytes(70_000)},
}
unusual = pytest.mark.parametrize("options", UNUSUAL.values(), ids=UNUSUAL)


def index_bytes(data: bytes) -> int:
    """Return the bytes of the index of a JPEG, 0 if it cannot have one."""
    found = read_header(data)
    scratch = np.empty(jpeg_scratch_bytes(found.height, found.width), dtype=np.uint8)
    stored = np.frombuffer(bytearray(data), dtype=np.uint8)
    out = np.zeros(len(data), dtype=np.uint8)
    return index_jpeg(stored, found.height, found.width, scratch, out)


@unusual
@pytest.mark.parametrize("size", [(1, 1), (83, 117), (400, 300)], ids=str)
def test_the_pixels_stay_the_same_bits(size: tuple[int, int], options: dict[str, Any]) -> None:
    data = jpeg(picture(*size), **{"quality": 95, **options})
    assert not is_baseline(data)
    new = to_baseline(data)
    assert is_baseline(new)
    assert to_baseline(new) is new
    assert read_header(new) == read_header(data)
    for fast in (False, True):
        np.testing.assert_array_equal(decode(new, fast=fast), decode(data, fast=fast))
    assert index_bytes(data) == 0
    if min(size) == 300:
        assert index_bytes(new) > 0


def test_arithmetic_codes_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = encode(picture(400, 300), quality=95)
    monkeypatch.setenv("TJ_ARITHMETIC", "1")  # for TurboJPEG's encoder
    data = encode(picture(400, 300), quality=95)
    monkeypatch.undo()
    assert not is_baseline(data)
    assert to_baseline(data) == expected


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_other_colours_keep_their_pixels(mode: str) -> None:
    image = Image.fromarray(picture(50, 70)).convert(mode)
    data = jpeg(image, progressive=True)
    new = to_baseline(data)
    assert is_baseline(new)
    pixels = [np.asarray(Image.open(io.BytesIO(each))) for each in (data, new)]
    np.testing.assert_array_equal(*pixels)


def test_metadata_is_kept() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    profile, comment = bytes(range(256)), b"a comment"
    data = jpeg(picture(60, 80), progressive=True, exif=exif, icc_profile=profile, comment=comment)
    new = to_baseline(data)
    before, after = read_structure(data), read_structure(new)
    assert after == before
    assert after is not None
    assert after.orientation == 6
    with Image.open(io.BytesIO(new)) as image:
        assert (image.info["icc_profile"], image.info["comment"]) == (profile, comment)


@pytest.mark.parametrize("options", [{}, {"optimize": True}, {"subsampling": 0}], ids=str)
def test_baseline_jpegs_are_returned_as_they_are(options: dict[str, Any]) -> None:
    data = jpeg(picture(60, 80), **options)
    assert is_baseline(data)
    assert to_baseline(data) is data


def test_damage_is_an_error() -> None:
    data = jpeg(picture(60, 80), progressive=True)
    for size in range(300, len(data), 97):
        with pytest.raises(JpegError):
            to_baseline(data[:size])


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"\xff" * 50, bytes(50), b"\xff\xd8\xff\xe0"])
def test_other_data_is_left_alone(data: bytes) -> None:
    assert to_baseline(data) is data
