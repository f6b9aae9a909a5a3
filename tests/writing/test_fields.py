"""`ImageField`: images that are stored unchanged, encoded or rejected."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps

from dp4tl_ffcv import image_fields, read_image, write_beton
from dp4tl_ffcv.jpeg import turbojpeg
from dp4tl_ffcv.jpeg.baseline import is_baseline
from dp4tl_ffcv.jpeg.markers import read_structure
from dp4tl_ffcv.kernels import resize_area
from dp4tl_ffcv.writing.encode import Allocator
from dp4tl_ffcv.writing.fields import ImageField
from tests.support.betons import read_with_ffcv
from tests.support.images import as_file, picture

ORIENTATION = 0x0112


def wave(height: int = 90, width: int = 120) -> NDArray[np.uint8]:
    rows, columns = np.mgrid[:height, :width]
    channels = [np.sin(rows / 9 + shift) * np.cos(columns / 13 - shift) for shift in range(3)]
    return (127.5 + 120 * np.stack(channels, axis=-1)).astype(np.uint8)


def with_orientation(pixels: NDArray[np.uint8], orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return as_file(pixels, quality=95, exif=exif)


def stored(value: Any, tmp_path: Path, **options: Any) -> tuple[bytes, NDArray[np.uint8], Any]:
    """Write one image, and return its bytes in the file, its pixels and its metadata."""
    index = write_beton(
        tmp_path / "a.beton", [(value, 0, 0)], image_fields(**options), num_workers=0
    )
    (extent,) = index.extents([0])
    start, size = int(extent["ptr"]), int(extent["size"])
    data = index.path.read_bytes()[start : start + size]
    return data, read_image(index, 0), index.column("image")[0]


def difference(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


# Stored unchanged.

KEPT = {
    "baseline": as_file(wave(), quality=88),
    "4:4:4": as_file(wave(), quality=75, subsampling=0),
    "progressive": as_file(wave(), progressive=True),
    "restarts": as_file(wave(), restart_marker_blocks=2),
    "comment": as_file(wave(), comment=b"\xff\xd9 is no end here"),
    "upright": with_orientation(wave(), 1),
    "bytes after the end": as_file(wave()) + b"\0" * 70,
    "one pixel": as_file(wave(1, 1)),
}


@pytest.mark.parametrize("kind", KEPT)
def test_a_jpeg_that_needs_no_change_keeps_its_bytes(kind: str, tmp_path: Path) -> None:
    content, path = KEPT[kind], tmp_path / "a.jpg"
    path.write_bytes(content)
    for value, options in (
        (content, {"decode_check": True}),
        (path, {}),
        (str(path), {"max_resolution": 120}),
        (memoryview(content), {"short_side": 90}),
    ):
        data, _, record = stored(value, tmp_path, **options)
        assert data == content
        with Image.open(path) as image:
            assert (record["width"], record["height"]) == image.size
        assert record["mode"] == 0


def test_progressive_jpegs_become_baseline_if_asked_for(tmp_path: Path) -> None:
    content = as_file(picture(70, 90), progressive=True)
    index = write_beton(
        tmp_path / "a.beton", [(content, 0, 0)], image_fields(baseline=True), num_workers=0
    )
    (extent,) = index.extents([0])
    stored = index.path.read_bytes()[extent["ptr"] : extent["ptr"] + extent["size"]]
    assert is_baseline(stored)
    assert not is_baseline(content)
    np.testing.assert_array_equal(turbojpeg.decode(stored), turbojpeg.decode(content))


def test_stock_ffcv_reads_unchanged_jpegs(tmp_path: Path) -> None:
    names = ["baseline", "4:4:4", "progressive", "restarts", "comment", "bytes after the end"]
    samples = [(KEPT[name], number, 0) for number, name in enumerate(names)]
    path = tmp_path / "a.beton"
    index = write_beton(path, samples, image_fields(), num_workers=0)
    assert [field.kind for field in index.fields] == ["rgb_image", "int", "int"]
    for row in read_with_ffcv(path):
        expected = np.asarray(Image.open(io.BytesIO(KEPT[names[int(row["label"][0])]])))
        assert difference(row["image"], expected) < 1.5  # the transforms of two decoders


# Encoded.


@pytest.mark.parametrize("mode", ["jpg", "raw"])
@pytest.mark.parametrize("orientation", range(2, 9))
def test_the_exif_orientation_is_applied(mode: str, orientation: int, tmp_path: Path) -> None:
    content = with_orientation(wave(), orientation)
    data, pixels, record = stored(content, tmp_path, mode=mode, jpeg_quality=95)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    assert data != content
    assert (record["width"], record["height"]) == upright.size
    assert difference(pixels, np.asarray(upright)) < 2
    image = Image.open(io.BytesIO(content))  # open images are turned too
    assert difference(stored(image, tmp_path, mode=mode)[1], np.asarray(upright)) < 3


def grey(pixels: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(pixels).convert("L")


def translucent(pixels: NDArray[np.uint8]) -> Image.Image:
    image = Image.fromarray(pixels)
    image.putalpha(grey(pixels))
    return image


OTHERS = {
    "grey": as_file(grey(wave())),
    "CMYK": as_file(Image.fromarray(wave()).convert("CMYK"), quality=95),
    "PNG": as_file(wave(), "PNG"),
    "PNG with alpha": as_file(translucent(wave()), "PNG"),
    "PNG with a palette": as_file(Image.fromarray(wave()).quantize(64), "PNG"),
    "WebP": as_file(wave(), "WEBP", quality=95),
    "BMP": as_file(wave(), "BMP"),
    "TIFF": as_file(wave(), "TIFF"),
    "GIF": as_file(Image.fromarray(wave()).quantize(128), "GIF"),
    "1 bit": as_file(grey(wave()).convert("1"), "PNG"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_images_become_rgb(kind: str, tmp_path: Path) -> None:
    expected = np.asarray(Image.open(io.BytesIO(OTHERS[kind])).convert("RGB"))
    raw = stored(OTHERS[kind], tmp_path, mode="raw")[1]
    np.testing.assert_array_equal(raw, expected)
    data, pixels, record = stored(OTHERS[kind], tmp_path, jpeg_quality=95)
    structure = read_structure(data)
    assert (structure.components, structure.is_whole) == (3, True)
    assert (record["height"], record["width"]) == expected.shape[:2]
    # Dithered colours lose more by 4:2:0 than photographs.
    assert difference(pixels, expected) < (8 if "palette" in kind or kind == "GIF" else 2)


def test_sixteen_bits_of_grey_are_scaled(tmp_path: Path) -> None:
    """Pillow opens the second file with 32 bits per pixel."""
    values = np.linspace(0, 65535, 600).astype(np.uint16).reshape(20, 30)
    graymap = b"P5 30 20 65535\n" + values.astype(">u2").tobytes()
    for content in (as_file(Image.fromarray(values), "PNG"), graymap):
        pixels = stored(content, tmp_path, mode="raw")[1]
        np.testing.assert_array_equal(pixels, np.repeat((values // 256)[..., None], 3, axis=2))


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_corrupt_exif_data_is_ignored(kind: str, tmp_path: Path) -> None:
    content = as_file(wave(), kind, exif=b"Exif\0\0 not a TIFF header", lossless=True)
    np.testing.assert_array_equal(stored(content, tmp_path, mode="raw")[1], wave())


def test_raw_pixels_of_a_jpeg_are_decoded_exactly(tmp_path: Path) -> None:
    data, pixels, record = stored(KEPT["baseline"], tmp_path, mode="raw")
    assert record["mode"] == 1
    assert len(data) == 90 * 120 * 3
    assert difference(pixels, np.asarray(Image.open(io.BytesIO(KEPT["baseline"])))) < 0.5


@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 200), st.booleans())
def test_a_side_is_limited_and_the_shape_kept(
    height: int, width: int, limit: int, is_short: bool
) -> None:
    field = ImageField(mode="raw", **{"short_side" if is_short else "max_resolution": limit})
    record, malloc = np.zeros(1, dtype=field.metadata_type), Allocator()
    pixels = np.broadcast_to(np.arange(width, dtype=np.uint8)[:, None], (height, width, 3))
    field.encode(record, pixels, malloc)
    new = int(record["height"][0]), int(record["width"][0])
    side = min(height, width) if is_short else max(height, width)
    if side <= limit:
        assert new == (height, width)
        assert malloc.blobs[0].tobytes() == pixels.tobytes()
        return
    assert (min(new) if is_short else max(new)) == limit
    assert abs(new[0] - height * limit / side) <= 0.5 or new[0] == 1
    assert abs(new[1] - width * limit / side) <= 0.5 or new[1] == 1
    assert malloc.blobs[0].tobytes() == resize_area(np.ascontiguousarray(pixels), new).tobytes()


def test_a_large_jpeg_is_shrunk_and_encoded_at_the_quality_asked_for(tmp_path: Path) -> None:
    data, pixels, record = stored(KEPT["baseline"], tmp_path, max_resolution=60, jpeg_quality=95)
    coarse, _, _ = stored(KEPT["baseline"], tmp_path, max_resolution=60, jpeg_quality=20)
    assert len(data) > 2 * len(coarse)
    assert (record["width"], record["height"]) == (60, 45)
    assert difference(pixels, resize_area(wave(), (45, 60))) < 6


# Corrupt files.


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


@pytest.mark.parametrize("mode", ["jpg", "raw"])
@pytest.mark.parametrize(
    "content",
    [b"", cut(KEPT["baseline"]), KEPT["baseline"][:30], cut(OTHERS["PNG"])],
    ids=["empty", "cut JPEG", "cut header", "cut PNG"],
)
def test_corrupt_content_is_rejected(content: bytes, mode: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^Cannot encode sample 0: "):
        stored(content, tmp_path, mode=mode)


def with_zeros_in_the_scan(data: bytes) -> bytes:
    return data[:-400] + bytes(200) + data[-200:]


@pytest.mark.parametrize(
    "options",
    [{"decode_check": True}, {"mode": "raw"}, {"max_resolution": 60}, {"short_side": 40}],
    ids=lambda options: next(iter(options)),
)
def test_corrupt_data_is_detected_wherever_an_image_is_decoded(
    options: dict[str, Any], tmp_path: Path
) -> None:
    """Pillow decodes this corrupt file without an error."""
    content = with_zeros_in_the_scan(KEPT["baseline"])
    Image.open(io.BytesIO(content)).load()
    with pytest.raises(ValueError, match=r"^Cannot encode sample 0: .*JPEG"):
        stored(content, tmp_path, **options)
    grey_one = with_zeros_in_the_scan(as_file(grey(wave(200, 200)), quality=95))
    with pytest.raises(ValueError, match=r"^Cannot encode sample 0: .*JPEG"):
        stored(grey_one, tmp_path, **options)
    with pytest.raises(ValueError, match=r"image of sample 0 in .* is corrupt"):
        stored(content, tmp_path)  # written, because its markers are correct, but not read
    assert content in (tmp_path / "a.beton").read_bytes()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros((4, 4), np.uint8), r"pixels must be uint8 \(H, W, 3\), not uint8 \(4, 4\)"),
        (np.zeros((4, 4, 3)), "pixels must be uint8"),
        (np.zeros((0, 4, 3), np.uint8), "pixels must be uint8"),
        (np.zeros((1, 70000, 3), np.uint8), "70000 x 1 pixels, too large"),
        (7, "must be bytes, a path, a PIL image or an array, not int"),
        ("nowhere.jpg", "nowhere.jpg"),
        (b"<html>", "sample 0: not a known image format"),
        (KEPT["baseline"][:-2], "Premature end of JPEG file"),
        (Image.new("RGB", (0, 5)), "an image of 0 x 5 pixels"),
        (Image.new("F", (5, 5)), "floating-point grey values"),
        (Image.new("I", (5, 5), 70000), "grey values from 70000 to 70000, not 16 bits"),
    ],
)
def test_other_values_are_rejected(value: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        stored(value, tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "png"}, "`mode` must be one of jpg, raw; got 'png'"),
        ({"jpeg_quality": 0}, "`jpeg_quality` must be in .1, 100.; got 0"),
        ({"max_resolution": 0}, "`max_resolution` must be in .1, 65535.; got 0"),
        ({"short_side": 70000}, "`short_side` must be in .1, 65535.; got 70000"),
        ({"short_side": 5, "max_resolution": 5}, "not both"),
    ],
)
def test_bad_options_are_rejected(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        image_fields(**options)


# The structure of JPEGs.


@pytest.mark.parametrize("kind", KEPT)
def test_a_truncated_jpeg_is_not_whole(kind: str) -> None:
    content = KEPT[kind]
    structure = read_structure(content)
    assert (structure.components, structure.orientation, structure.is_whole) == (3, 1, True)
    end = content.rindex(b"\xff\xd9")
    for length in {*range(3, end, 7), end, end + 1}:
        part = read_structure(content[:length])
        assert not part.is_whole


def test_a_marker_where_coded_data_should_be_is_not_whole() -> None:
    data = KEPT["baseline"]
    middle = len(data) * 2 // 3
    with_marker = data[:middle] + b"\xff\xc4\x00\x02" + data[middle + 4 :]
    two_frames = data[:-2] + data[2:]
    for content in (with_marker, two_frames):
        structure = read_structure(content)
        assert not structure.is_whole


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.binary(max_size=80), st.sampled_from([*KEPT.values()]), st.integers(0, 2000))
def test_any_bytes_are_read_without_an_error(noise: bytes, content: bytes, at: int) -> None:
    read_structure(noise)
    read_structure(b"\xff\xd8\xff" + noise)
    read_structure(content[:at] + noise + content[at:])
