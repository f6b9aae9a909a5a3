"""MoCo v2's augmentations of a batch on its device: colour jitter, greyscale and blur.

Each sample has its own parameters, but there is no loop over images, and nothing waits for the GPU.
For given parameters the results are those of torchvision's functional operations. The decoder
(`RandomResizedCropRGBImageDecoder`) crops and mirrors.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..configs.pretrain_moco import Augmentation

WHITE = 255.0
LUMINANCE = (0.2989, 0.587, 0.114)  # weights of red, green and blue: ITU-R BT.601, torchvision
HUE_OFFSETS = (5.0, 3.0, 1.0)  # sixths of a turn to add to a hue for red, green and blue
BLENDS = 3  # brightness, contrast and saturation: blends with black, the mean and grey
CONTRAST, SATURATION = 1, 2


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """Parameters of B samples. A sample without an operation has its neutral value."""

    factors: Tensor
    """Factors of brightness, contrast and saturation: float `(B, 3)`, 1 is neutral."""
    order: Tensor
    """Order of these three operations, as columns of `factors`: int64 `(B, 3)`."""
    hue: Tensor
    """Shift of the hue in turns: float `(B,)`, 0 is neutral."""
    hue_places: tuple[int, ...]
    """Place of the hue shift among these three, 0 to 3, for each quarter of the batch.

    The hue shift costs the most, and with a place per quarter it runs once per sample. All 24
    orders are equally likely, because the batch is in random order.
    """
    grey: Tensor
    """Convert to greyscale: bool `(B,)`."""
    sigma: Tensor
    """Standard deviation of the blur in pixels: float `(B,)`, 0 is neutral."""
    blur_radius: int
    """Radius of the blur's kernel, in pixels."""


def draw(
    count: int, augmentation: Augmentation, key: tuple[int, ...], device: torch.device
) -> Parameters:
    """Draw the parameters of `count` samples on the device.

    Args:
        count: number of samples B.
        augmentation: the distributions.
        key: key of the random numbers, such as (seed, epoch, step, view); none negative. The
            numbers depend only on the key and the kind of device.
        device: device of the batch.
    """
    rng = np.random.default_rng(key)
    generator = torch.Generator(device).manual_seed(int(rng.integers(1 << 63)))
    uniform = torch.rand((count, 11), generator=generator, device=device)
    jittered = uniform[:, 0] < augmentation.jitter_probability
    blurred = uniform[:, 2] < augmentation.blur_probability
    strengths = (augmentation.brightness, augmentation.contrast, augmentation.saturation)
    factors = [
        _between(uniform[:, 3 + at], max(0.0, 1.0 - strength), 1.0 + strength)
        for at, strength in enumerate(strengths)
    ]
    hue = _between(uniform[:, 6], -augmentation.hue, augmentation.hue)
    sigma = _between(uniform[:, 7], *augmentation.blur_sigma)
    return Parameters(
        factors=torch.where(jittered[:, None], torch.stack(factors, 1), 1.0),
        order=uniform[:, 8:].argsort(1),
        hue=torch.where(jittered, hue, 0.0),
        hue_places=tuple(rng.permutation(BLENDS + 1).tolist()),
        grey=uniform[:, 1] < augmentation.grey_probability,
        sigma=torch.where(blurred, sigma, 0.0),
        blur_radius=augmentation.blur_radius,
    )


def augment(images: Tensor, parameters: Parameters) -> Tensor:
    """Apply colour jitter, greyscale and blur, in this order.

    Args:
        images: pixel values 0 to 255, `(B, 3, H, W)`, with H and W above the radius of the blur.
        parameters: the parameters of each sample.

    Returns:
        Pixel values 0 to 255, not rounded, float32 `(B, 3, H, W)` in the memory format of `images`.
    """
    is_last = images.is_contiguous(memory_format=torch.channels_last)
    images = images.to(torch.float32, memory_format=torch.contiguous_format)
    images = _jitter(images, parameters)
    images = torch.where(_per_sample(parameters.grey), _luminance(images), images)
    images = _blur(images, parameters.sigma, parameters.blur_radius)
    memory_format = torch.channels_last if is_last else torch.contiguous_format
    return images.contiguous(memory_format=memory_format)


def _jitter(images: Tensor, parameters: Parameters) -> Tensor:
    """Blend three times and shift the hue once, in the order of each sample."""
    factors = parameters.factors.gather(1, parameters.order)
    values = (images, factors, parameters.order, parameters.hue)
    quarters = [value.tensor_split(BLENDS + 1) for value in values]
    done = []
    for hue_place, part, factor, order, hue in zip(parameters.hue_places, *quarters, strict=True):
        jittered = part
        for place in range(BLENDS):
            if place == hue_place:
                jittered = _shift_hue(jittered, hue)
            jittered = _blend(jittered, factor[:, place], order[:, place])
        done.append(_shift_hue(jittered, hue) if hue_place == BLENDS else jittered)
    return torch.cat(done)


def _blend(images: Tensor, factor: Tensor, kind: Tensor) -> Tensor:
    """Change brightness (0), contrast (1) or saturation (2) of each sample, as `kind` says."""
    kind, factor = _per_sample(kind), _per_sample(factor)
    grey = _luminance(images)
    other = torch.where(kind == SATURATION, grey, 0.0)
    other = torch.where(kind == CONTRAST, grey.mean((1, 2, 3), keepdim=True), other)
    return (factor * images + (1.0 - factor) * other).clamp(0.0, WHITE)


def _shift_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Shift the hue and keep value and chroma: RGB to HSV and back, in one formula."""
    red, green, blue = images.split(1, dim=1)
    high, low = images.amax(1, keepdim=True), images.amin(1, keepdim=True)
    chroma = high - low
    divisor = torch.where(chroma == 0, 1.0, chroma)
    sixths = torch.where(
        high == red,
        (green - blue) / divisor,
        torch.where(high == green, 2.0 + (blue - red) / divisor, 4.0 + (red - green) / divisor),
    )
    # Filled on the device: a copy from the host would wait.
    offsets = torch.stack([torch.full_like(turns, offset) for offset in HUE_OFFSETS], dim=1)
    at = (sixths + (offsets + 6.0 * turns[:, None])[:, :, None, None]).remainder(6.0)
    return high - chroma * torch.minimum(at, 4.0 - at).clamp(0.0, 1.0)


def _luminance(images: Tensor) -> Tensor:
    red, green, blue = images.split(1, dim=1)
    grey: Tensor = LUMINANCE[0] * red + LUMINANCE[1] * green + LUMINANCE[2] * blue
    return grey


def _blur(images: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Convolve each sample with its own Gaussian, with mirrored borders, along rows then columns.

    With sigma 0 the kernel is 1 at the centre and 0 elsewhere, which returns the image exactly.
    """
    count, channels, height, width = images.shape
    offsets = torch.arange(-radius, radius + 1, device=images.device)
    weights = torch.exp(-0.5 * (offsets / sigma.clamp_min(1e-3)[:, None]) ** 2)
    weights = F.threshold(weights, 1e-20, 0.0)  # numbers below 1e-38 are slow
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
