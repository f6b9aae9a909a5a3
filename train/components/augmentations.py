"""MoCo v2's augmentations of a whole batch, on the device where it is.

Each sample has parameters of its own, but no loop runs over the images and nothing waits for the
GPU. Crops and mirroring are the decoder's (`RandomResizedCropRGBImageDecoder`); what follows here
is colour jitter, greyscale and blur. What is computed for given parameters is what torchvision's
functional operations compute.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..configs.checks import check_at_least, check_shares

WHITE = 255.0
LUMINANCE = (0.2989, 0.587, 0.114)  # of red, green and blue; ITU-R BT.601, as in torchvision
HUE_OFFSETS = (5.0, 3.0, 1.0)  # sixths of a turn to add to a hue for red, green and blue
BLENDS = 3  # brightness, contrast and saturation: mixtures with black, the mean and grey
CONTRAST, SATURATION = 1, 2


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How strongly and how often; the defaults are MoCo v2's (Chen et al. 2020, 2003.04297)."""

    brightness: float = 0.4
    """Factors are drawn from [1 - brightness, 1 + brightness], but never below 0."""
    contrast: float = 0.4
    """Likewise."""
    saturation: float = 0.4
    """Likewise."""
    hue: float = 0.1
    """Shifts are drawn from [-hue, hue], in turns of the circle of hues."""
    jitter_probability: float = 0.8
    """Of those four together, in an order drawn at random."""
    grey_probability: float = 0.2
    """Of taking the colours away."""
    blur_probability: float = 0.5
    """Of a Gaussian blur."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Smallest and largest standard deviation of the blur, in pixels."""

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""
        check_shares(self, ("jitter_probability", "grey_probability", "blur_probability"))
        check_at_least(self, 0, ("brightness", "contrast", "saturation", "hue"))
        if self.hue > 0.5:
            raise ValueError(f"`hue` must be at most 0.5; got {self.hue}. Lower it.")
        low, high = self.blur_sigma
        if not 0.0 < low <= high:
            raise ValueError(
                f"`blur_sigma` must be two rising numbers above 0; got {self.blur_sigma}. "
                "Switch the blur off by `blur_probability`."
            )

    @property
    def blur_radius(self) -> int:
        """Pixels to each side that the widest blur weighs: three standard deviations."""
        return math.ceil(3 * self.blur_sigma[1])


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """What is done to each of B samples; where something is not done, what changes nothing."""

    factors: Tensor
    """Of brightness, contrast and saturation: float `(B, 3)`, 1 changes nothing."""
    order: Tensor
    """The order of these three: int64 `(B, 3)`, columns of `factors`."""
    hue: Tensor
    """Turns of the circle of hues: float `(B,)`, 0 changes nothing."""
    hue_places: tuple[int, ...]
    """Before which of the three, or behind them (3), hues are shifted in each quarter of the batch.

    Places are shared so that hues, which cost the most, are shifted once for each sample. As each
    place has a quarter and the batch is in random order, all 24 orders are equally likely.
    """
    grey: Tensor
    """Whether colours are taken away: bool `(B,)`."""
    sigma: Tensor
    """Of the blur: float `(B,)`, 0 changes nothing."""
    blur_radius: int
    """Pixels to each side that the blur weighs."""


def draw(
    count: int, augmentation: Augmentation, key: tuple[int, ...], device: torch.device
) -> Parameters:
    """Draw the parameters of `count` samples on the device.

    Args:
        count: B.
        augmentation: the distributions.
        key: what the numbers depend on, and nothing else, such as seed, epoch, step and view; none
            negative. Another kind of device gives other numbers.
        device: where the batch is.
    """
    rng = np.random.default_rng(key)
    generator = torch.Generator(device).manual_seed(int(rng.integers(1 << 63)))
    uniform = torch.rand((count, 11), generator=generator, device=device)
    jittered, grey, blurred = (
        uniform[:, at] < probability
        for at, probability in enumerate(
            (
                augmentation.jitter_probability,
                augmentation.grey_probability,
                augmentation.blur_probability,
            )
        )
    )
    factors = [
        _between(uniform[:, 3 + at], max(0.0, 1.0 - strength), 1.0 + strength)
        for at, strength in enumerate(
            (augmentation.brightness, augmentation.contrast, augmentation.saturation)
        )
    ]
    hue = _between(uniform[:, 6], -augmentation.hue, augmentation.hue)
    sigma = _between(uniform[:, 7], *augmentation.blur_sigma)
    return Parameters(
        factors=torch.where(jittered[:, None], torch.stack(factors, 1), 1.0),
        order=uniform[:, 8:].argsort(1),
        hue=torch.where(jittered, hue, 0.0),
        hue_places=tuple(rng.permutation(BLENDS + 1).tolist()),
        grey=grey,
        sigma=torch.where(blurred, sigma, 0.0),
        blur_radius=augmentation.blur_radius,
    )


def augment(images: Tensor, parameters: Parameters) -> Tensor:
    """Jitter the colours, take them away, and blur: in this order, as MoCo v2 does.

    Args:
        images: `(B, 3, H, W)` of values 0 to 255, in any type; H and W above the blur's radius.
        parameters: what to do to each.

    Returns:
        float32 `(B, 3, H, W)` of values 0 to 255, not rounded, in the memory format of `images`.
    """
    is_last = images.is_contiguous(memory_format=torch.channels_last)
    images = images.to(torch.float32, memory_format=torch.contiguous_format)
    images = _jitter(images, parameters)
    images = torch.where(_per_sample(parameters.grey), _luminance(images), images)
    images = _blur(images, parameters.sigma, parameters.blur_radius)
    memory_format = torch.channels_last if is_last else torch.contiguous_format
    return images.contiguous(memory_format=memory_format)


def _jitter(images: Tensor, parameters: Parameters) -> Tensor:
    """Blend three times and shift hues once, in each sample's order."""
    factors = parameters.factors.gather(1, parameters.order)
    parts = zip(
        parameters.hue_places,
        *(
            values.tensor_split(len(parameters.hue_places))
            for values in (images, factors, parameters.order, parameters.hue)
        ),
        strict=True,
    )
    done = []
    for hue_place, part, part_factors, order, hue in parts:
        jittered = part
        for place in range(BLENDS):
            if place == hue_place:
                jittered = _shift_hue(jittered, hue)
            jittered = _blend(jittered, part_factors[:, place], order[:, place])
        done.append(_shift_hue(jittered, hue) if hue_place == BLENDS else jittered)
    return torch.cat(done)


def _blend(images: Tensor, factor: Tensor, kind: Tensor) -> Tensor:
    """Change brightness (0), contrast (1) or saturation (2), by each sample's `kind` and factor."""
    kind, factor = _per_sample(kind), _per_sample(factor)
    grey = _luminance(images)
    other = torch.where(kind == SATURATION, grey, 0.0)
    other = torch.where(kind == CONTRAST, grey.mean((1, 2, 3), keepdim=True), other)
    return (factor * images + (1.0 - factor) * other).clamp(0.0, WHITE)


def _shift_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue and keep value and chroma: from RGB to HSV and back in one formula."""
    red, green, blue = images.split(1, dim=1)
    high, low = images.amax(1, keepdim=True), images.amin(1, keepdim=True)
    chroma = high - low
    divisor = torch.where(chroma == 0, 1.0, chroma)
    sixths = torch.where(
        high == red,
        (green - blue) / divisor,
        torch.where(high == green, 2.0 + (blue - red) / divisor, 4.0 + (red - green) / divisor),
    )
    # Filled on the device, since a copy from the host would wait.
    offsets = torch.stack([torch.full_like(turns, offset) for offset in HUE_OFFSETS], dim=1)
    at = (sixths + (offsets + 6.0 * turns[:, None])[:, :, None, None]).remainder(6.0)
    return high - chroma * torch.minimum(at, 4.0 - at).clamp(0.0, 1.0)


def _luminance(images: Tensor) -> Tensor:
    """Return the grey values `(B, 1, H, W)`."""
    red, green, blue = images.split(1, dim=1)
    grey: Tensor = LUMINANCE[0] * red + LUMINANCE[1] * green + LUMINANCE[2] * blue
    return grey


def _blur(images: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Convolve each sample with a Gaussian of its own, mirrored at the borders, rows then columns.

    With sigma 0 the kernel is 1 in the middle and 0 elsewhere, which returns the image exactly.
    """
    count, channels, height, width = images.shape
    offsets = torch.arange(-radius, radius + 1, device=images.device)
    weights = torch.exp(-0.5 * (offsets / sigma.clamp_min(1e-3)[:, None]) ** 2)
    weights = F.threshold(weights, 1e-20, 0.0)  # processors are slow with numbers below 1e-38
    weights = weights / weights.sum(1, keepdim=True)
    kernels = weights.repeat_interleave(channels, 0)[:, None, None]  # (B * 3, 1, 1, 2r + 1)
    planes = images.reshape(1, count * channels, height, width)
    planes = F.pad(planes, (radius, radius, radius, radius), mode="reflect")
    planes = F.conv2d(planes, kernels, groups=count * channels)
    planes = F.conv2d(planes, kernels.transpose(2, 3), groups=count * channels)
    return planes.reshape(images.shape)


def _between(uniform: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * uniform


def _per_sample(values: Tensor) -> Tensor:
    return values[:, None, None, None]
