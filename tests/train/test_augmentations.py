"""Augmentations: compared with torchvision for the same parameters, and their random numbers."""

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms import functional as vision

from train.components.augmentations import Parameters, augment, draw
from train.configs.pretrain_moco import Augmentation

CPU = torch.device("cpu")
MOCO = Augmentation()
TOLERANCE = 0.02  # grey levels of 255, in float32


def pictures(count: int, height: int = 20, width: int = 27) -> Tensor:
    """Noise and flat areas, grey, black and white among them: each case of the hue's formula."""
    generator = torch.Generator().manual_seed(7)
    images = torch.randint(
        0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator
    )
    images[:, :, :4] = images[:, :1, :4]  # no chroma
    images[:, :, 4] = 0
    images[:, :, 5] = 255
    images[:, 1, 6] = images[:, 0, 6]  # two channels alike
    images[:, 2, 7] = images[:, 1, 7]
    images[:, 2, 8] = images[:, 0, 8]
    return images


def by_torchvision(image: Tensor, parameters: Parameters, at: int, place: int) -> Tensor:
    """Do to one image what the parameters say, one operation of torchvision after the other."""
    adjust: list[Any] = [
        vision.adjust_brightness,
        vision.adjust_contrast,
        vision.adjust_saturation,
    ]
    result = image.float() / 255
    steps = [(adjust[k], float(parameters.factors[at, k])) for k in parameters.order[at].tolist()]
    steps.insert(place, (vision.adjust_hue, float(parameters.hue[at])))
    for operation, value in steps:
        result = operation(result, value)
    if parameters.grey[at]:
        result = vision.rgb_to_grayscale(result, num_output_channels=3)
    if (sigma := float(parameters.sigma[at])) > 0:
        result = vision.gaussian_blur(result, [2 * parameters.blur_radius + 1] * 2, [sigma] * 2)
    return result * 255


def assert_as_torchvision(images: Tensor, parameters: Parameters) -> None:
    found = augment(images, parameters)
    quarters = torch.arange(len(images)).tensor_split(4)
    places = [
        place
        for place, quarter in zip(parameters.hue_places, quarters, strict=True)
        for _ in quarter
    ]
    for at, place in enumerate(places):
        expected = by_torchvision(images[at], parameters, at, place)
        torch.testing.assert_close(found[at], expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("count", [1, 5, 64])
def test_a_batch_becomes_what_torchvision_makes_of_each_image(count: int) -> None:
    parameters = draw(count, MOCO, (0, 1, 2), CPU)
    assert_as_torchvision(pictures(count), parameters)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
@pytest.mark.parametrize("place", range(4))
def test_every_order_of_the_jitter_is_kept(order: tuple[int, ...], place: int) -> None:
    strong = Augmentation(brightness=0.9, contrast=0.9, saturation=0.9, hue=0.5, blur_probability=0)
    drawn = draw(8, replace(strong, jitter_probability=1.0, grey_probability=0.0), (3,), CPU)
    parameters = replace(drawn, order=torch.tensor([order] * 8), hue_places=(place,) * 4)
    assert_as_torchvision(pictures(8), parameters)


def test_the_memory_format_stays_and_values_are_pixels() -> None:
    images = pictures(8).contiguous(memory_format=torch.channels_last)
    before = images.clone()
    strong = Augmentation(brightness=2.0, contrast=2.0, saturation=2.0, hue=0.5)
    found = augment(images, draw(8, strong, (0,), CPU))
    assert found.dtype == torch.float32
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert found.min() >= 0
    assert found.max() <= 255.001
    assert torch.equal(images, before)


def assert_same(first: Parameters, second: Parameters) -> None:
    for name, value in vars(first).items():
        other = getattr(second, name)
        assert torch.equal(value, other) if isinstance(value, Tensor) else value == other, name


def test_draws_depend_on_the_key_alone() -> None:
    state = torch.random.get_rng_state()
    first = draw(32, MOCO, (5, 6, 7, 0), CPU)
    torch.rand(3)
    assert_same(first, draw(32, MOCO, (5, 6, 7, 0), CPU))
    for other in ((4, 6, 7, 0), (5, 7, 7, 0), (5, 6, 8, 0), (5, 6, 7, 1), (6, 5, 7, 0)):
        assert not torch.equal(first.factors, draw(32, MOCO, other, CPU).factors)
    torch.random.set_rng_state(state)
    draw(32, MOCO, (5,), CPU)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_draws_have_the_ranges_and_shares_that_are_asked_for() -> None:
    count = 20_000
    parameters = draw(count, MOCO, (1,), CPU)
    jittered = parameters.hue != 0
    assert torch.equal(jittered, (parameters.factors != 1).any(1))
    for name, share, wanted in (
        ("jitter", jittered, 0.8),
        ("grey", parameters.grey, 0.2),
        ("blur", parameters.sigma > 0, 0.5),
    ):
        assert share.float().mean().item() == pytest.approx(wanted, abs=0.015), name
    bounds = [(parameters.factors[jittered, at], 0.6, 1.4) for at in range(3)]
    bounds += [
        (parameters.hue[jittered], -0.1, 0.1),
        (parameters.sigma[parameters.sigma > 0], 0.1, 2),
    ]
    for values, low, high in bounds:
        width = high - low
        assert low <= values.min() < low + 0.01 * width
        assert high - 0.01 * width < values.max() <= high
        assert values.mean().item() == pytest.approx((low + high) / 2, abs=0.02 * width)
    # What one sample gets says nothing of what else it gets.
    grey, blurred = parameters.grey.float(), (parameters.sigma > 0).float()
    assert (grey * blurred).mean().item() == pytest.approx(0.1, abs=0.01)
    orders, counts = parameters.order.unique(dim=0, return_counts=True)
    assert len(orders) == 6
    assert counts.min() > 0.9 * count / 6


def test_each_place_of_the_hue_has_a_quarter_and_the_quarters_change() -> None:
    drawn = [draw(4, MOCO, (step,), CPU).hue_places for step in range(200)]
    assert all(sorted(places) == [0, 1, 2, 3] for places in drawn)
    assert len(set(drawn)) == 24


@pytest.mark.gpu
def test_a_gpu_makes_what_the_processor_makes() -> None:
    parameters = draw(64, MOCO, (3,), CPU)
    on_gpu = Parameters(
        **{
            name: value.cuda() if isinstance(value, Tensor) else value
            for name, value in vars(parameters).items()
        }
    )
    found = augment(pictures(64).cuda(), on_gpu).cpu()
    torch.testing.assert_close(found, augment(pictures(64), parameters), atol=0.5, rtol=0)
