"""`read_image`: the pixels of one sample, or an error that names the sample."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from ffcv.fields.rgb_image import encode_jpeg
from PIL import Image

from dp4tl_ffcv import BetonError, BetonIndex, read_image
from dp4tl_ffcv.beton.tables import Tables, load_tables
from tests.support.betons import Written, damage, put
from tests.support.images import picture, write_images

IMAGES = [picture(40 + 3 * number, 60 - 2 * number, number) for number in range(5)]


def overwrite(index: BetonIndex, number: int, data: bytes) -> None:
    """Put other bytes where an image starts."""
    put(index.path, int(index.column("image")["data_ptr"][number]), data)


def changed(index: BetonIndex, change: Callable[[Tables], Any]) -> BetonIndex:
    """Return an index of the same file with changed tables, without checking them."""
    tables = load_tables(index.path, {})
    copies = {"metadata": tables.metadata.copy(), "allocations": tables.allocations.copy()}
    tables = replace(tables, **copies)
    return BetonIndex(index.path, change(tables) or tables)


@pytest.mark.parametrize("name", ["photo", "pixels"])
def test_images_of_every_writer_are_read(written: Written, name: str) -> None:
    index = written.index
    position = [field.name for field in index.fields].index(name)
    for number in (0, 5, 23):
        expected = written.samples[number][position]
        if name == "photo":
            decoded = cv2.imdecode(encode_jpeg(expected, 90), cv2.IMREAD_COLOR)
            expected = cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)
        found = read_image(index, number, name)
        assert found.dtype == np.uint8
        assert found.shape == expected.shape
        tolerance = 0 if name == "pixels" else 3  # decoders may round differently
        np.testing.assert_allclose(found.astype(int), expected.astype(int), atol=tolerance)


def test_raw_images_come_back_as_they_were(tmp_path: Path) -> None:
    index = write_images(tmp_path / "a.beton", IMAGES)
    for number, expected in enumerate(IMAGES):
        np.testing.assert_array_equal(read_image(index.path, number), expected)

    def add_empty(tables: Tables) -> Tables:
        empty = tables.allocations[:1].copy()
        empty["size"] = 0
        return replace(tables, allocations=np.concatenate([empty, tables.allocations]))

    pixels = read_image(changed(index, add_empty), 0)  # empty bytes start at the same byte
    np.testing.assert_array_equal(pixels, IMAGES[0])


def test_grey_jpegs_are_read_as_rgb(tmp_path: Path) -> None:
    index = write_images(tmp_path / "a.beton", IMAGES)
    Image.new("L", (60, 40), 77).save(tmp_path / "grey.jpg")
    overwrite(index, 0, (tmp_path / "grey.jpg").read_bytes())
    as_jpeg = changed(index, lambda tables: tables.metadata["f0"]["mode"].__setitem__(0, 0))
    np.testing.assert_allclose(read_image(as_jpeg, 0), np.full((40, 60, 3), 77), atol=1)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0, "label"), BetonError, "'label' holds no RGB images; its kind is int"),
        ((0, "picture"), BetonError, r"no field 'picture'\. Its fields are image, label"),
        *(((number,), ValueError, r"`sample_id` must be in \[0, 4\]") for number in (5, -1, 2**40)),
        *(((number,), TypeError, "`sample_id` must be an int") for number in (1.0, True, "1")),
    ],
)
def test_bad_arguments_are_rejected(
    arguments: Any, error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        read_image(write_images(tmp_path / "a.beton", IMAGES), *arguments)


def test_a_corrupt_jpeg_is_named(tmp_path: Path) -> None:
    index = write_images(tmp_path / "a.beton", IMAGES, mode="jpg")
    short = changed(index, lambda tables: tables.allocations["size"].__setitem__(2, 300))
    with pytest.raises(BetonError, match=r"image of sample 2 in .* is corrupt"):
        read_image(short, 2)
    overwrite(index, 2, bytes(int(index.sample_bytes()[2])))
    with pytest.raises(BetonError, match=r"image of sample 2 in .* is corrupt"):
        read_image(index, 2)
    assert read_image(index, 1).shape == IMAGES[1].shape


def test_a_beton_that_was_deleted_is_not_called_corrupt(tmp_path: Path) -> None:
    index = write_images(tmp_path / "a.beton", IMAGES)
    index.path.unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.beton"):
        read_image(index, 0)


def cut_last_rows(index: BetonIndex) -> None:
    """Overwrite the end of a JPEG, which lenient decoders show as grey."""
    ptr, size = index.extents([0])[["ptr", "size"]][0].tolist()
    put(index.path, ptr + size - 200, bytes(200))


def enlarge_record(index: BetonIndex) -> None:
    with damage(index.path) as parts:
        parts.metadata["f0"]["height"][0] += 1


@pytest.mark.parametrize("change", [cut_last_rows, enlarge_record])
def test_a_jpeg_that_decodes_only_in_part_or_to_another_size_is_corrupt(
    change: Callable[[BetonIndex], None], tmp_path: Path
) -> None:
    change(write_images(tmp_path / "a.beton", IMAGES, mode="jpg"))
    with pytest.raises(BetonError, match=r"image of sample 0 in .* is corrupt"):
        read_image(tmp_path / "a.beton", 0)


@pytest.mark.parametrize(
    "change",
    [
        lambda tables: tables.metadata["f0"]["height"].__setitem__(0, 41),
        lambda tables: tables.metadata["f0"]["mode"].__setitem__(0, 7),
        lambda tables: replace(tables, allocations=tables.allocations[1:]),
    ],
    ids=["height", "mode", "no bytes"],
)
def test_an_image_whose_tables_are_corrupt_is_named(change: Any, tmp_path: Path) -> None:
    index = write_images(tmp_path / "a.beton", IMAGES)
    with pytest.raises(BetonError, match=r"image of sample 0 in .* is corrupt"):
        read_image(changed(index, change), 0)
