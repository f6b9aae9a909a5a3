"""`draw_crop` and `draw_flip` against their twins and torchvision's distribution."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torchvision.transforms import RandomResizedCrop

from tests.reference import crops as reference
from tests.support.crops import random_crops, random_flips

SIDES = st.one_of(st.integers(1, 12), st.integers(1, 5000))
COUNTERS = st.one_of(st.integers(0, 3), st.integers(0, 2**64 - 1))
RANGES = st.tuples(st.floats(1e-9, 1.0), st.floats(1e-9, 1.0)).map(sorted).map(tuple)
RATIOS = st.tuples(st.floats(1e-4, 1e4), st.floats(1e-4, 1e4)).map(sorted).map(tuple)
# Squares of a quarter of the area: 11 x 11 places in 20 x 20 pixels, all equally likely.
PLACES: dict[str, Any] = {"scale": (0.25, 0.25), "ratio": (1.0, 1.0)}
NUM_PLACES = 11
# These must never change, because every user's training depends on them.
GOLDEN = [[106, 78, 237, 306], [10, 168, 211, 233], [1, 16, 373, 482], [145, 134, 166, 176]]
GOLDEN_FLIPS = [0, 0, 0, 0, 0, 1, 0, 1, 1, 0, 0, 0, 0, 0, 1, 0]
# Neighbouring counters, which a weak hash would correlate.
NEIGHBOURS = {
    "seed": {"seed": 1},
    "epoch": {"epoch": 1},
    "sample": {"ids": 1},
    "view": {"view": 1},
    "epoch and sample": {"epoch": 1, "ids": -1},
    "seed and epoch": {"seed": 1, "epoch": -1},
    "sample and view": {"ids": -1, "view": 1},
}


def assert_inside(boxes: NDArray[np.int64], heights: Any, widths: Any) -> None:
    top, left, rows, columns = boxes.T
    assert (boxes >= 0).all()
    assert (boxes[:, 2:] >= 1).all()
    assert (top + rows <= heights).all()
    assert (left + columns <= widths).all()


def places(count: int, ids: int = 1000, seed: int = 7, epoch: int = 5, view: int = 3) -> Any:
    """Draw the places of `count` crops (N, 2), from sample `ids` on."""
    numbers = np.arange(ids, ids + count)
    sides = np.full(count, 20)
    return random_crops(sides, sides, numbers, seed, epoch, view=view, **PLACES)[:, :2]


def assert_uniform(cells: NDArray[np.int64], num_cells: int) -> None:
    """Chi-square test: mean `num_cells - 1`, standard deviation sqrt(2 (num_cells - 1))."""
    counts = np.bincount(cells, minlength=num_cells)
    assert len(counts) == num_cells
    expected = len(cells) / num_cells
    assert expected >= 20
    excess = ((counts - expected) ** 2 / expected).sum() - (num_cells - 1)
    assert abs(excess) < 4 * math.sqrt(2 * (num_cells - 1))


def assert_same_distribution(one: NDArray[Any], other: NDArray[Any]) -> None:
    """Kolmogorov-Smirnov test: the largest distance of the two distribution functions."""
    values = np.sort(np.concatenate([one, other]))
    shares = [
        np.searchsorted(np.sort(sample), values, side="right") / len(sample)
        for sample in (one, other)
    ]
    # One in a thousand pairs of samples of one distribution is further apart.
    assert np.abs(shares[0] - shares[1]).max() < 1.95 * math.sqrt(1 / len(one) + 1 / len(other))


@settings(max_examples=300)
@given(
    st.lists(st.tuples(SIDES, SIDES, COUNTERS), min_size=1, max_size=8),
    COUNTERS, COUNTERS, RANGES, RATIOS, COUNTERS,
)  # fmt: skip
def test_crops_equal_the_twins_and_lie_inside_the_image(
    samples: Any, seed: int, epoch: int, scale: Any, ratio: Any, view: int
) -> None:
    heights, widths, ids = zip(*samples, strict=True)
    # With a dtype: numpy makes floats of a list of small integers and integers above 2^63.
    numbers = np.array(ids, dtype=np.uint64)
    arguments = (np.array(heights), np.array(widths), numbers, seed, epoch, scale, ratio, view)
    boxes = random_crops(*arguments)
    assert (boxes.dtype, boxes.shape) == (np.int64, (len(samples), 4))
    np.testing.assert_array_equal(boxes, reference.random_crops(*arguments))
    assert_inside(boxes, arguments[0], arguments[1])


@settings(max_examples=100)
@given(st.lists(COUNTERS, max_size=8), COUNTERS, COUNTERS, st.floats(0, 1), COUNTERS)
def test_flips_equal_the_twins(
    ids: list[int], seed: int, epoch: int, probability: float, view: int
) -> None:
    flips = random_flips(ids, seed, epoch, probability, view)
    assert (flips.dtype, flips.shape) == (np.bool_, (len(ids),))
    np.testing.assert_array_equal(
        flips, reference.random_flips(ids, seed, epoch, probability, view)
    )


def test_draws_never_change() -> None:
    boxes = random_crops([375] * 4, [500] * 4, [0, 1, 2, 1281166], 0, 0)
    assert boxes.tolist() == GOLDEN
    assert random_flips(np.arange(16), 0, 0).astype(int).tolist() == GOLDEN_FLIPS


@pytest.mark.parametrize(
    ("height", "width", "scale", "ratio"),
    [
        (375, 500, (0.08, 1.0), (3 / 4, 4 / 3)),
        (400, 300, (0.35, 1.0), (3 / 4, 4 / 3)),
        (64, 64, (0.2, 0.3), (1.0, 1.0)),
        (90, 400, (0.6, 1.0), (3 / 4, 4 / 3)),  # few tries fit
        (1000, 20, (0.5, 1.0), (3 / 4, 4 / 3)),  # no try fits
        (20, 1000, (0.5, 1.0), (1 / 2, 2.0)),
        (32, 32, (0.08, 1.0), (1 / 5, 5.0)),
    ],
)
def test_crops_have_torchvisions_distribution(
    height: int, width: int, scale: Any, ratio: Any
) -> None:
    count = 3000
    boxes = random_crops(
        np.full(count, height), np.full(count, width), np.arange(count), 11, 0, scale, ratio
    )
    image = torch.empty(3, height, width)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = np.array(
            [RandomResizedCrop.get_params(image, list(scale), list(ratio)) for _ in range(count)]
        )
    for measure in (
        lambda box: box[:, 0],
        lambda box: box[:, 1],
        lambda box: box[:, 2] * box[:, 3],
        lambda box: box[:, 3] / box[:, 2],
        lambda box: (box[:, 0] + box[:, 2] / 2) / height + (box[:, 1] + box[:, 3] / 2) / width,
    ):
        assert_same_distribution(measure(boxes), measure(theirs))


def test_areas_and_aspect_ratios_are_uniform_where_all_fit() -> None:
    count, side = 20_000, 10_000
    sides = np.full(count, side)
    boxes = random_crops(sides, sides, np.arange(count), 0, 0, (0.1, 0.5), (0.5, 2.0))
    shares = (boxes[:, 2] * boxes[:, 3] / side**2 - 0.1) / 0.4
    aspects = (np.log(boxes[:, 3] / boxes[:, 2]) / math.log(2.0) + 1) / 2
    for values in (shares, aspects):
        assert_uniform(np.clip((values * 50).astype(np.int64), 0, 49), 50)
    joint = np.clip((shares * 10).astype(np.int64), 0, 9) * 10
    assert_uniform(joint + np.clip((aspects * 10).astype(np.int64), 0, 9), 100)


@pytest.mark.parametrize(
    ("size", "ratio", "box"),
    [
        ((1, 1), (3 / 4, 4 / 3), (0, 0, 1, 1)),
        ((1, 1), (5.0, 6.0), (0, 0, 1, 1)),
        ((1000, 3), (3 / 4, 4 / 3), (498, 0, 4, 3)),
        ((3, 1000), (3 / 4, 4 / 3), (0, 498, 3, 4)),
        ((100, 5), (2.0, 2.0), (49, 0, 2, 5)),  # 2.5 rows round to the even 2, as in Python
        ((5, 100), (0.1, 0.3), (0, 49, 5, 2)),
        ((2, 100), (0.1, 0.1), (0, 49, 2, 1)),  # 0.2 columns become one
        ((100, 100), (0.9, 1.1), (0, 0, 100, 100)),
    ],
)
def test_the_largest_centred_crop_is_taken_when_no_try_fits(
    size: Any, ratio: Any, box: Any
) -> None:
    # Only the whole image has this area, and its aspect ratio is not allowed.
    scale = (1.0, 1.0) if size != (100, 100) else (1e-9, 1e-9)
    heights, widths = ([side] * 50 for side in size)
    boxes = random_crops(heights, widths, np.arange(50), 0, 0, scale, ratio)
    assert np.unique(boxes, axis=0).tolist() == [list(box)]


def test_every_place_is_equally_likely() -> None:
    top, left = places(40 * NUM_PLACES**2).T
    assert_uniform(top * NUM_PLACES + left, NUM_PLACES**2)


@pytest.mark.parametrize("change", NEIGHBOURS)
def test_neighbouring_counters_draw_independently(change: str) -> None:
    here = {"ids": 1000, "seed": 7, "epoch": 5, "view": 3}
    there = {name: value + NEIGHBOURS[change].get(name, 0) for name, value in here.items()}
    count = 40 * NUM_PLACES**2
    one, other = places(count, **here), places(count, **there)
    assert (one != other).any(axis=1).mean() > 0.98  # 120 of 121
    for side in range(2):
        assert_uniform(one[:, side] * NUM_PLACES + other[:, side], NUM_PLACES**2)


def test_the_counters_of_one_sample_draw_uniformly() -> None:
    count = 40 * NUM_PLACES**2
    for vary in ("seed", "epoch", "view"):
        tops = []
        for number in range(count // 10):
            counter = {"seed": 1, "epoch": 2, "view": 3, vary: number}
            tops.append(places(10, **counter))
        top, left = np.concatenate(tops).T
        assert_uniform(top * NUM_PLACES + left, NUM_PLACES**2)


def test_flips_have_their_probability_and_are_independent_of_crops() -> None:
    count = 40 * NUM_PLACES**2
    numbers = np.arange(1000, 1000 + count)
    for probability in (0.0, 0.1, 0.5, 1.0):
        flips = random_flips(numbers, 7, 5, probability, 3)
        spread = math.sqrt(probability * (1 - probability) / count)
        assert abs(flips.mean() - probability) <= 4 * spread
    flips = random_flips(numbers, 7, 5, view=3).astype(np.int64)
    assert_uniform(places(count)[:, 0] * 2 + flips, 2 * NUM_PLACES)
    for change in ({"seed": 8}, {"epoch": 6}, {"view": 4}, {"ids": numbers + 1}):
        other = random_flips(**{"ids": numbers, "seed": 7, "epoch": 5, "view": 3, **change})
        assert_uniform(flips * 2 + other, 4)
