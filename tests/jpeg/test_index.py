"""Crops decoded with the index of a JPEG: the same bits as without it and as ffcv's."""

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray

from dp4tl_ffcv.jpeg.crop import DECODED, decode_crop, jpeg_scratch_bytes
from dp4tl_ffcv.jpeg.index_jpeg import index_jpeg
from dp4tl_ffcv.jpeg.mcu_index import LARGEST_SHARE, checksum, is_index_of
from tests.support.guards import fenced, guarded
from tests.support.images import picture
from tests.support.jpegs import INDEXED, OTHERS, joined, segments

Box = tuple[int, int, int, int]
KINDS = {**INDEXED, **OTHERS}

NO_INDEX = np.empty(0, dtype=np.uint8)


def drawn_pixels(rng: np.random.Generator, height: int, width: int) -> NDArray[np.uint8]:
    """Draw waves, noise, one colour, or black and white blocks of a few pixels."""
    kind = rng.integers(4)
    if kind == 0:
        return picture(height, width, seed=int(rng.integers(100)))
    if kind == 1:
        return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    if kind == 2:
        return np.full((height, width, 3), rng.integers(0, 256, 3), dtype=np.uint8)
    spots = rng.integers(0, 2, (height // 5 + 1, width // 5 + 1, 3), dtype=np.uint8) * np.uint8(255)
    return np.repeat(np.repeat(spots, 5, axis=0), 5, axis=1)[:height, :width].copy()


def padded(data: bytes, padding: int) -> NDArray[np.uint8]:
    """Add bytes after the image, which allow for an index with a smaller step."""
    return fenced(np.frombuffer(data + bytes(padding), dtype=np.uint8))


def index_of(data: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Return the index of a JPEG, and check that nothing else is read or written."""
    with (
        guarded(jpeg_scratch_bytes(height, width)) as scratch,
        guarded(int(LARGEST_SHARE * data.size) // 8 * 8) as out,
    ):
        length = index_jpeg(data, height, width, scratch, out)
    assert length == 0 or is_index_of(out[:length], data)
    return out[:length].copy()


def crop(
    data: NDArray[np.uint8], index: NDArray[np.uint8], size: tuple[int, int], box: Box
) -> NDArray[np.uint8] | None:
    """Decode a box in memory full of noise; return None after a failure."""
    *corner, rows, columns = box
    with guarded(jpeg_scratch_bytes(*size)) as scratch, guarded(3 * rows * columns) as flat:
        scratch[:] = np.random.default_rng(box).integers(0, 256, scratch.size, dtype=np.uint8)
        out = flat.reshape(rows, columns, 3)
        status = decode_crop(data, index, *size, *corner, rows, columns, scratch, out)
    return out if status == DECODED else None


def drawn_box(rng: np.random.Generator, height: int, width: int) -> Box:
    top, left = int(rng.integers(height)), int(rng.integers(width))
    if rng.integers(4) == 0:  # at an edge
        top, left = int(rng.choice([0, top])), int(rng.choice([0, left]))
    rows, columns = height - top, width - left
    if rng.integers(4) > 0:
        rows, columns = int(rng.integers(1, rows + 1)), int(rng.integers(1, columns + 1))
    return top, left, rows, columns


def check_crops(
    rng: np.random.Generator, kind: str, size: tuple[int, int], crops: int, padding: int
) -> Counter[str]:
    """Compare crops of a random JPEG, and count how they were decoded."""
    whole = KINDS[kind](drawn_pixels(rng, *size), int(rng.integers(1, 101)))
    data = padded(whole, padding)
    index = fenced(index_of(data, *size))
    # Without the last byte of the end marker, only the index leads to pixels.
    cut = fenced(data[: whole.rindex(b"\xff\xd9") + 1])
    expected = crop(data, NO_INDEX, size, (0, 0, *size))
    assert expected is not None
    seen: Counter[str] = Counter()
    for _ in range(crops):
        top, left, rows, columns = box = drawn_box(rng, *size)
        pixels, way = crop(cut, index, size, box), "index"
        if pixels is None:
            pixels, way = (
                crop(data, index, size, box),
                "too few codes" if index.size else "no index",
            )
        assert pixels is not None
        wanted = expected[top : top + rows, left : left + columns]
        np.testing.assert_array_equal(pixels, wanted, err_msg=f"{kind} {size} {box}")
        seen[way] += 1
    return seen


@pytest.mark.parametrize("kind", INDEXED)
def test_crops_by_an_index_have_the_same_pixels(kind: str) -> None:
    rng, seen = np.random.default_rng(len(kind)), Counter[str]()
    for size in ((40, 50), (9, 300), (130, 97), (64, 161)):
        for padding in (100_000, 20_000, 10_000):  # indexes of several steps
            seen += check_crops(rng, kind, size, 4, padding)
    assert seen["index"] > 20


@pytest.mark.parametrize("large", [False, True])
def test_metadata_takes_no_room(large: bool) -> None:
    """An excerpt has no metadata, such as a colour profile that is larger than the image."""
    size, box = (64, 96), (8, 16, 24, 40)
    parts, coded = segments(KINDS["420"](picture(*size), 90))
    metadata = [(0xE2, b"\0" * 65_000)] * (5 if large else 1)
    data = padded(joined(parts[:1] + metadata + parts[1:], coded), 0)
    index = index_of(data, *size)
    assert index.size
    expected = crop(data, NO_INDEX, size, box)
    assert expected is not None
    cut = data[: data.tobytes().rindex(b"\xff\xd9") + 1]
    pixels = crop(cut, index, size, box)  # only the index leads to pixels
    np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize("kind", OTHERS)
def test_crops_without_an_index_have_the_same_pixels(kind: str) -> None:
    assert check_crops(np.random.default_rng(0), kind, (70, 90), 4, 100_000) == {"no index": 4}


def test_an_index_is_valid_for_its_jpeg_only_and_undamaged() -> None:
    rng, size = np.random.default_rng(0), (64, 96)
    data = padded(KINDS["420"](picture(*size), 80), 20_000)
    index = index_of(data, *size)
    assert is_index_of(index, data)
    for whole in (data, index):
        for place in range(whole.size) if whole is index else range(0, whole.size, 7):
            for bit in (1, 128):
                whole[place] ^= bit
                assert not is_index_of(index, data), place
                whole[place] ^= bit
        for _ in range(2000):  # the same bit of words in memory, as after a fault of a data line
            first, second = rng.choice(np.arange(int(rng.integers(8)), whole.size, 8), 2, False)
            bit = np.uint8(rng.choice([1, 128]))
            whole[[first, second]] ^= bit
            assert not is_index_of(index, data), (first, second)
            whole[[first, second]] ^= bit
    for count in (2, 3, 4):
        for places in combinations(range(11, 40, 4), count):  # the highest bits of 32-bit words
            index[[*places]] ^= 128
            assert not is_index_of(index, data), places
            index[[*places]] ^= 128
    for stop in range(index.size):
        assert not is_index_of(index[:stop], data)
        assert not is_index_of(index, data[:stop])
    other = padded(KINDS["420"](picture(*size, seed=1), 80), 20_000)
    assert not is_index_of(index, other)
    assert is_index_of(index, data)


def test_checksums_do_not_depend_on_the_place_in_memory() -> None:
    rng = np.random.default_rng(0)
    data = rng.integers(0, 256, 4000, dtype=np.uint8)
    for start in range(64):
        for count in (*range(100), 1000, 3900):
            part = data[start : start + count]
            assert checksum(part) == checksum(part.copy()) == checksum(fenced(part))


def test_only_a_finished_index_is_written() -> None:
    size = (160, 240)
    data = padded(KINDS["420"](picture(*size), 90), 0)
    index = index_of(data, *size)
    scratch = np.zeros(jpeg_scratch_bytes(*size), dtype=np.uint8)
    # Another thread may use the index that was made for the same image a moment ago.
    out = np.full(2 * index.size, 0xA5, dtype=np.uint8)
    assert index_jpeg(data, *size, scratch, out) == index.size
    assert (out[index.size :] == 0xA5).all()
    out[:] = 0xA5
    for room in range(60):
        assert index_jpeg(data, *size, scratch, out[:room]) == 0
        assert (out == 0xA5).all()


@pytest.mark.parametrize("kind", ["444", "422 optimized", "420"])
def test_a_damaged_index_leads_to_no_access_outside_of_the_arguments(kind: str) -> None:
    """`crop` checks the memory; `is_index_of`, which keeps such indexes out, is not called."""
    rng, size = np.random.default_rng(0), (50, 140)
    data = padded(KINDS[kind](picture(*size), 80), 30_000)
    index = index_of(data, *size)
    other = index_of(padded(KINDS[kind](picture(*size, seed=1), 80), 30_000), *size)
    damaged = [index[:stop] for stop in range(index.size)] + [other]
    for number in range(400):
        first, last = [(8, 24), (24, index.size), (8, index.size)][number % 3]
        places = rng.integers(first, last, rng.integers(1, 9)) if number % 4 else slice(first, last)
        damaged.append(index.copy())
        damaged[-1][places] = rng.choice([0, 255, 127, 128, int(rng.integers(256))])
    whole = crop(data, NO_INDEX, size, (0, 0, *size))
    assert whole is not None
    for each in damaged:
        assert np.array_equal(each, index) or not is_index_of(fenced(each), data)
        box = drawn_box(rng, *size)
        assert crop(data, fenced(each, after=bool(rng.integers(2))), size, box) is not None


@pytest.mark.slow
def test_ten_thousand_crops_have_the_same_pixels() -> None:
    rng, seen = np.random.default_rng(0), {kind: Counter[str]() for kind in KINDS}
    for number in range(2000):
        kind = list(KINDS)[number % len(KINDS)]
        size = np.exp(rng.uniform(0, np.log(2001), 2)) if number % 2 else rng.uniform(1, 2001, 2)
        height, width = size.astype(int).tolist()
        padding = int(rng.integers(2) * rng.integers(200_000))
        seen[kind] += check_crops(rng, kind, (height, width), 5, padding)
    for kind, ways in seen.items():
        print(f"{kind:20}", dict(ways))
    total = sum(seen.values(), Counter[str]())
    print("all", dict(total))
    assert total.total() == 10_000
    assert total["index"] > 4000
