"""`read_image`: the pixels of one sample, or an error that names it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from ffcv.fields.rgb_image import encode_jpeg
from numpy.typing import NDArray
from PIL import Image

from dp4tl_ffcv import BetonError, BetonIndex, image_fields, read_image, write_beton
from dp4tl_ffcv.beton.tables import load_tables


def gradients(count: int) -> list[NDArray[np.uint8]]:
    """Smooth images of different sizes, which JPEG keeps nearly as they are."""
    images = []
    for number in range(count):
        rows, columns = np.mgrid[: 40 + 3 * number, : 60 - 2 * number]
        channels = (3 * rows, 2 * columns + 9 * number, rows + columns)
        images.append(np.stack(channels, axis=-1).astype(np.uint8))
    return images


def write_images(path: Path, **options: Any) -> BetonIndex:
    samples = [(image, 0, number) for number, image in enumerate(gradients(5))]
    return write_beton(path, samples, image_fields(**options), seed=None)


def overwrite(index: BetonIndex, number: int, data: bytes) -> None:
    """Put other bytes where an image starts."""
    with index.path.open("r+b") as stream:
        stream.seek(int(index.column("image")["data_ptr"][number]))
        stream.write(data)


def changed(index: BetonIndex, **tables: NDArray[Any]) -> BetonIndex:
    """The same file with other tables, which `BetonIndex.open` might refuse."""
    return BetonIndex(index.path, replace(load_tables(index.path, {}), **tables))


@pytest.mark.parametrize("name", ["photo", "pixels"])
def test_images_of_every_writer_are_read(written: Any, name: str) -> None:
    index = BetonIndex.open(written.path, custom_fields=written.custom_fields)
    position = [field.name for field in index.fields].index(name)
    for number in (0, 5, 23):
        expected = written.samples[number][position]
        if name == "photo":
            decoded = cv2.imdecode(encode_jpeg(expected, 90), cv2.IMREAD_COLOR)
            expected = cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)
        found = read_image(index, number, name)
        assert found.dtype == np.uint8
        assert found.shape == expected.shape
        # Decoders may round differently.
        tolerance = 0 if name == "pixels" else 3
        np.testing.assert_allclose(found.astype(int), expected.astype(int), atol=tolerance)


def test_raw_images_come_back_as_they_were(tmp_path: Path) -> None:
    index = write_images(tmp_path / "a.beton", mode="raw")
    for number, expected in enumerate(gradients(5)):
        np.testing.assert_array_equal(read_image(index, number), expected)


def test_jpeg_keeps_red_green_and_blue_apart(tmp_path: Path) -> None:
    image = np.zeros((16, 16, 3), dtype=np.uint8)
    image[..., 0], image[..., 1] = 250, 120
    index = write_beton(tmp_path / "a.beton", [(image, 0, 0)], image_fields(jpeg_quality=100))
    mean = read_image(index, 0).mean(axis=(0, 1))
    np.testing.assert_allclose(mean, [250, 120, 0], atol=4)


def test_grey_jpegs_are_read_as_rgb(tmp_path: Path) -> None:
    index = write_images(tmp_path / "a.beton", mode="raw")
    Image.new("L", (60, 40), 77).save(tmp_path / "grey.jpg")
    overwrite(index, 0, (tmp_path / "grey.jpg").read_bytes())
    metadata = index.metadata.copy()
    metadata["f0"]["mode"][0] = 0
    pixels = read_image(changed(index, metadata=metadata), 0)
    np.testing.assert_allclose(pixels, np.full((40, 60, 3), 77), atol=1)


def test_an_empty_extent_at_the_same_byte_does_no_harm(tmp_path: Path) -> None:
    index = write_images(tmp_path / "a.beton", mode="raw")
    empty = index.allocations[:1].copy()
    empty["size"] = 0
    both = changed(index, allocations=np.concatenate([empty, index.allocations]))
    np.testing.assert_array_equal(read_image(both, 0), gradients(1)[0])


def test_a_field_without_images_is_refused(tmp_path: Path) -> None:
    index = write_images(tmp_path / "a.beton")
    with pytest.raises(BetonError, match="'label' holds no RGB images; its kind is int"):
        read_image(index, 0, "label")
    with pytest.raises(BetonError, match=r"no field 'picture'\. Its fields are image, label"):
        read_image(index, 0, "picture")


@pytest.mark.parametrize("sample_id", [5, -1, 2**40])
def test_a_sample_out_of_range_is_refused(sample_id: int, tmp_path: Path) -> None:
    index = write_images(tmp_path / "a.beton")
    with pytest.raises(ValueError, match=r"^`indices` must lie in \[0, 5\)"):
        read_image(index, sample_id)


@pytest.mark.parametrize("sample_id", [1.0, True, "1"])
def test_a_sample_id_that_is_no_integer_is_refused(sample_id: Any, tmp_path: Path) -> None:
    index = write_images(tmp_path / "a.beton")
    with pytest.raises(TypeError, match=r"^`indices` must be integers"):
        read_image(index, sample_id)


def test_a_damaged_jpeg_is_named(tmp_path: Path) -> None:
    index = write_images(tmp_path / "a.beton")
    assert read_image(index, 2).shape == gradients(3)[2].shape
    overwrite(index, 2, bytes(int(index.sample_bytes()[2])))
    with pytest.raises(BetonError, match=r"image of sample 2 in .* is corrupt"):
        read_image(index, 2)
    assert read_image(index, 1).shape == gradients(2)[1].shape


def test_a_jpeg_that_ends_early_is_named(tmp_path: Path) -> None:
    index = write_images(tmp_path / "a.beton")
    allocations = index.allocations.copy()
    allocations["size"][2] //= 2
    with pytest.raises(BetonError, match=r"image of sample 2 in .* is corrupt"):
        read_image(changed(index, allocations=allocations), 2)


@pytest.mark.parametrize(("name", "value"), [("height", 41), ("width", 1), ("mode", 7)])
def test_metadata_that_do_not_fit_the_pixels_are_named(
    name: str, value: int, tmp_path: Path
) -> None:
    index = write_images(tmp_path / "a.beton", mode="raw")
    metadata = index.metadata.copy()
    metadata["f0"][name][0] = value
    with pytest.raises(BetonError, match=r"image of sample 0 in .* is corrupt"):
        read_image(changed(index, metadata=metadata), 0)


def test_an_image_without_an_extent_is_named(tmp_path: Path) -> None:
    index = write_images(tmp_path / "a.beton")
    allocations = index.allocations[1:].copy()
    with pytest.raises(BetonError, match=r"image of sample 0 in .* is corrupt"):
        read_image(changed(index, allocations=allocations), 0)
